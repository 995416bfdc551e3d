"""Random 64x64 patches per second from a cache and from per-image `.pt` files, cold and warm, side by side."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.cache.fixtures import drop_from_page_cache, make_outputs, write_item, write_pt
from cache_tools.format.store import Store
from cache_tools.read.batch import dequantize
from cache_tools.read.dataset import CacheDataset
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PATCH = 64
_BATCH = 8
# Name, grid, crops per region, and whether the batch is also decoded to float on the CPU.
_WAYS = (
    ("grid 32", 32, 1, False),
    ("grid 32, decoded on the CPU", 32, 1, True),
    ("grid 8", 8, 1, False),
    ("grid 8, 4 crops a region", 8, 4, False),
)


def measure_reading(work: Path, items: int, size: tuple[int, int], patches: int) -> dict[str, Any]:
    """Write the same items in both layouts, then read both."""
    cache, older = work / "reading", work / "pt"
    older.mkdir(parents=True)
    files: list[Path] = []
    for number in range(items):
        loaded, outputs = make_outputs(*size, seed=number)
        write_item(cache, "compact", loaded, outputs)
        files.append(write_pt(older / f"{number}.pt", loaded, outputs))
    stored = Store(cache).item_paths()
    baseline = {"cold": _read_pt(files, cold=True), "warm": _read_pt(files, cold=False)}
    ways = {
        name: {
            "cold": _read_cache(cache, stored, grid, crops, patches, cold=True, decode=decode),
            "warm": _read_cache(cache, stored, grid, crops, patches, cold=False, decode=decode),
        }
        for name, grid, crops, decode in _WAYS
    }
    return {
        "items": items,
        "lr_size": f"{size[0]}x{size[1]}",
        "patches_per_second_pt": baseline,
        "patches_per_second_cache": ways,
        "ratio": {
            name: {state: round(rates[state] / baseline[state], 1) for state in ("cold", "warm")}
            for name, rates in ways.items()
        },
    }


def _read_pt(files: Sequence[Path], *, cold: bool) -> float:
    """The older way: load an image's whole file, cut one patch out of everything."""
    rng = np.random.default_rng(0)
    if not cold:
        for path in files:
            path.read_bytes()
    seconds = 0.0
    for path in files:
        if cold:
            drop_from_page_cache([path])
        begin = time.perf_counter()
        content = torch.load(path, weights_only=True)
        height, width = content["lr"].shape[-2:]
        top, left = int(rng.integers(height - _PATCH + 1)), int(rng.integers(width - _PATCH + 1))
        for tensor in (content["lr"], *content["expert_feats"].values()):
            tensor[:, top : top + _PATCH, left : left + _PATCH].clone()
        for tensor in (content["hr"], *content["expert_imgs"].values()):
            rows = slice(SCALE * top, SCALE * (top + _PATCH))
            tensor[:, rows, SCALE * left : SCALE * (left + _PATCH)].clone()
        seconds += time.perf_counter() - begin
    return len(files) / seconds


def _read_cache(
    cache: Path, stored: Sequence[Path], grid: int, crops: int, patches: int, *, cold: bool, decode: bool
) -> float:
    """Batches of 8 in one process without look-ahead; cold drops every item from memory before every batch."""
    source = CacheDataset(cache, patch=_PATCH, batch=_BATCH, grid=grid, crops_per_region=crops, samples=patches)
    if not cold:
        for path in stored:
            path.read_bytes()
    seconds = 0.0
    for step in range(source.steps_per_epoch):
        if cold:
            drop_from_page_cache(stored)
        begin = time.perf_counter()
        batch = source.make(0, step)
        if decode:
            dequantize(batch)
        seconds += time.perf_counter() - begin
    return source.steps_per_epoch * _BATCH / seconds
