"""The studio's parts -> the page, three tabs of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr
from gradio.themes import Base

from fusion.studio.views.cache_tab import CacheTab
from fusion.studio.views.cards import masthead
from fusion.studio.views.runs_tab import RunsTab
from fusion.studio.views.upscale_tab import build_upscale_tab

if TYPE_CHECKING:
    from fusion.studio.folders import Folders
    from fusion.studio.jobs.job_queue import JobQueue
    from fusion.studio.jobs.work import Studio

HEAD = (
    '<script type="module" src="/studio/static/viewer.js"></script>'
    '<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex">'
)
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
# Fonts that the visitor's system has: none is fetched.
THEME = Base(primary_hue="teal", neutral_hue="slate", radius_size="md", font=_FONTS, font_mono=_MONO)


def build_page(studio: Studio, desk: JobQueue, folders: Folders) -> gr.Blocks:
    """Everything there is to see."""
    with gr.Blocks(title="Studio", fill_width=True, analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(masthead(studio.workshop.full))
        with gr.Tabs():
            with gr.Tab("Images", id="images"):
                build_upscale_tab(studio, desk)
            if folders.cache_root is not None:
                with gr.Tab("Caches", id="caches") as tab:
                    CacheTab(folders, desk).build(tab)
            if folders.run_root is not None:
                with gr.Tab("Runs", id="runs") as tab:
                    RunsTab(folders).build(tab)

        def left(request: gr.Request) -> None:
            """A visitor who closes the page needs no more of us."""
            desk.stop(str(request.session_hash))

        page.unload(left)
    return page
