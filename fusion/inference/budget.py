"""The cheapest expert's image of each tile -> what the other experts would gain there, and which of them to buy.

Experts are bought in a fixed order, tile by tile; each further one is a step with its seconds and its predicted gain.
Axes: N tiles, K steps, D measures of a tile, H and W of a tile at four times LR size.
"""

from __future__ import annotations

import heapq
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from imaging.metrics import luma
from imaging.resize import resize_bicubic
from imaging.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

MEASURES = ("one", "fine", "middle", "coarse", "fine/middle", "middle/coarse", "coherence", "residual", "texture")
_TINY = 1e-7  # a quarter of a grey level, squared: below it a tile is flat


class BudgetHead(Settings):
    """What was learned from a cache: `gains[k]` and `error` are weights over MEASURES of a share of the detail.

    `order` begins with the cheapest expert, which runs everywhere; `seconds` is the cost per LR pixel, in any unit.
    """

    order: tuple[str, ...] = Field(min_length=2)
    seconds: dict[str, float]
    weights_sha256: dict[str, str] = {}
    gains: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    tile: int
    items: int
    source: str

    @model_validator(mode="after")
    def _check(self) -> BudgetHead:
        if set(self.seconds) != set(self.order) or min(self.seconds.values()) <= 0:
            raise ValueError("seconds must name each expert of the order, all above 0")
        if len(self.gains) != len(self.order) - 1 or any(
            len(row) != len(MEASURES) for row in (*self.gains, self.error)
        ):
            raise ValueError(f"gains must have a row of {len(MEASURES)} for each expert after the first")
        return self

    def predict(self, measures_ND: np.ndarray, energy_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Predicted gains (N, K) and remaining error (N), as mean squared errors; never below zero."""
        gains_NK = energy_N[:, None] * (measures_ND @ np.array(self.gains).T).clip(0)
        return gains_NK, energy_N * (measures_ND @ np.array(self.error)).clip(0.02)


def measure_tile(lr_BCHW: Tensor, sr_BCHW: Tensor) -> tuple[np.ndarray, float]:
    """The measures (D) of one tile, and its energy of fine detail, which gains are shares of."""
    y = luma(sr_BCHW.float())
    blurred = [y] + [_blur(y, radius) for radius in (1, 3, 8)]
    fine, middle, coarse = (float((a - b).square().mean()) + _TINY for a, b in pairwise(blurred))
    residual = resize_bicubic(sr_BCHW.float(), size=(lr_BCHW.shape[-2], lr_BCHW.shape[-1])) - lr_BCHW
    missing = float(luma(residual + 0.5).sub(luma(torch.full_like(residual, 0.5))).square().mean()) + _TINY
    dy, dx = y.diff(dim=-2)[..., :, :-1], y.diff(dim=-1)[..., :-1, :]
    xx, yy, xy = (float(part.mean()) for part in (dx * dx, dy * dy, dx * dy))
    coherence = ((xx - yy) ** 2 + 4 * xy**2) ** 0.5 / (xx + yy + _TINY)
    steps = float((dx.abs() + dy.abs()).mean()) ** 2 / (xx + yy + _TINY)
    logs = np.log(np.array([fine, middle, coarse, missing]) / _TINY) / 10
    ratios = np.log([fine / middle, middle / coarse]) / 5
    measures = np.array([1.0, *logs[:3], *ratios, coherence, logs[3] - logs[0], steps])
    return measures, fine


def choose_steps(
    gains_NK: np.ndarray, pixels_N: np.ndarray, step_seconds: Sequence[float], allowed: float
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """How many steps each tile buys (N) within `allowed` seconds, in order of gain per second; and the curve.

    The curve lists (seconds, summed gain) after each purchase. A dear step that a good one follows is bought with it.
    """
    bundles = [_bundles(gains, pixels, step_seconds) for gains, pixels in zip(gains_NK, pixels_N, strict=True)]
    queue = [(-one[0].ratio, tile, 0) for tile, one in enumerate(bundles) if one]
    heapq.heapify(queue)
    bought_N = np.zeros(len(bundles), dtype=int)
    seconds, gain, curve = 0.0, 0.0, [(0.0, 0.0)]
    while queue:
        _, tile, index = heapq.heappop(queue)
        bundle = bundles[tile][index]
        if seconds + bundle.seconds > allowed * (1 + 1e-9):
            break  # the next best does not fit: stopping here keeps a larger budget's plan a superset of this one
        seconds, gain = seconds + bundle.seconds, gain + bundle.gain
        bought_N[tile] = bundle.last
        curve.append((seconds, gain))
        if index + 1 < len(bundles[tile]):
            heapq.heappush(queue, (-bundles[tile][index + 1].ratio, tile, index + 1))
    return bought_N, curve


class _Bundle:
    """Consecutive steps bought together: up to step `last`, for so many seconds, with so much gain."""

    def __init__(self, last: int, seconds: float, gain: float) -> None:
        self.last, self.seconds, self.gain = last, seconds, gain

    @property
    def ratio(self) -> float:
        return self.gain / self.seconds


def _bundles(gains_K: np.ndarray, pixels: float, step_seconds: Sequence[float]) -> list[_Bundle]:
    """A tile's steps as bundles of falling gain per second; those that gain nothing are not for sale."""
    found: list[_Bundle] = []
    for step, (gain, cost) in enumerate(zip(gains_K, step_seconds, strict=True), 1):
        bundle = _Bundle(step, cost * pixels, float(gain) * pixels)
        while found and found[-1].ratio <= bundle.ratio:
            before = found.pop()
            bundle = _Bundle(step, before.seconds + bundle.seconds, before.gain + bundle.gain)
        found.append(bundle)
    return [bundle for bundle in found if bundle.gain > 0]


def _blur(y_B1HW: Tensor, radius: int) -> Tensor:
    side = 2 * radius + 1
    padded = F.pad(y_B1HW, (radius,) * 4, mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, (side, 1), stride=1), (1, side), stride=1)
