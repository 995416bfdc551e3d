"""A budget model and a user's budget -> the plan of a run, and each tile made by the experts planned for it.

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
from fusion.budget.plan import as_plan, plan_loss, plan_share, predict_gains
from fusion.inference.ensemble import PLAIN, Ensemble, Place, run_tile
from fusion.inference.model_selection import ModelPreset, find_preset
from fusion.inference.source import read_source
from imaging.dihedral import transform, undo
from imaging.refusal import Refusal
from imaging.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fusion.budget.plan import BudgetPlan, GainPrediction
    from fusion.inference.jobs import Sized
    from fusion.inference.options import Options
    from fusion.inference.source import Rgb, Source
    from fusion.inference.upscale import Grid
    from imaging.tiling import FeatheredSpan

    GridOf = Callable[[Source], Grid]


def find_budget_model(model: str) -> Path:
    """The preset's own, or budget.json in the fusion model's folder or beside its file, where train.py writes it."""
    preset, path = find_preset(model), Path(model)
    if preset is not None:
        found = preset.parent / load_settings(ModelPreset, preset).budget
    else:
        found = (path if path.is_dir() else path.parent) / BUDGET_FILE
    if found.is_file():
        return found
    cure = "add --budget-model FILE from `python -m fusion fit-budget`, or train the model by train.py from a cache"
    raise Refusal("has no budget model beside it", where=f"model {model}", cure=cure)


class BudgetRunner:
    """Plans a run over all its images, then runs the planned experts on their tiles."""

    def __init__(
        self, model: BudgetModel, budget: float | None, max_loss: float | None, background: Rgb | None = None
    ) -> None:
        self.model, self._budget, self._max_loss, self._background = model, budget, max_loss, background
        self._plans: dict[str, BudgetPlan] = {}

    @classmethod
    def load(cls, path: Path, ensemble: Ensemble, options: Options) -> BudgetRunner:
        """Read the budget model and refuse one that was fitted for other experts."""
        fitted = BudgetModel.read(path)
        model = fitted.for_experts(ensemble.names)
        if model is None:
            what = f"is for {', '.join(fitted.experts)}, here run {', '.join(ensemble.names)}"
            raise Refusal(what, where=path, cure="fit it on a cache of these experts, or run a selection that it knows")
        if ensemble.identity["fusion"]["kind"] != "fusion":
            raise Refusal("no fusion model can weight a part of the experts", where=path, cure="give --model")
        for name, sha256 in model.weights_sha256.items():
            if ensemble.identity["experts"][name]["weights_sha256"] != sha256:
                what = "its weights are not those the budget was fitted for"
                raise Refusal(what, where=f"expert {name}", cure="fit the budget again")
        return cls(model, options.budget, options.max_loss, options.background)

    @property
    def cheapest(self) -> str:
        """The expert whose image a report shows of every tile."""
        return self.model.menu[0][0]

    def layer_names(self, ensemble: Ensemble) -> list[str]:
        """What `run_tile` gives beyond the image's three: only the cheapest expert's image is there for every tile."""
        gates = [f"gate/{name}" for name in ensemble.names]
        return [f"{self.cheapest}/{colour}" for colour in "rgb"] + gates + ["difficulty"] * ensemble.has_difficulty

    def plan(self, sized: Sequence[Sized], grid_of: GridOf) -> None:
        """Measure every LR image of the run and choose; one that cannot be read fails when the pipeline reads it."""
        grids: dict[str, Grid] = {}
        predictions: dict[str, GainPrediction] = {}
        for one in tqdm(sized, desc="plan", unit="image", disable=None, leave=False):
            try:
                source = read_source(one.job.input, self._background)
            except Refusal:
                continue
            grids[one.job.item] = grid_of(source)
            predictions[one.job.item] = predict_gains(self.model, source, grids[one.job.item])
        if not predictions:
            return
        if self._budget is not None:
            chosen = plan_share(self.model, predictions, self._budget)
        else:
            assert self._max_loss is not None
            chosen = {item: plan_loss(self.model, one, self._max_loss) for item, one in predictions.items()}
        self._plans = {item: as_plan(self.model, predictions[item], grids[item], chosen[item]) for item in predictions}

    def document(self, item: str) -> dict[str, Any]:
        """The plan of an image, for the report and the record."""
        if item not in self._plans:
            what, cure = "could not be read when the run was planned, and now it can", "run again"
            raise Refusal(what, where=item, cure=cure)
        return self._plans[item].document(self.model)

    def run_tile(
        self, ensemble: Ensemble, lr_BCHW: Tensor, place: Place, *, turns: Sequence[int] = PLAIN, maps: bool = False
    ) -> Tensor:
        """Layers of one tile, by the experts planned for it."""
        names = self._names(place)
        layers_KHW = run_tile(ensemble, lr_BCHW, place, turns=turns, names=names, maps=maps)
        if not maps:
            return layers_KHW
        # Layers as `run_tile` stacks them: the image's three, three for each expert run, their gates, the difficulty.
        first = 3 + 3 * names.index(self.cheapest) if self.cheapest in names else None
        # Where the cheapest is not in the plan it runs for the report only: it has no part in the image.
        image_KHW = (
            _image(ensemble, self.cheapest, lr_BCHW, place, turns) if first is None else layers_KHW[first : first + 3]
        )
        gates = dict(zip(names, layers_KHW[3 + 3 * len(names) : 3 + 4 * len(names)], strict=True))
        nothing = torch.zeros_like(layers_KHW[0])  # the gate of an expert that did not run
        all_gates = torch.stack([gates.get(name, nothing) for name in ensemble.names])
        return torch.cat([layers_KHW[:3], image_KHW, all_gates, layers_KHW[3 + 4 * len(names) :]])

    def _names(self, place: Place) -> tuple[str, ...]:
        """The experts planned where a tile begins, in the fusion model's order.

        A part of a tile (after memory ran out) that begins where the next tile does has that tile's experts.
        """
        plan = self._plans[place.item]
        row, column = _span_at(plan.grid.rows, place.top), _span_at(plan.grid.columns, place.left)
        return self.model.menu[int(plan.chosen_PQ[row, column])]


def _span_at(spans: Sequence[FeatheredSpan], position: int) -> int:
    """Index of the last span that starts at or before `position`."""
    return bisect_right(spans, position, key=lambda span: span.start) - 1


@torch.no_grad()
def _image(ensemble: Ensemble, name: str, lr_BCHW: Tensor, place: Place, turns: Sequence[int]) -> Tensor:
    """One expert's own image of a tile (3, 4H, 4W), the mean over the turns."""
    run_expert = ensemble.experts[name]
    images = [undo(run_expert(transform(lr_BCHW, turn), place, turn).sr_BCHW[0], turn) for turn in turns]
    return torch.stack(images).mean(0)
