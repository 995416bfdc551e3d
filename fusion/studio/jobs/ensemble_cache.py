"""The model chosen at the start -> ensembles of any of its experts in any precision; the last ones stay open."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple, Protocol

from fusion.budget.run import BudgetRunner
from fusion.inference.model_selection import select_model
from fusion.refinement.open import open_refiner
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fusion.inference.ensemble import Ensemble
    from fusion.inference.options import Options
    from fusion.refinement.open import Refiner

PRECISIONS = ("fp32", "bf16", "fp16")
_JOINT = "infer"  # infer.py, where experts and fusion meet: it is named here and looked up when the studio opens
_KEPT = 2  # ensembles that stay in memory


class Build(Protocol):
    """Words for the experts, and a precision -> an ensemble: `infer.build` with the rest settled."""

    def __call__(self, wanted: Sequence[str], precision: str) -> Ensemble:
        """Open them."""
        ...


class RefineWords(NamedTuple):
    """Which diffusion model may refine: --refine, --refine-model and --refine-lora of infer.py."""

    preset: str
    model: str
    lora: Path | None


@dataclass(frozen=True)
class ModelWords:
    """What the command line says of the model, in the words of infer.py."""

    model: str
    experts: tuple[str, ...] | None = None
    config: Path | None = None
    device: str | None = None
    budget_head: Path | None = None
    refine: RefineWords | None = None


class EnsembleCache:
    """Opens ensembles; `names` are the model's experts."""

    def __init__(
        self,
        build: Build,
        words: Sequence[str],
        budget_head: Path | None = None,
        refine: RefineWords | None = None,
    ) -> None:
        self._build, self.budget_head = build, budget_head
        self._open: OrderedDict[tuple[tuple[str, ...], str], Ensemble] = OrderedDict()
        whole = build(words, PRECISIONS[0])
        self.names = whole.names
        self._words = dict(zip(whole.names, words, strict=True))
        self._keep((whole.names, PRECISIONS[0]), whole)
        self.refiner = None if refine is None else open_refiner(*refine, whole.device)

    @classmethod
    def of(cls, words: ModelWords) -> EnsembleCache:
        """By way of infer.py: the studio opens what the command line opens."""
        joint = import_module(_JOINT)
        experts = select_model(words.model, words.experts, joint.pretrained_folder()).experts

        def build(wanted: Sequence[str], precision: str) -> Ensemble:
            device = words.device or joint.best_device()
            return joint.build(words.model, wanted, device=device, precision=precision, config=words.config)

        return cls(build, experts, words.budget_head, words.refine)

    @property
    def whole(self) -> Ensemble:
        """All experts in full precision."""
        return self.open(self.names, PRECISIONS[0])

    def open(self, names: Sequence[str], precision: str) -> Ensemble:
        """These experts, in the model's order."""
        chosen = tuple(name for name in self.names if name in names)
        if not chosen:
            raise Refusal("no expert is chosen", where="experts", cure="tick at least one")
        if precision not in PRECISIONS:
            raise Refusal(f"no precision '{precision}'", where="precision", cure=f"known: {', '.join(PRECISIONS)}")
        key = (chosen, precision)
        if key not in self._open:
            self._keep(key, self._build([self._words[name] for name in chosen], precision))
        self._open.move_to_end(key)
        return self._open[key]

    def refiner_for(self, options: Options) -> Refiner | None:
        """Who refines, if that is wanted."""
        if options.refine is not None and self.refiner is None:
            cure = "start the studio with --refine-model"
            raise Refusal("there is no diffusion model to refine by", where="refinement", cure=cure)
        return self.refiner if options.refine is not None else None

    def buyer(self, ensemble: Ensemble, options: Options) -> BudgetRunner | None:
        """Who plans the budget, if there is one."""
        if options.budget is None and options.max_loss is None:
            return None
        if self.budget_head is None:
            cure = "start the studio with --budget-head FILE"
            raise Refusal("there is no budget head to plan by", where="budget", cure=cure)
        return BudgetRunner.load(self.budget_head, ensemble, options)

    def _keep(self, key: tuple[tuple[str, ...], str], ensemble: Ensemble) -> None:
        self._open[key] = ensemble
        while len(self._open) > _KEPT:
            self._open.popitem(last=False)
