"""A cache -> what is inside: items, provenance, sizes, and how good each expert is where HR is there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cache_tools.read.reader import CacheReader
from cache_tools.write.jobs import too_few_regions
from cache_tools.write.space import format_bytes
from imaging.command import json_number
from imaging.metrics import is_of_one_colour, psnr
from imaging.names import counted

if TYPE_CHECKING:
    from pathlib import Path

_SCORED = 100


def describe(root: Path | str, *, score: int = _SCORED) -> dict[str, Any]:
    """A JSON-ready description; `score` bounds how many items are read for PSNR, spread over the cache."""
    reader = CacheReader(root, features=False)
    manifest = reader.store.manifest
    recipe = manifest.recipe
    size = sum(entry.bytes for entry in reader.entries)
    pixels = sum(entry.height * entry.width for entry in reader.entries)
    return {
        "root": str(root),
        "items": len(reader.entries),
        "planned": manifest.planned,
        "images": len({entry.source for entry in reader.entries}),
        "profile": recipe.profile,
        "compression": recipe.compression,
        "features": sum(expert.channels for expert in recipe.experts),
        "bytes": size,
        "lr_pixels": pixels,
        "bytes_per_lr_pixel": round(size / pixels, 1),
        "degradation": recipe.degradation,
        "regions": recipe.regions,
        # Of a cache that is still being made nobody can tell.
        "too_few_regions": too_few_regions(
            ((entry.source, entry.region is None) for entry in reader.entries if entry.dihedral == 0),
            recipe.regions if len(reader.entries) == manifest.planned else 0,
            recipe.region_size,
        ),
        "dihedral": recipe.dihedral,
        "fingerprint": manifest.fingerprint,
        "made_with": manifest.made_with,
        "experts": [expert.model_dump() for expert in recipe.experts],
        "psnr_y": _scores(reader, score),
    }


def _scores(reader: CacheReader, limit: int) -> dict[str, Any] | None:
    """Mean Y-PSNR (border 4, 8 bits) of each expert and of their plain mean; None without HR."""
    # Every n-th item, not the first ones: names often sort by kind of image.
    every = max(1, -(-len(reader.entries) // limit)) if limit else 0
    entries = [entry for entry in reader.entries[:: every or 1] if min(entry.height, entry.width) > 2] if every else []
    entries = [entry for entry in entries if reader.store.header(entry.id).has_hr]
    if not entries:
        return None
    names = (*reader.experts, "mean of all")
    rows = list[list[float]]()
    for entry in tqdm(entries, "score", unit="item", disable=None):
        item = reader.read(entry.id)
        assert item.hr_BCHW is not None
        decibels = [float(psnr(sr, item.hr_BCHW)) for sr in (*item.sr_BECHW.unbind(1), item.sr_BECHW.mean(1))]
        rows.append([math.inf] * len(names) if is_of_one_colour(item.hr_BCHW) else decibels)
    # As in every table: what is of one colour (a black region of a photo) or equal to HR counts in no mean.
    scored = [row for row in rows if all(map(math.isfinite, row))] or rows
    means = [sum(column) / len(scored) for column in zip(*scored, strict=True)]
    scores = {name: json_number(round(mean, 3)) for name, mean in zip(names, means, strict=True)}
    return {"items_scored": len(scored), "items_left_out": len(rows) - len(scored), **scores}


def _decibels(score: float | None) -> str:
    return "equal to HR" if score is None else f"{score:.3f} dB"


def in_lines(info: dict[str, Any]) -> str:
    """The description as text."""
    lines = [
        f"{info['root']}: {info['items']} of {info['planned']} items from {info['images']} images",
        f"  {info['profile']}, compression {info['compression']}, {info['features']} feature channels",
        f"  {format_bytes(info['bytes'])}, {info['bytes_per_lr_pixel']} bytes per LR pixel",
        f"  LR: {info['degradation']}",
        f"  regions per image {info['regions'] or 'whole'}, dihedral {info['dihedral']}",
        f"  fingerprint {info['fingerprint']}",
    ]
    lines += [f"  {info['too_few_regions']}"] if info["too_few_regions"] else []
    scores = info["psnr_y"] or {}
    for expert in info["experts"]:
        score = "  " + _decibels(scores[expert["name"]]) if scores else ""
        lines.append(
            f"  {expert['name']:16} {expert['architecture']:10} {expert['channels']:4} channels at {expert['tap']}"
            f"  {expert['precision']}  {expert['tiling']}  weights {expert['weights_sha256'][:12]}{score}"
        )
    if scores:
        over = f"Y, over {counted(scores['items_scored'], 'item')}"
        if scores["items_left_out"]:
            over += f", {scores['items_left_out']} of one colour or equal to HR left out"
        lines.append(f"  plain mean of the experts {_decibels(scores['mean of all'])} ({over})")
    return "\n".join(lines)
