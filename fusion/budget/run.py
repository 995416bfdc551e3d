"""A budget head and a user's budget -> the plan of a run, and the answers of the experts that it buys.

Axes: B batch (1), K layers, H and W.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from fusion.budget.model import BUDGET_FILE, BudgetModel
from fusion.budget.plan import as_plan, look_ahead, plan_loss, plan_share
from fusion.inference.ensemble import PLAIN, Ensemble, Place, answer_tile
from fusion.inference.model_selection import DEFAULT
from fusion.inference.source import read_source
from imaging.dihedral import transform, undo
from imaging.refusal import Refusal
from imaging.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fusion.budget.plan import BudgetPlan, Outlook
    from fusion.inference.jobs import Sized
    from fusion.inference.options import Options
    from fusion.inference.source import Source
    from fusion.inference.tiles import FeatheredSpan
    from fusion.inference.upscale import Grid

    GridOf = Callable[[Source], Grid]


def find_budget_model(model: str, pretrained: Path) -> Path:
    """The head that lies in the named model's folder, or beside its file: train.py puts it there."""
    path = pretrained if model == DEFAULT else Path(model)
    head = (path if path.is_dir() else path.parent) / BUDGET_FILE
    if head.is_file():
        return head
    cure = "add --budget-head FILE from `python -m fusion fit-budget`, or train the model by train.py from a cache"
    raise Refusal("has no budget head beside it", where=f"model {model}", cure=cure)


class BudgetRunner:
    """Plans a run over all its images, then answers their tiles by the experts that were bought."""

    def __init__(self, head: BudgetModel, budget: float | None, max_loss: float | None) -> None:
        self.head, self._budget, self._max_loss = head, budget, max_loss
        self._plans: dict[str, BudgetPlan] = {}

    @classmethod
    def load(cls, path: Path, ensemble: Ensemble, options: Options) -> BudgetRunner:
        """Read the head and refuse one that was made for other experts."""
        head = load_settings(BudgetModel, path)
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

    def plan(self, sized: Sequence[Sized], grid_of: GridOf) -> None:
        """Measure every LR image of the run and choose; what cannot be read is left to be told in its turn."""
        grids: dict[str, Grid] = {}
        outlooks: dict[str, Outlook] = {}
        for one in tqdm(sized, desc="plan", unit="image", disable=None, leave=False):
            try:
                source = read_source(one.job.input)
            except Refusal:
                continue
            grids[one.job.item] = grid_of(source)
            outlooks[one.job.item] = look_ahead(self.head, source, grids[one.job.item])
        if not outlooks:
            return
        if self._budget is not None:
            chosen = plan_share(self.head, outlooks, self._budget)
        else:
            assert self._max_loss is not None
            chosen = {item: plan_loss(self.head, one, self._max_loss) for item, one in outlooks.items()}
        self._plans = {item: as_plan(self.head, outlooks[item], grids[item], chosen[item]) for item in outlooks}

    def document(self, item: str) -> dict[str, Any]:
        """What was chosen for an image, for the report."""
        if item not in self._plans:
            what, cure = "could not be read when the run was planned, and now it can", "run again"
            raise Refusal(what, where=item, cure=cure)
        return self._plans[item].document(self.head)

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

    def _names(self, place: Place) -> tuple[str, ...]:
        """The experts bought where a tile begins, in the model's order.

        A part of a tile (after memory ran out) that begins where the next tile does is answered as that one.
        """
        plan = self._plans[place.item]
        row, column = _span_at(plan.grid.rows, place.top), _span_at(plan.grid.columns, place.left)
        return self.head.menu[int(plan.chosen_PQ[row, column])]


def _span_at(spans: Sequence[FeatheredSpan], position: int) -> int:
    """Index of the last span that starts at or before `position`."""
    return bisect_right(spans, position, key=lambda span: span.start) - 1


@torch.no_grad()
def _image(ensemble: Ensemble, name: str, lr_BCHW: Tensor, place: Place, turns: Sequence[int]) -> Tensor:
    """One expert's own image of a tile (3, 4H, 4W), the mean over the turns."""
    ask = ensemble.experts[name]
    images = [undo(ask(transform(lr_BCHW, turn), place, turn).sr_BCHW[0], turn) for turn in turns]
    return torch.stack(images).mean(0)
