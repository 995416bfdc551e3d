"""The studio's page and its shelf -> one web application: our own addresses, gradio's, and a guard before both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr
from fastapi import FastAPI

from fusion.studio.addresses import Addresses, read_static
from fusion.studio.guard import Guard, accept_uploads_only
from fusion.studio.page import HEAD, THEME

if TYPE_CHECKING:
    from fusion.studio.jobs.result_store import ResultStore
    from fusion.studio.uploads import Limits


def make_app(page: gr.Blocks, shelf: ResultStore, limits: Limits, *, loopback: bool) -> Guard:
    """Everything that answers. Of files gradio serves those that it took in or made, below GRADIO_TEMP_DIR."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    Addresses(shelf).add_to(app)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=THEME,
        css=read_static("page.css"),
        head=HEAD,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=True,
        max_file_size=int(limits.megabytes * 1e6),
    )
    accept_uploads_only(page)
    return Guard(app, loopback=loopback)
