"""An LR image -> what each selection of experts would gain on each tile, and which selection to run there.

The choices are a menu: selections of experts from the cheapest single one to all of them. What decides is measured on
the LR image alone, in cells, before any expert runs. Axes: N tiles, M choices of the menu, D measures of a cell,
P and Q rows and columns of cells, H and W of an LR image.
"""

from __future__ import annotations

import heapq
import json
import math
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from imaging.atomic import write_text
from imaging.metrics import luma
from imaging.settings import Settings, parse_settings
from imaging.tensors.seal import read_json, sealed, unsealed

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from torch import Tensor

BUDGET_FILE = "budget.json"  # beside a model's own file
CELL = 16  # LR pixels a side of what is measured at once
MEASURES = ("one", "fine", "middle", "coarse", "fine/middle", "middle/coarse", "coherence", "texture", "peaks", "bends")
_TINY = 1e-7  # a quarter of a grey level, squared: below it a cell is flat


class BudgetModel(Settings):
    """What was learned from a cache: `gains[m]` and `error` are weights over MEASURES of a share of the detail.

    `menu` rises in cost from the cheapest expert to all of them; `gains` are those of its later choices over the
    first, `error` what remains with all experts. `seconds` is each expert's cost per LR pixel, in any unit.
    """

    menu: tuple[tuple[str, ...], ...] = Field(min_length=2)
    seconds: dict[str, float]
    weights_sha256: dict[str, str] = {}
    gains: tuple[tuple[float, ...], ...]
    error: tuple[float, ...]
    gains_of: Literal["blend", "fusion"] = "blend"  # the closed form's, or a trained fusion's on images held out
    cell: int = CELL
    cells: int
    source: str
    measured_on: str = ""

    @model_validator(mode="after")
    def _check(self) -> BudgetModel:
        if set(self.seconds) != set(self.experts) or min(self.seconds.values()) <= 0:
            raise ValueError("seconds must name each expert of the menu, all above 0")
        if any(cost > following * (1 + 1e-9) for cost, following in pairwise(self.costs)) or set(self.menu[-1]) != set(
            self.seconds
        ):
            raise ValueError("the menu must rise in cost and end with all experts")
        if len(self.gains) != len(self.menu) - 1 or any(len(row) != len(MEASURES) for row in (*self.gains, self.error)):
            raise ValueError(f"gains must have a row of {len(MEASURES)} for each choice after the first")
        return self

    @classmethod
    def read(cls, path: Path) -> BudgetModel:
        """From the file that `fit-budget` or training wrote."""
        cure = "fit the budget again"
        return parse_settings(cls, unsealed(read_json(path, cure=cure), path, cure=cure), where=str(path))

    def write(self, path: Path) -> None:
        """As JSON, with a digest."""
        write_text(path, json.dumps(sealed(self.model_dump(mode="json")), indent=2) + "\n")

    @property
    def experts(self) -> tuple[str, ...]:
        """All of them, in the order of the last choice."""
        return self.menu[-1]

    @property
    def costs(self) -> list[float]:
        """Seconds per LR pixel of each choice."""
        return [sum(self.seconds[name] for name in choice) for choice in self.menu]

    def for_experts(self, names: Collection[str]) -> BudgetModel | None:
        """The same for some of the experts alone, as fitted on them; None where the menu does not hold them all."""
        kept = [index for index, choice in enumerate(self.menu) if set(choice) <= set(names)]
        if len(kept) < 2 or set(self.menu[kept[-1]]) != set(names):
            return None
        if len(kept) == len(self.menu):
            return self
        gains_MD = np.concatenate([np.zeros((1, len(MEASURES))), np.array(self.gains)])
        # Gains are differences of errors: they can be counted from any choice, and what remains from the last.
        counted_MD = gains_MD[kept] - gains_MD[kept[0]]
        return BudgetModel(
            **self.model_dump(exclude={"menu", "seconds", "weights_sha256", "gains", "error"}),
            menu=tuple(self.menu[index] for index in kept),
            seconds={name: self.seconds[name] for name in self.menu[kept[-1]]},
            weights_sha256={name: sha256 for name, sha256 in self.weights_sha256.items() if name in names},
            gains=tuple(map(tuple, counted_MD[1:].tolist())),
            error=tuple((np.array(self.error) + gains_MD[-1] - gains_MD[kept[-1]]).tolist()),
        )

    def predict(self, measures_XD: np.ndarray, energy_X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of any cells: predicted gains (X, M) over the first choice, and the error with all experts (X)."""
        gains_XM = energy_X[:, None] * (measures_XD @ np.array(self.gains).T)
        gains_XM = np.concatenate([np.zeros((len(energy_X), 1)), gains_XM], axis=1)
        # A linear prediction may fall below zero, an error cannot: at least 2 % of the energy.
        return gains_XM, energy_X * (measures_XD @ np.array(self.error)).clip(0.02)


def measure_cells(lr_BCHW: Tensor, cell: int = CELL) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measures (P, Q, D), energies of fine detail (P, Q), which gains are shares of, and LR pixels (P, Q) of each cell.

    Cells count from the top left corner; the last of a row or column is what remains.
    """
    y = luma(lr_BCHW.float())
    blurred = [y] + [_blur(y, radius) for radius in (1, 2, 4)]
    # Differences of box blurs: an octave each of what the LR image holds; what experts can add shows in the finest.
    bands = [one - other for one, other in pairwise(blurred)]
    ahead = F.pad(y, (0, 1, 0, 1), mode="replicate")
    dy, dx = ahead.diff(dim=-2)[..., :, :-1], ahead.diff(dim=-1)[..., :-1, :]
    around = F.pad(y, (1, 1, 1, 1), mode="replicate")
    bend = 4 * y - around[..., 2:, 1:-1] - around[..., :-2, 1:-1] - around[..., 1:-1, 2:] - around[..., 1:-1, :-2]
    maps = [*(band.square() for band in bands), dx * dx, dy * dy, dx * dy, dx.abs() + dy.abs()]
    maps_KHW = torch.cat([*maps, bands[0].pow(4), bend.square(), torch.ones_like(y)])[:, 0]
    sums_KPQ = cell_sums(maps_KHW.double(), cell)
    pixels_PQ = sums_KPQ[-1]
    fine, middle, coarse, xx, yy, xy, steps, peaks, bends = sums_KPQ[:-1] / pixels_PQ
    fine, middle, coarse, bends = (one + _TINY for one in (fine, middle, coarse, bends))
    power = xx + yy + _TINY
    # The divisors 10 and 5 bring all measures to about unit scale, so that one ridge penalty suits them.
    logs = [np.log(one / _TINY) / 10 for one in (fine, middle, coarse)]
    ratios = [np.log(fine / middle) / 5, np.log(middle / coarse) / 5]
    coherence = np.sqrt((xx - yy) ** 2 + 4 * xy**2) / power
    shape = [coherence, steps**2 / power, np.log(peaks / fine**2 + 1e-3) / 5, np.log(bends / power) / 5]
    return np.stack([np.ones_like(fine), *logs, *ratios, *shape], axis=-1), fine, pixels_PQ


def choose(
    gains_NM: np.ndarray, pixels_N: np.ndarray, costs_M: Sequence[float], allowed: float
) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """Which choice each tile gets (N) for `allowed` seconds in all, and the curve of (seconds, summed gain) on the way.

    Every tile has the first choice, whatever is allowed. Then tiles are improved in order of gain per second, each
    along the upper hull of its choices; what remains when the next best does not fit goes to the best that does.
    More seconds give more gain, but for that last remainder, which is worth less than the next best.
    """
    hulls = [
        _hull(gains_M * pixels, np.array(costs_M) * pixels) for gains_M, pixels in zip(gains_NM, pixels_N, strict=True)
    ]
    queue = [(-hull[0].ratio, tile, 0) for tile, hull in enumerate(hulls) if hull]
    heapq.heapify(queue)
    chosen_N = np.zeros(len(hulls), dtype=int)
    seconds, gain = float(costs_M[0] * pixels_N.sum()), 0.0
    curve = [(seconds, gain)]
    while queue:
        _, tile, index = heapq.heappop(queue)
        step = hulls[tile][index]
        if seconds + step.seconds > allowed * (1 + 1e-9):  # a budget of exactly the cost must not fail by rounding
            break
        seconds, gain = seconds + step.seconds, gain + step.gain
        chosen_N[tile] = step.choice
        curve.append((seconds, gain))
        if index + 1 < len(hulls[tile]):
            heapq.heappush(queue, (-hulls[tile][index + 1].ratio, tile, index + 1))
    curve += _spend_rest(chosen_N, gains_NM, pixels_N, np.array(costs_M), allowed, curve[-1])
    return chosen_N, curve


class _Step:
    """From the choice before to `choice`: so many seconds more, so much gain."""

    def __init__(self, choice: int, seconds: float, gain: float) -> None:
        self.choice, self.seconds, self.gain = choice, seconds, gain

    @property
    def ratio(self) -> float:
        return self.gain / self.seconds if self.seconds > 0 else math.inf * (self.gain > 0 or -1)


def _hull(gains_M: np.ndarray, seconds_M: np.ndarray) -> list[_Step]:
    """A tile's steps along the upper hull of its choices: of falling gain per second, none that gains nothing."""
    found: list[_Step] = []
    at, so_far = 0, 0.0
    for choice in range(1, len(gains_M)):
        step = _Step(choice, float(seconds_M[choice] - seconds_M[at]), float(gains_M[choice]) - so_far)
        while found and found[-1].ratio <= step.ratio:
            before = found.pop()
            step = _Step(choice, before.seconds + step.seconds, before.gain + step.gain)
        if step.gain > 0:
            found.append(step)
        at = found[-1].choice if found else 0
        so_far = float(gains_M[at])
    return found


def _spend_rest(
    chosen_N: np.ndarray,
    gains_NM: np.ndarray,
    pixels_N: np.ndarray,
    costs_M: np.ndarray,
    allowed: float,
    reached: tuple[float, float],
) -> list[tuple[float, float]]:
    """Improve tiles in place by whatever fits into what is left, the largest gain first; the curve's further points."""
    further: list[tuple[float, float]] = []
    seconds, gain = reached
    while True:
        extra_NM = (costs_M[None] - costs_M[chosen_N][:, None]) * pixels_N[:, None]
        better_NM = (gains_NM - np.take_along_axis(gains_NM, chosen_N[:, None], 1)) * pixels_N[:, None]
        fits_NM = (extra_NM >= 0) & (seconds + extra_NM <= allowed * (1 + 1e-9)) & (better_NM > 0)
        if not fits_NM.any():
            return further
        tile, choice = np.unravel_index(np.where(fits_NM, better_NM, -np.inf).argmax(), fits_NM.shape)
        seconds, gain = seconds + float(extra_NM[tile, choice]), gain + float(better_NM[tile, choice])
        chosen_N[tile] = choice
        further.append((seconds, gain))


def cell_sums(maps_KHW: Tensor, cell: int) -> np.ndarray:
    """Sums over cells (K, P, Q); beyond the image there is nothing to add."""
    height, width = maps_KHW.shape[-2:]
    padded_KHW = F.pad(maps_KHW, (0, -width % cell, 0, -height % cell))
    return (F.avg_pool2d(padded_KHW, cell) * cell**2).numpy()


def _blur(y_B1HW: Tensor, radius: int) -> Tensor:
    side = 2 * radius + 1
    padded = F.pad(y_B1HW, (radius,) * 4, mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, (side, 1), stride=1), (1, side), stride=1)
