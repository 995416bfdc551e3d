"""Sizes and the cost of one tile -> what a run will take: tiles, memory, time and disk; too little disk is refused."""

from __future__ import annotations

import math
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any

from fusion.inference.memory import probe, run_noise, time_tiles
from fusion.inference.upscale import Grid
from imaging.names import counted
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fusion.inference.ensemble import Ensemble
    from fusion.inference.jobs import Sized
    from fusion.inference.memory import TileCost
    from fusion.inference.options import OutputSize

_LARGEST_TIMED = 512  # LR pixels a side: whole images beyond may not even fit into memory
# Lossless photographs take about this share of their plain bytes; 3 bytes a pixel, as 16 bits and alpha are rare.
_PNG_SHARE, _BYTES = 0.7, 3


def forecast(
    sized: Sequence[Sized],
    ensemble: Ensemble,
    tile: int,
    turns: int,
    cost: TileCost | None,
    size: OutputSize,
) -> dict[str, Any]:
    """Per image and in all. Times are between those of the fastest and the slowest of a few real tiles."""
    pace, bytes_per_pixel = None, None
    if ensemble.can_probe and sized:
        bytes_per_pixel = (cost or probe(ensemble)).bytes_per_pixel
        pace = time_tiles(partial(run_noise, ensemble), ensemble.device, _timed_side(sized, tile))
    images = [_image(one, ensemble, tile, turns, bytes_per_pixel, pace, size) for one in sized]
    return {
        "tile": tile,
        "device": str(ensemble.device),
        "images": images,
        "tiles": sum(one["tiles"] for one in images),
        **{key: _sum([one[key] for one in images]) for key in ("seconds", "seconds_low", "seconds_high")},
        "disk_bytes": sum(one["disk_bytes"] for one in images),
        "memory_bytes": max((one["memory_bytes"] for one in images if one["memory_bytes"]), default=None),
    }


def check_disk(sized: Sequence[Sized], folder: Path, size: OutputSize, scale: int) -> None:
    """Refuse before the work what would end in a full disk."""
    needed = sum(_disk(one, size, scale) for one in sized)
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"about {needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        raise Refusal(what, where=folder, cure="free space there, or write elsewhere")


def as_text(document: dict[str, Any]) -> str:
    """The forecast as text."""
    memory = document["memory_bytes"]
    lines = [
        f"{one['input']}: {one['width']}x{one['height']} -> {one['output_width']}x{one['output_height']}, "
        f"{counted(one['tiles'], 'tile')}, {_time(one)}"
        for one in document["images"]
    ]
    tile = f"tiles of {document['tile']}" if document["tile"] else "whole images"
    lines.append(
        f"in all {counted(len(lines), 'image')}, {counted(document['tiles'], 'tile')} ({tile}) "
        f"on {document['device']}, {_time(document)}, {document['disk_bytes'] / 1e6:.0f} MB of disk, "
        + (f"{memory / 1e6:.0f} MB of memory beyond the models" if memory else "memory unknown")
    )
    if "refine" in document:
        more = document["refine"]
        lines.append(
            f"refined by {more['preset']} in {more['precision']}: {more['tiles']} tiles of its own, whose time is not "
            f"forecast, and about {more['host_bytes'] / 1e6:.0f} MB of memory for the largest image"
        )
    return "\n".join(lines)


def _timed_side(sized: Sequence[Sized], tile: int) -> int:
    """Of a square as large as what will run: the tile, or the largest image, where that is smaller."""
    area = max(one.height * one.width for one in sized)
    return min(tile or math.isqrt(area), max(1, math.isqrt(area)), _LARGEST_TIMED)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(sum(known), 3) if len(known) == len(values) else None


def _time(document: dict[str, Any]) -> str:
    if document["seconds"] is None:
        return "time unknown"
    low, high = document["seconds_low"], document["seconds_high"]
    if high < 0.1:
        return "less than 0.1 s"
    digits = 1 if high < 10 else 0
    return f"about {low:.{digits}f} to {high:.{digits}f} s as this machine is loaded now"


def _image(
    one: Sized,
    ensemble: Ensemble,
    tile: int,
    turns: int,
    bytes_per_pixel: float | None,
    pace: tuple[float, float] | None,
    size: OutputSize,
) -> dict[str, Any]:
    grid = Grid.of(one.height, one.width, tile, ensemble.margin, ensemble.multiple)
    read = sum(row.stop - row.start for row in grid.rows) * sum(span.stop - span.start for span in grid.columns)
    largest = max(row.stop - row.start for row in grid.rows) * max(s.stop - s.start for s in grid.columns)
    # The tile itself; the image's levels; three bands of finished rows (made, waiting, being written).
    bands = 3 * _BYTES * max(row.stop - row.start for row in grid.rows) * one.width * ensemble.scale**2
    memory = None if bytes_per_pixel is None else int(largest * bytes_per_pixel)
    low, high = (None, None) if pace is None else (round(read * turns * one_pixel, 3) for one_pixel in pace)
    output_height, output_width = size.of(one.height, one.width, ensemble.scale)
    return {
        "input": str(one.job.input),
        "output": str(one.job.output),
        "height": one.height,
        "width": one.width,
        "output_height": output_height,
        "output_width": output_width,
        "tiles": len(grid),
        "seconds": None if low is None or high is None else round((low + high) / 2, 3),
        "seconds_low": low,
        "seconds_high": high,
        "memory_bytes": None if memory is None else memory + _BYTES * one.height * one.width + bands,
        "disk_bytes": _disk(one, size, ensemble.scale),
    }


def _disk(one: Sized, size: OutputSize, scale: int) -> int:
    height, width = size.of(one.height, one.width, scale)
    return int(height * width * _BYTES * _PNG_SHARE)
