"""A cache -> its items in rows, whether they are intact by their crc, and the pictures in one of them.

Axes: B batch (1), E experts, C colour, H and W.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from cache_tools.format.layout import read_header
from cache_tools.format.store import Entry, Store
from cache_tools.read.reader import CacheReader
from cache_tools.write.writer import require_intact
from fusion.studio.views.charts import table
from imaging.files import quantize_u8
from imaging.metrics import psnr
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from fusion.studio.jobs.job_queue import QueuedJob

_HEAD = ["item", "source", "LR size", "region", "MB", "crc"]
UNCHECKED, INTACT = "not checked", "intact"
_CROP = 320  # pixels a side of the crop that is shown of each picture, from the middle: pages stay light


@dataclass(frozen=True)
class ItemRow:
    """One item of a cache: its file, and its entry or what is wrong with it."""

    id: str
    path: Path
    entry: Entry | None
    damage: str | None = None

    def cells(self, crc: dict[str, str]) -> list[str]:
        """Text for the table; `crc` holds what checks have found."""
        if self.entry is None:
            return [self.id, "", "", "", "", f"damaged: {self.damage}"]
        one = self.entry
        region = "whole" if one.region is None else f"{one.region.left}, {one.region.top}"
        size = f"{one.width}×{one.height}"
        return [self.id, one.source, size, region, f"{one.bytes / 1e6:.2f}", crc.get(self.id, UNCHECKED)]


class CheckStatus(NamedTuple):
    """How many items have been checked, and of how many."""

    checked: int
    total: int


def list_items(cache: Path, root: Path, wanted: str = "") -> list[ItemRow]:
    """Every item whose name or source holds `wanted`; damaged and missing ones with the reason."""
    store = Store(cache)
    indexed = {entry.id: entry for entry in store.index_lines()}
    rows = [_row(path, indexed, root) for path in store.item_paths()]
    present = {row.id for row in rows}
    rows += [
        ItemRow(one, store.item_path(one), None, "is indexed, but missing") for one in sorted(set(indexed) - present)
    ]
    wanted = wanted.strip().lower()
    return [row for row in rows if wanted in row.id.lower() or (row.entry and wanted in row.entry.source.lower())]


def items_table(rows: list[ItemRow], crc: dict[str, str]) -> str:
    """The items, each name a button."""
    if not rows:
        return "<p>No such items.</p>"
    lines = []
    for row in rows:
        name, *others, state = map(escape, row.cells(crc))
        kind = "good" if state == INTACT else "bad" if state.startswith("damaged") else ""
        button = f'<button type="button" data-item="{name}">{name}</button>' if row.entry is not None else name
        cells = "".join(f"<td>{one}</td>" for one in others)
        lines.append(f'<tr><td>{button}</td>{cells}<td class="{kind}">{state}</td></tr>')
    head = "".join(f"<th>{one}</th>" for one in _HEAD)
    return (
        f'<div class="scroll"><table class="plain left"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def check_items(rows: list[ItemRow], crc: dict[str, str], job: QueuedJob) -> None:
    """The work of a job: read every byte of every item and compare it with its crc32."""
    for number, row in enumerate(rows, 1):
        job.check()
        job.status = CheckStatus(number, len(rows))
        if row.entry is not None:
            crc[row.id] = crc_state(row.path)


def crc_state(path: Path) -> str:
    """One item's verdict."""
    try:
        require_intact(path)
    except Refusal as refusal:
        return f"damaged: {refusal.what}"
    return INTACT


def item_page(cache: Path, row: ItemRow) -> str:
    """The item's pictures and figures."""
    batch = CacheReader(cache, items=[row.id], features=False).read(row.id)
    header = read_header(row.path)
    figures = [_picture("LR", batch.lr_BCHW)]
    if batch.hr_BCHW is not None:
        figures.append(_picture("HR", batch.hr_BCHW))
    for index, name in enumerate(batch.experts):
        sr_BCHW = batch.sr_BECHW[:, index]
        score = "" if batch.hr_BCHW is None else f", {float(psnr(sr_BCHW, batch.hr_BCHW)):.3f} dB"
        figures.append(_picture(f"{name}{score}", sr_BCHW))
    experts = [
        [one.name, one.architecture, one.tap or "", one.channels, one.precision, one.weights_sha256[:12]]
        for one in header.experts
    ]
    facts = f"{header.source}, {header.width}×{header.height}, {header.profile}, {header.degradation}"
    return (
        f"<h3>{escape(row.id)}</h3><p>{escape(facts)}</p><div class='pictures'>{''.join(figures)}</div><p></p>"
        + table(["expert", "architecture", "tap", "channels", "precision", "weights"], experts)
    )


def _row(path: Path, indexed: dict[str, Entry], root: Path) -> ItemRow:
    name = path.stem
    if not path.resolve().is_relative_to(root):
        return ItemRow(name, path, None, "leads out of the chosen folder")
    entry, size = indexed.get(name), path.stat().st_size
    # The index answers for files of the size it knows; opening thousands of HDF5 headers would take long.
    if entry is not None and entry.bytes == size:
        return ItemRow(name, path, entry)
    try:
        return ItemRow(name, path, Entry.of(read_header(path), size))
    except Refusal as refusal:
        return ItemRow(name, path, None, refusal.what)


def _picture(caption: str, rgb_BCHW: Tensor) -> str:
    rgb_HWC = quantize_u8(rgb_BCHW)[0].permute(1, 2, 0).numpy()
    top, left = (max(0, side - _CROP) // 2 for side in rgb_HWC.shape[:2])
    part_HWC = np.ascontiguousarray(rgb_HWC[top : top + _CROP, left : left + _CROP, ::-1])
    # Inside the page, as a data address: then no route has to give out files of caches.
    done, data = cv2.imencode(".png", part_HWC)
    assert done
    address = f"data:image/png;base64,{base64.b64encode(data.tobytes()).decode()}"
    text = escape(caption)
    return f'<figure><img src="{address}" alt="{text}"><figcaption>{text}</figcaption></figure>'
