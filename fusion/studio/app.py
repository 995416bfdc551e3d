"""The upscaler, the job queue and the folders -> one web application: page of three tabs, our routes, a guard."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr
from fastapi import FastAPI
from gradio.themes import Base

from fusion.studio.calls import CallCheck, refuse_quietly
from fusion.studio.guard import Guard, accept_uploads_only
from fusion.studio.routes import Routes, read_static
from fusion.studio.views.cache_tab import CacheTab
from fusion.studio.views.cards import page_header
from fusion.studio.views.events import cancel_handler
from fusion.studio.views.runs_tab import RunsTab
from fusion.studio.views.upscale_tab import build_upscale_tab

if TYPE_CHECKING:
    from fusion.studio.folders import Folders
    from fusion.studio.jobs.job_queue import JobQueue
    from fusion.studio.jobs.upscaler import Upscaler

_HEAD = (
    '<script type="module" src="/studio/static/viewer.js"></script>'
    '<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex">'
)
# Fonts of the visitor's system: gradio's own themes fetch theirs from elsewhere.
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
_THEME = Base(primary_hue="teal", neutral_hue="slate", radius_size="md", font=_FONTS, font_mono=_MONO)
_DELETE_UPLOADS_S = (3600, 86400)  # every hour those of more than a day ago


def make_app(upscaler: Upscaler, queue: JobQueue, folders: Folders, *, loopback: bool) -> Guard:
    """Everything that answers. Of files gradio serves uploads and its own, both below GRADIO_TEMP_DIR."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    Routes(upscaler.results).add_to(app)  # before gradio, which takes every other path
    page = _build_page(upscaler, queue, folders)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=_THEME,
        css=read_static("page.css"),
        head=_HEAD,
        footer_links=[],
        # Whatever would keep, tell or fetch something is off; the guard's policy forbids the browser the same.
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=True,
        max_file_size=int(upscaler.limits.megabytes * 1e6),
    )
    accept_uploads_only(page)
    refuse_quietly(page)
    return Guard(app, CallCheck(page), loopback=loopback)


def _build_page(upscaler: Upscaler, queue: JobQueue, folders: Folders) -> gr.Blocks:
    """Tabs for caches and runs are there when the studio was started with such folders."""
    with gr.Blocks(title="Studio", fill_width=True, analytics_enabled=False, delete_cache=_DELETE_UPLOADS_S) as page:
        gr.HTML(page_header(upscaler.ensembles.full))
        with gr.Tabs():
            with gr.Tab("Images", id="images"):
                build_upscale_tab(upscaler, queue)
            if folders.cache_root is not None:
                with gr.Tab("Caches", id="caches") as tab:
                    CacheTab(folders, queue).build(tab)
            if folders.run_root is not None:
                with gr.Tab("Runs", id="runs") as tab:
                    RunsTab(folders).build(tab)
        page.unload(cancel_handler(queue))  # whoever closes the page waits for nothing any more
    return page
