"""A budget model and a cache with true images -> the curve of quality over cost that its plans would give.

Axes: N tiles, M choices of the menu, H and W of an HR image.
"""

from __future__ import annotations

import logging
import shlex
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from cache_tools.format.location import name_of
from fusion.budget.cells import truth_of
from fusion.budget.model import measure_cells
from fusion.budget.plan import GainPrediction, plan_share, predict_tile
from imaging.metrics import BORDER, is_of_one_colour, squared_error
from imaging.names import counted
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import EllipsisType

    from torch import Tensor

    from cache_tools.read.reader import CacheReader, FusionBatch
    from fusion.budget.model import BudgetModel

    Part = tuple[EllipsisType | slice, ...]
    ImagesOf = Callable[[FusionBatch], Sequence[Tensor]]

log = logging.getLogger(__name__)
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_PEAK = 255.0**2  # of the Y channel, as squared errors are in grey levels


def curve(
    model: BudgetModel, images_of: ImagesOf, reader: CacheReader, tiles: Sequence[int]
) -> dict[int, list[dict[str, float]]]:
    """For each size of tile: mean Y-PSNR over a cache's images for each share of the full cost, planned over all."""
    predictions: dict[int, dict[str, GainPrediction]] = {tile: {} for tile in tiles}
    errors: dict[int, dict[str, np.ndarray]] = {tile: {} for tile in tiles}  # (N, M), share of the image's
    for item in tqdm(reader, desc=name_of(reader.store.location), total=len(reader), unit="item", disable=None):
        name, truth_BCHW = item.items[0], truth_of(item)
        maps_MHW = np.stack([squared_error(image_BCHW, truth_BCHW)[0] for image_BCHW in images_of(item)])
        # As in every table of scores.
        if is_of_one_colour(truth_BCHW) or not maps_MHW.any(axis=(1, 2)).all():
            log.info("%s: left out, of one colour or equal to HR", name)
            continue
        for tile in tiles:
            parts = list(_tiles(item, tile))
            predictions[tile][name] = _predict_image(model, [item.lr_BCHW[small] for small, _ in parts])
            errors[tile][name] = np.stack([_within(maps_MHW, large) for _, large in parts])
    if not any(predictions.values()):
        what = f"nothing to score: {counted(len(reader), 'item')} of one colour or equal to HR"
        raise Refusal(what, where=reader.store.location, cure="give images that show something")
    return {tile: [_point(model, predictions[tile], errors[tile], share) for share in SHARES] for tile in tiles}


def _point(
    model: BudgetModel, predictions: Mapping[str, GainPrediction], errors: Mapping[str, np.ndarray], share: float
) -> dict[str, float]:
    """One share: what was spent of the full cost, and the mean PSNR."""
    chosen, costs_M = plan_share(model, predictions, share), np.array(model.costs)
    pixels = sum(float(one.pixels_N.sum()) for one in predictions.values())
    seconds = sum(float(costs_M[chosen[name]] @ one.pixels_N) for name, one in predictions.items())
    left = [np.take_along_axis(errors[name], chosen[name][:, None], 1).sum() for name in predictions]
    psnr = float(np.mean([10 * np.log10(_PEAK / error) for error in left]))
    return {"share": share, "spent": seconds / (costs_M[-1] * pixels), "psnr": psnr}


def _predict_image(model: BudgetModel, tiles: Sequence[Tensor]) -> GainPrediction:
    found = [predict_tile(model, *measure_cells(lr_BCHW, model.cell)) for lr_BCHW in tiles]
    gains, errors, pixels = zip(*found, strict=True)
    return GainPrediction(np.stack(gains), np.array(errors), np.array(pixels))


def _within(maps_MHW: np.ndarray, large: Part) -> np.ndarray:
    """A tile's part of the image's mean squared error, for each choice; the border does not count."""
    # Squared errors come without the border that PSNR leaves out; zeros there keep the tiles' coordinates.
    inner_MHW = np.pad(maps_MHW, ((0, 0), (BORDER, BORDER), (BORDER, BORDER)))
    return inner_MHW[large].sum((1, 2)) / (maps_MHW.shape[1] * maps_MHW.shape[2])


def as_text(model: BudgetModel, curves: Mapping[str, Sequence[Mapping[str, float]]], arguments: list[str]) -> str:
    """The curves as Markdown."""
    costs = ", ".join(f"{name} {model.seconds[name]:g}" for name in model.experts)
    lines = ["# Budgeted inference", "", f"Recorded {date.today().isoformat()} by", ""]
    lines += [f"    python -m fusion fit-budget {shlex.join(arguments)}", ""]
    lines += [
        f"Cost per LR pixel: {costs}. A menu of {len(model.menu)} selections, {model.cells} cells to learn from.",
        "",
    ]
    for name, rows in curves.items():
        full = rows[-1]["psnr"]
        lines += [f"## {name}", "", "| budget | spent | Y-PSNR | against all experts |", "|---|---|---|---|"]
        lines += [
            f"| {row['share']:.0%} | {row['spent']:.1%} | {row['psnr']:.3f} | {row['psnr'] - full:+.3f} |"
            for row in rows
        ]
        lines.append("")
    return "\n".join(lines)


def tile_text(tile: int) -> str:
    """A tile size as text."""
    return f"tiles of {tile} LR pixels" if tile else "one choice per image"


def _tiles(item: FusionBatch, tile: int) -> Iterator[tuple[Part, Part]]:
    """Tiles as parts of the LR and of the HR image; the last of a row or column is what remains."""
    height, width = item.lr_BCHW.shape[-2:]
    side, scale = tile or max(height, width), item.sr_BECHW.shape[-1] // width
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, columns = (top, min(top + side, height)), (left, min(left + side, width))
            small, large = ((..., *(slice(k * a, k * b) for a, b in (rows, columns))) for k in (1, scale))
            yield small, large
