"""A budget head and a user's budget -> per image the plan which experts run on which tile, and the answers to it.

Axes: B batch (1), K layers, N tiles, H and W.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fusion.inference.budget import BudgetHead, choose_steps, measure_tile
from fusion.inference.elastic import Elastic
from fusion.inference.ensemble import PLAIN, Answer, Ensemble, Place, answer_tile
from imaging.refusal import Refusal
from imaging.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fusion.inference.options import Options
    from fusion.inference.source import Source
    from fusion.inference.upscale import Grid

_KEPT_BYTES = 512 << 20  # of the cheapest expert's answers, so that it need not run twice


class Buyer:
    """Plans an image, then answers its tiles by the experts that were bought."""

    def __init__(self, head: BudgetHead, budget: float | None, max_loss: float | None) -> None:
        self.head, self._budget, self._max_loss = head, budget, max_loss
        self._grid: Grid | None = None
        self._bought: np.ndarray | None = None
        self._kept: dict[tuple[int, int], Answer] = {}

    @classmethod
    def load(cls, path: Path, ensemble: Ensemble, options: Options) -> Buyer:
        """Read the head and refuse one that was made for other experts."""
        head = load_settings(BudgetHead, path)
        if set(head.order) != set(ensemble.names):
            what = f"is for {', '.join(head.order)}, here run {', '.join(ensemble.names)}"
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
        """The expert that runs everywhere."""
        return self.head.order[0]

    def layer_names(self, ensemble: Ensemble) -> list[str]:
        """What `answer` gives beyond the image's three: only the cheapest expert's image is there everywhere."""
        gates = [f"gate/{name}" for name in ensemble.names]
        return [f"{self.cheapest}/{colour}" for colour in "rgb"] + gates + ["difficulty"] * ensemble.has_difficulty

    def plan(self, ensemble: Ensemble, source: Source, item: str, grid: Grid) -> dict[str, Any]:
        """Run the cheapest expert on every tile, predict, choose; what was chosen, for the report."""
        self._grid, self._kept = grid, {}
        measures_ND, energy_N = self._look(ensemble, source, item, grid)
        gains_NK, error_N = self.head.predict(measures_ND, energy_N)
        pixels_N = np.array([(r.high - r.low) * (c.high - c.low) for r in grid.rows for c in grid.columns], dtype=float)
        costs = [self.head.seconds[name] for name in self.head.order]
        first, full = costs[0] * pixels_N.sum() * (1 if self._kept else 2), sum(costs) * pixels_N.sum()
        allowed = full - first if self._budget is None else self._budget * full - first
        bought_N, curve = choose_steps(gains_NK, pixels_N, costs[1:], max(allowed, 0))
        best = choose_steps(gains_NK, pixels_N, costs[1:], float("inf"))[1][-1][1]
        error = float((error_N * pixels_N).sum())
        losses = [10 * np.log10((error + best - gain) / error) for _, gain in curve]
        if self._max_loss is not None:
            enough = next((index for index, loss in enumerate(losses) if loss <= self._max_loss), len(curve) - 1)
            bought_N, curve = choose_steps(gains_NK, pixels_N, costs[1:], curve[enough][0])
            losses = losses[: len(curve)]
        self._bought = bought_N.reshape(len(grid.rows), len(grid.columns))
        share = {name: float((bought_N >= step).mean()) for step, name in enumerate(self.head.order)}
        return {
            "spent": float((first + curve[-1][0]) / full),
            "predicted_loss_db": float(losses[-1]),
            "share": share,
            "experts_per_tile": (self._bought + 1).tolist(),
        }

    def answer(
        self, ensemble: Ensemble, lr_BCHW: Tensor, place: Place, *, turns: Sequence[int] = PLAIN, maps: bool = False
    ) -> Tensor:
        """Layers of one tile, by the experts bought for it."""
        names = self._names(place)
        chosen = replace(ensemble, experts={**ensemble.experts, self.cheapest: self._remembered(ensemble)})
        layers_KHW = answer_tile(chosen, lr_BCHW, place, turns=turns, names=names, maps=maps)
        return self._aligned(layers_KHW, names, ensemble) if maps else layers_KHW

    def _look(self, ensemble: Ensemble, source: Source, item: str, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
        """Measures of every tile's counting part, from the cheapest expert's answer."""
        kept_bytes = 0

        @torch.no_grad()
        def ask(lr_BCHW: Tensor, place: Place) -> Tensor:
            nonlocal kept_bytes
            answer = ensemble.experts[self.cheapest](lr_BCHW, place, 0)
            tensors = [answer.sr_BCHW] if answer.feat_BCHW is None else [answer.sr_BCHW, answer.feat_BCHW]
            kept_bytes += sum(one.numel() * one.element_size() for one in tensors)
            if kept_bytes <= _KEPT_BYTES:
                self._kept[(place.top, place.left)] = answer
            return answer.sr_BCHW[0]

        elastic = Elastic(ask, ensemble.margin, ensemble.multiple)
        rows: list[tuple[np.ndarray, float]] = []
        for row in grid.rows:
            for column in grid.columns:
                lr_BCHW = source.window(row.start, row.stop, column.start, column.stop).to(ensemble.device)
                place = Place(item, row.start, column.start, source.height, source.width)
                sr_BCHW = elastic.run(lr_BCHW, place)[None]
                rows.append(measure_tile(lr_BCHW, sr_BCHW))
        if kept_bytes > _KEPT_BYTES or elastic.events:
            self._kept = {}
        measures, energies = zip(*rows, strict=True)
        return np.array(measures), np.array(energies)

    def _remembered(self, ensemble: Ensemble) -> Any:
        """The cheapest expert, which need not run again on a tile that it has seen."""

        def ask(lr_BCHW: Tensor, place: Place, turn: int) -> Answer:
            known = self._kept.get((place.top, place.left)) if turn == 0 else None
            fits = known is not None and known.sr_BCHW.shape[-2] == 4 * lr_BCHW.shape[-2]
            fits = fits and known is not None and known.sr_BCHW.shape[-1] == 4 * lr_BCHW.shape[-1]
            return known if fits and known is not None else ensemble.experts[self.cheapest](lr_BCHW, place, turn)

        return ask

    def _names(self, place: Place) -> tuple[str, ...]:
        """The experts bought where a tile begins, in the order of buying.

        A part of a tile (after memory ran out) that begins where the next tile does is answered as that one.
        """
        assert self._grid is not None
        assert self._bought is not None
        row = max(index for index, span in enumerate(self._grid.rows) if span.start <= place.top)
        column = max(index for index, span in enumerate(self._grid.columns) if span.start <= place.left)
        return self.head.order[: 1 + int(self._bought[row, column])]

    def _aligned(self, layers_KHW: Tensor, names: Sequence[str], ensemble: Ensemble) -> Tensor:
        """Maps of some experts -> maps of all: experts that did not run have a gate of 0."""
        count = 3 + 3 * len(names)
        gates = {name: layers_KHW[count + index] for index, name in enumerate(names)}
        nothing = torch.zeros_like(layers_KHW[0])
        all_gates = torch.stack([gates.get(name, nothing) for name in ensemble.names])
        return torch.cat([layers_KHW[:6], all_gates, layers_KHW[count + len(names) :]])
