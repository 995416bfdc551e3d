"""A budget head and a cache with true images -> the curve of quality over cost that its plans would give.

Axes: N tiles, M choices of the menu, X cells (P rows and Q columns of them in an image), D measures.
"""

from __future__ import annotations

import shlex
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from cache_tools.reader import CacheReader
from fusion.inference.budget import choose, measure_cells
from fusion.network.back_projection import back_project
from fusion.network.base import WHOLE, BaseBlend, weighted_sum
from imaging.metrics import psnr

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import EllipsisType

    from torch import Tensor

    from cache_tools.reader import FusionBatch
    from fusion.inference.budget import BudgetHead
    from fusion.network.base import BaseRecord

    Part = tuple[EllipsisType | slice, ...]

SCALE = 4
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def curve(head: BudgetHead, base: BaseRecord, cache: Path, tile: int) -> list[dict[str, float]]:
    """Mean Y-PSNR over a cache's images for each share of the full cost, buying per image and tile by prediction."""
    blend, costs = BaseBlend(base), head.costs
    reader = CacheReader(cache, experts=head.experts, features=False)
    scores = {share: list[tuple[float, float]]() for share in SHARES}
    for item in tqdm(reader, desc=cache.name, total=len(reader), unit="item", disable=None):
        images, parts = blends(blend, item, head.menu), list(_tiles(item, tile))
        predicted = [_predicted(head, item.lr_BCHW[part]) for part, _ in parts]
        gains_NM = np.stack([gains_M for gains_M, _ in predicted])
        pixels_N = np.array([pixels for _, pixels in predicted])
        for share in SHARES:
            chosen_N, _ = choose(gains_NM, pixels_N, costs, share * costs[-1] * pixels_N.sum())
            if share == 1:
                chosen_N[:] = len(costs) - 1
            image_BCHW = images[0].clone()
            for (_, large), choice in zip(parts, chosen_N, strict=True):
                image_BCHW[large] = images[choice][large]
            spent = float((np.array(costs)[chosen_N] * pixels_N).sum() / (costs[-1] * pixels_N.sum()))
            scores[share].append((spent, float(psnr(image_BCHW, truth_of(item)))))
    return [
        {"share": share, "spent": float(np.mean([s for s, _ in rows])), "psnr": float(np.mean([p for _, p in rows]))}
        for share, rows in scores.items()
    ]


def as_text(head: BudgetHead, curves: Mapping[str, Sequence[Mapping[str, float]]], words: list[str]) -> str:
    """The curves as Markdown."""
    costs = ", ".join(f"{name} {head.seconds[name]:g}" for name in head.experts)
    lines = ["# Budgeted inference", "", f"Recorded {date.today().isoformat()} by", ""]
    lines += [f"    python -m fusion fit-budget {shlex.join(words)}", ""]
    lines += [
        f"Cost per LR pixel: {costs}. A menu of {len(head.menu)} selections, {head.cells} cells to learn from.",
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


def said(tile: int) -> str:
    """A tile size in words."""
    return f"tiles of {tile} LR pixels" if tile else "one choice per image"


def blends(blend: BaseBlend, item: FusionBatch, menu: Sequence[tuple[str, ...]]) -> list[Tensor]:
    """The blend of each selection; what is alike for all of them, the pull onto the LR image, is made once each."""
    record, lr_BCHW = blend.record, item.lr_BCHW
    with torch.no_grad():
        if record.groups != WHOLE:
            images = {name: item.sr_BECHW[:, index] for index, name in enumerate(item.experts)}
            return [blend(lr_BCHW, torch.stack([images[name] for name in names], 1), names) for names in menu]
        pulled = {
            name: back_project(item.sr_BECHW[:, index], lr_BCHW, record.back_projection)
            for index, name in enumerate(item.experts)
        }
        return [
            weighted_sum(torch.stack([pulled[name] for name in names], 1), blend.weights(names)[0]) for names in menu
        ]


def _tiles(item: FusionBatch, tile: int) -> Iterator[tuple[Part, Part]]:
    """Tiles as parts of the LR and of the HR image; the last of a row or column is what remains."""
    height, width = item.lr_BCHW.shape[-2:]
    side = tile or max(height, width)
    for top in range(0, height, side):
        for left in range(0, width, side):
            rows, columns = (top, min(top + side, height)), (left, min(left + side, width))
            small, large = ((..., *(slice(k * a, k * b) for a, b in (rows, columns))) for k in (1, SCALE))
            yield small, large


def _predicted(head: BudgetHead, lr_BCHW: Tensor) -> tuple[np.ndarray, float]:
    """A tile's mean gains (M) and its LR pixels."""
    measures_PQD, energy_PQ, pixels_PQ = measure_cells(lr_BCHW, head.cell)
    gains_XM, _ = head.predict(rows_of(measures_PQD), energy_PQ.ravel())
    return pixels_PQ.ravel() @ gains_XM / pixels_PQ.sum(), float(pixels_PQ.sum())


def rows_of(values_PQD: np.ndarray) -> np.ndarray:
    """The cells of an image one below the other (X, D)."""
    return values_PQD.reshape(-1, values_PQD.shape[-1])


def truth_of(item: FusionBatch) -> Tensor:
    """hr_BCHW, which the readers here were asked to have."""
    assert item.hr_BCHW is not None
    return item.hr_BCHW
