"""A budget model and the LR images of a run -> which experts run on which tile of which image; no expert has run yet.

A budget is for the whole run: tiles of all images get further experts in order of gain per second. What counts as gain
is an image's share of error removed, which is what decides its PSNR, so that dark or smooth images compete with those
of large absolute errors. A bound on loss is for each image alone. Axes: N tiles, M choices of the menu, P and Q rows
and columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fusion.budget.model import BudgetModel, choose, measure_cells

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fusion.inference.source import Source
    from fusion.inference.upscale import Grid


@dataclass(frozen=True)
class GainPrediction:
    """Predictions for an image's tiles: mean gains (N, M) over the first choice, mean error with all experts (N).

    `pixels_N` are the LR pixels that count in each tile.
    """

    gains_NM: np.ndarray
    error_N: np.ndarray
    pixels_N: np.ndarray

    @property
    def error(self) -> float:
        """Summed squared error of the image with all experts."""
        return float(self.error_N @ self.pixels_N)

    def gain(self, chosen_N: np.ndarray) -> float:
        """Summed gain of a plan."""
        return float(np.take_along_axis(self.gains_NM, chosen_N[:, None], 1)[:, 0] @ self.pixels_N)

    def loss_db(self, gain: float) -> float:
        """dB lost against all experts by a plan of so much gain; a plan may be predicted to be better than all."""
        best = float(self.gains_NM[:, -1] @ self.pixels_N)
        # A plan can be predicted to leave less than no error: the floor keeps the logarithm finite.
        return float(10 * np.log10(max(self.error + best - gain, 1e-12) / self.error))


@dataclass(frozen=True)
class BudgetPlan:
    """An image's tiles, and the choice for each (P, Q) as an index into the budget model's menu."""

    grid: Grid
    chosen_PQ: np.ndarray
    seconds: float  # of the experts, by the costs in the budget model
    full_seconds: float  # of all experts on this image
    loss_db: float  # predicted

    def document(self, model: BudgetModel) -> dict[str, Any]:
        """For the report and --json."""
        shares = {
            name: float(np.array([name in choice for choice in model.menu])[self.chosen_PQ].mean())
            for name in model.experts
        }
        return {
            "spent": self.seconds / self.full_seconds,
            "seconds": self.seconds,
            "full_seconds": self.full_seconds,
            "predicted_loss_db": self.loss_db,
            "share": shares,
            "experts_per_tile": [[len(model.menu[index]) for index in row] for row in self.chosen_PQ],
        }


def predict_gains(model: BudgetModel, source: Source, grid: Grid) -> GainPrediction:
    """Measure an LR image: the means over the cells that begin in each tile's counting part."""
    gains, errors, pixels = list[np.ndarray](), list[float](), list[float]()
    for row in grid.rows:
        band_BCHW = source.window(row.low, row.high, 0, source.width)
        for column in grid.columns:
            measured = measure_cells(band_BCHW[..., column.low : column.high], model.cell)
            gains_M, error, count = predict_tile(model, *measured)
            gains.append(gains_M)
            errors.append(error)
            pixels.append(count)
    return GainPrediction(np.stack(gains), np.array(errors), np.array(pixels))


def predict_tile(
    model: BudgetModel, measures_PQD: np.ndarray, energy_PQ: np.ndarray, pixels_PQ: np.ndarray
) -> tuple[np.ndarray, float, float]:
    """A tile's cells as `measure_cells` gives them -> mean gains (M), mean error with all experts, LR pixels."""
    gains_XM, error_X = model.predict(measures_PQD.reshape(-1, measures_PQD.shape[-1]), energy_PQ.ravel())
    share_X = pixels_PQ.ravel() / pixels_PQ.sum()
    return share_X @ gains_XM, float(share_X @ error_X), float(pixels_PQ.sum())


def plan_share(model: BudgetModel, predictions: Mapping[str, GainPrediction], share: float) -> dict[str, np.ndarray]:
    """Image -> the choice for each of its tiles (N), for so much of what all experts would cost on all images."""
    pixels_N = np.concatenate([one.pixels_N for one in predictions.values()])
    if share >= 1:  # also where fewer experts are predicted to be better
        chosen_N = np.full(len(pixels_N), len(model.menu) - 1)
    else:
        gains_NM = np.concatenate([one.gains_NM / one.error for one in predictions.values()])
        chosen_N, _ = choose(gains_NM, pixels_N, model.costs, share * model.costs[-1] * float(pixels_N.sum()))
    ends = np.cumsum([len(one.pixels_N) for one in predictions.values()])[:-1]
    return dict(zip(predictions, np.split(chosen_N, ends), strict=True))


def plan_loss(model: BudgetModel, prediction: GainPrediction, max_loss: float) -> np.ndarray:
    """The choice for each tile of one image (N) that spends as little as the loss in dB, as predicted, allows."""
    full = model.costs[-1] * float(prediction.pixels_N.sum())
    _, curve = choose(prediction.gains_NM, prediction.pixels_N, model.costs, full)
    allowed = next((seconds for seconds, gain in curve if prediction.loss_db(gain) <= max_loss), full)
    return choose(prediction.gains_NM, prediction.pixels_N, model.costs, allowed)[0]


def as_plan(model: BudgetModel, prediction: GainPrediction, grid: Grid, chosen_N: np.ndarray) -> BudgetPlan:
    """The choices laid out in the image's grid, with what they cost and what they are predicted to lose."""
    costs_M = np.array(model.costs)
    seconds = float(costs_M[chosen_N] @ prediction.pixels_N)
    full = float(costs_M[-1] * prediction.pixels_N.sum())
    chosen_PQ = chosen_N.reshape(len(grid.rows), len(grid.columns))
    return BudgetPlan(grid, chosen_PQ, seconds, full, prediction.loss_db(prediction.gain(chosen_N)))
