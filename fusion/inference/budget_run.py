"""A budget head and a user's budget -> per image the plan which experts run on which tile, and the answers to it.

Axes: B batch (1), K layers, N tiles, M choices of the menu, P and Q rows and columns of cells, H and W.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cache_tools.dihedral import transform, undo
from fusion.inference.budget import BudgetHead, choose, measure_cells
from fusion.inference.choice import DEFAULT
from fusion.inference.ensemble import PLAIN, Ensemble, Place, answer_tile
from imaging.refusal import Refusal
from imaging.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion.inference.options import Options
    from fusion.inference.source import Source
    from fusion.inference.upscale import Grid

HEAD_FILE = "budget.json"  # beside a model's own file


def find_head(model: str, pretrained: Path) -> Path:
    """The head that lies in the named model's folder, or beside its file: train.py puts it there."""
    path = pretrained if model == DEFAULT else Path(model)
    head = (path if path.is_dir() else path.parent) / HEAD_FILE
    if head.is_file():
        return head
    cure = "add --budget-head FILE from `python -m fusion fit-budget`, or train the model by train.py from a cache"
    raise Refusal("has no budget head beside it", where=f"model {model}", cure=cure)


class Buyer:
    """Plans an image, then answers its tiles by the experts that were bought."""

    def __init__(self, head: BudgetHead, budget: float | None, max_loss: float | None) -> None:
        self.head, self._budget, self._max_loss = head, budget, max_loss
        self._grid: Grid | None = None
        self._chosen: np.ndarray | None = None

    @classmethod
    def load(cls, path: Path, ensemble: Ensemble, options: Options) -> Buyer:
        """Read the head and refuse one that was made for other experts."""
        head = load_settings(BudgetHead, path)
        if set(head.experts) != set(ensemble.names):
            what = f"is for {', '.join(head.experts)}, here run {', '.join(ensemble.names)}"
            raise Refusal(what, where=path, cure="fit it on a cache of these experts")
        if ensemble.identity["fusion"]["kind"] != "fusion":
            raise Refusal("no fusion model knows how to weigh a part of the experts", where=path, cure="give --model")
        for name, sha256 in head.weights_sha256.items():
            if ensemble.identity["experts"][name]["weights_sha256"] != sha256:
                what = "its weights are not those the budget was fitted for"
                raise Refusal(what, where=f"expert {name}", cure="fit the budget again")
        return cls(head, options.budget, options.max_loss)

    @property
    def cheapest(self) -> str:
        """The expert whose image a report shows of every tile."""
        return self.head.menu[0][0]

    def layer_names(self, ensemble: Ensemble) -> list[str]:
        """What `answer` gives beyond the image's three: only the cheapest expert's image is there everywhere."""
        gates = [f"gate/{name}" for name in ensemble.names]
        return [f"{self.cheapest}/{colour}" for colour in "rgb"] + gates + ["difficulty"] * ensemble.has_difficulty

    def plan(self, ensemble: Ensemble, source: Source, item: str, grid: Grid) -> dict[str, Any]:  # noqa: ARG002
        """Measure the LR image, predict, choose; what was chosen, for the report. No expert runs yet."""
        pixels_N = np.array([(r.high - r.low) * (c.high - c.low) for r in grid.rows for c in grid.columns], dtype=float)
        gains_NM, error_N = self._predict(source, grid)
        costs, last = self.head.costs, len(self.head.menu) - 1
        full = costs[-1] * float(pixels_N.sum())
        chosen_N, _ = choose(gains_NM, pixels_N, costs, self._allowed(gains_NM, error_N, pixels_N, full))
        if self._budget is not None and self._budget >= 1:
            chosen_N[:] = last
        gain = float((np.take_along_axis(gains_NM, chosen_N[:, None], 1)[:, 0] * pixels_N).sum())
        spent = float((np.array(costs)[chosen_N] * pixels_N).sum())
        self._grid, self._chosen = grid, chosen_N.reshape(len(grid.rows), len(grid.columns))
        runs = {name: np.array([name in choice for choice in self.head.menu])[chosen_N] for name in self.head.experts}
        return {
            "spent": spent / full,
            "predicted_loss_db": _loss(gain, gains_NM, error_N, pixels_N),
            "share": {name: float(run_N.mean()) for name, run_N in runs.items()},
            "experts_per_tile": [[len(self.head.menu[index]) for index in row] for row in self._chosen],
        }

    def answer(
        self, ensemble: Ensemble, lr_BCHW: Tensor, place: Place, *, turns: Sequence[int] = PLAIN, maps: bool = False
    ) -> Tensor:
        """Layers of one tile, by the experts bought for it."""
        names = self._names(place)
        layers_KHW = answer_tile(ensemble, lr_BCHW, place, turns=turns, names=names, maps=maps)
        if not maps:
            return layers_KHW
        first = 3 + 3 * names.index(self.cheapest) if self.cheapest in names else None
        # Where the cheapest was not bought it runs only to be shown: it has no part in the image.
        image_KHW = (
            _image(ensemble, self.cheapest, lr_BCHW, place, turns) if first is None else layers_KHW[first : first + 3]
        )
        gates = dict(zip(names, layers_KHW[3 + 3 * len(names) : 3 + 4 * len(names)], strict=True))
        nothing = torch.zeros_like(layers_KHW[0])  # the gate of an expert that did not run
        all_gates = torch.stack([gates.get(name, nothing) for name in ensemble.names])
        return torch.cat([layers_KHW[:3], image_KHW, all_gates, layers_KHW[3 + 4 * len(names) :]])

    def _predict(self, source: Source, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Mean gains (N, M) and errors (N) of the tiles: of the cells that begin in each tile's counting part."""
        gains, errors = list[np.ndarray](), list[float]()
        for row in grid.rows:
            band_BCHW = source.window(row.low, row.high, 0, source.width)
            for column in grid.columns:
                measures_PQD, energy_PQ, pixels_PQ = measure_cells(
                    band_BCHW[..., column.low : column.high], self.head.cell
                )
                gains_XM, error_X = self.head.predict(
                    measures_PQD.reshape(-1, measures_PQD.shape[-1]), energy_PQ.ravel()
                )
                share_X = pixels_PQ.ravel() / pixels_PQ.sum()
                gains.append(share_X @ gains_XM)
                errors.append(float(share_X @ error_X))
        return np.stack(gains), np.array(errors)

    def _allowed(self, gains_NM: np.ndarray, error_N: np.ndarray, pixels_N: np.ndarray, full: float) -> float:
        """Seconds: the budget's share; or as few as the loss that was asked for is predicted to need."""
        if self._budget is not None:
            return self._budget * full
        assert self._max_loss is not None
        _, curve = choose(gains_NM, pixels_N, self.head.costs, full)
        enough = (s for s, gain in curve if _loss(gain, gains_NM, error_N, pixels_N) <= self._max_loss)
        return next(enough, full)

    def _names(self, place: Place) -> tuple[str, ...]:
        """The experts bought where a tile begins, in the model's order.

        A part of a tile (after memory ran out) that begins where the next tile does is answered as that one.
        """
        assert self._grid is not None
        assert self._chosen is not None
        row = max(index for index, span in enumerate(self._grid.rows) if span.start <= place.top)
        column = max(index for index, span in enumerate(self._grid.columns) if span.start <= place.left)
        return self.head.menu[int(self._chosen[row, column])]


def _loss(gain: float, gains_NM: np.ndarray, error_N: np.ndarray, pixels_N: np.ndarray) -> float:
    """dB lost against all experts by a plan of so much summed gain; a plan may be predicted to be better than all."""
    error = float((error_N * pixels_N).sum())
    best = float((gains_NM[:, -1] * pixels_N).sum())
    return float(10 * np.log10(max(error + best - gain, 1e-12) / error))


@torch.no_grad()
def _image(ensemble: Ensemble, name: str, lr_BCHW: Tensor, place: Place, turns: Sequence[int]) -> Tensor:
    """One expert's own image of a tile (3, 4H, 4W), the mean over the turns."""
    ask = ensemble.experts[name]
    images = [undo(ask(transform(lr_BCHW, turn), place, turn).sr_BCHW[0], turn) for turn in turns]
    return torch.stack(images).mean(0)
