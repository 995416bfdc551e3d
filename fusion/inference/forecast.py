"""Sizes and the cost of one tile -> what a run will take: tiles, memory, time and disk; too little disk is refused."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from fusion.inference.upscale import Grid
from imaging.refusal import Refusal
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fusion.inference.ensemble import Ensemble
    from fusion.inference.jobs import Sized
    from fusion.inference.memory import TileCost
    from fusion.inference.options import OutputSize

# Lossless photographs take about this share of their plain bytes; 3 bytes a pixel, as 16 bits and alpha are rare.
_PNG_SHARE, _BYTES = 0.7, 3


def forecast(
    sized: Sequence[Sized], ensemble: Ensemble, tile: int, turns: int, cost: TileCost, size: OutputSize
) -> dict[str, Any]:
    """Per image and in all."""
    images = [_image(one, ensemble, tile, turns, cost, size) for one in sized]
    return {
        "tile": tile,
        "device": str(ensemble.device),
        "images": images,
        "tiles": sum(one["tiles"] for one in images),
        "seconds": round(sum(one["seconds"] for one in images), 3),
        "disk_bytes": sum(one["disk_bytes"] for one in images),
        "memory_bytes": max((one["memory_bytes"] for one in images if one["memory_bytes"]), default=None),
    }


def check_disk(sized: Sequence[Sized], folder: Path, size: OutputSize) -> None:
    """Refuse before the work what would end in a full disk."""
    needed = sum(_disk(one, size) for one in sized)
    free = shutil.disk_usage(folder).free
    if needed > free:
        what = f"about {needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        raise Refusal(what, where=folder, cure="free space there, or write elsewhere")


def as_text(document: dict[str, Any]) -> str:
    """The forecast as text."""
    memory = document["memory_bytes"]
    lines = [
        f"{one['input']}: {one['width']}x{one['height']} -> {one['output_width']}x{one['output_height']}, "
        f"{one['tiles']} tiles, about {one['seconds']:.0f} s"
        for one in document["images"]
    ]
    tile = f"tiles of {document['tile']}" if document["tile"] else "whole images"
    lines.append(
        f"in all {len(lines)} images, {document['tiles']} tiles ({tile}) on {document['device']}, "
        f"about {document['seconds']:.0f} s, {document['disk_bytes'] / 1e6:.0f} MB of disk, "
        + (f"{memory / 1e6:.0f} MB of memory beyond the models" if memory else "memory unknown")
    )
    if "refine" in document:
        more = document["refine"]
        lines.append(
            f"refined by {more['preset']} in {more['precision']}: {more['tiles']} tiles of its own, whose time is not "
            f"forecast, and about {more['host_bytes'] / 1e6:.0f} MB of memory for the largest image"
        )
    return "\n".join(lines)


def _image(one: Sized, ensemble: Ensemble, tile: int, turns: int, cost: TileCost, size: OutputSize) -> dict[str, Any]:
    grid = Grid.of(one.height, one.width, tile, ensemble.margin, ensemble.multiple)
    read = sum(row.stop - row.start for row in grid.rows) * sum(span.stop - span.start for span in grid.columns)
    largest = max(row.stop - row.start for row in grid.rows) * max(s.stop - s.start for s in grid.columns)
    # The tile itself; the image's levels; three bands of finished rows (made, waiting, being written).
    bands = 3 * _BYTES * max(row.stop - row.start for row in grid.rows) * one.width * SCALE**2
    memory = None if cost.bytes_per_pixel is None else int(largest * cost.bytes_per_pixel)
    return {
        "input": str(one.job.input),
        "output": str(one.job.output),
        "height": one.height,
        "width": one.width,
        "output_height": size.of(one.height, one.width)[0],
        "output_width": size.of(one.height, one.width)[1],
        "tiles": len(grid),
        "seconds": round(read * turns * cost.seconds_per_pixel, 3),
        "memory_bytes": None if memory is None else memory + _BYTES * one.height * one.width + bands,
        "disk_bytes": _disk(one, size),
    }


def _disk(one: Sized, size: OutputSize) -> int:
    height, width = size.of(one.height, one.width)
    return int(height * width * _BYTES * _PNG_SHARE)
