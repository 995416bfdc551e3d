"""A gradio page -> the same page, which takes in no files but those that were uploaded to it.

A mounted page does not check that by itself: a forged request could name any file of this machine, or an address
elsewhere, where an uploaded file is expected.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.utils import get_upload_folder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


def take_uploads_only(page: gr.Blocks) -> None:
    """Every part of the page asks before it takes a file."""
    page.has_launched = True  # from now on gradio's own check is made, too
    for block in page.blocks.values():
        # An attribute of the instance: a subclass would need a frontend of its own.
        vars(block)["async_move_resource_to_block_cache"] = partial(_take, block.async_move_resource_to_block_cache)


async def _take(take: Callable[[Any], Awaitable[str | None]], named: str | Path | None) -> str | None:
    folder = Path(get_upload_folder()).resolve()
    if named is None or not Path(named).resolve().is_relative_to(folder):
        raise gr.Error("Only files that were uploaded here are taken.", print_exception=False)
    return await take(named)
