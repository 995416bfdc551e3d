"""The model chosen at the start -> ensembles of any of its experts in any precision; the last ones stay open."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol, get_args

from fusion.budget.run import BudgetRunner
from fusion.refinement.open import open_refiner
from imaging.device import Precision
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from fusion.inference.ensemble import Ensemble
    from fusion.inference.options import Options
    from fusion.refinement.open import AnyRefiner

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_KEPT = 2  # ensembles that stay in memory: enough to go back and forth between two choices, bounded for large experts


class BuildEnsemble(Protocol):
    """`infer.build`: only front doors open experts, so the studio is handed it."""

    def __call__(
        self,
        model: str,
        wanted: Sequence[str] | None,
        *,
        device: str,
        precision: Precision = ...,
        config: Path | None = ...,
        trust_code: bool = ...,
    ) -> Ensemble:
        """Open the experts and the fusion model."""
        ...


class OpenExperts(Protocol):
    """The same once model, device and config are chosen."""

    def __call__(self, wanted: Sequence[str] | None, precision: Precision) -> Ensemble:
        """Open these experts of the model, or all of its own."""
        ...


class RefinerSettings(NamedTuple):
    """Which diffusion model may refine: --refine, --refine-model and --refine-lora of infer.py."""

    preset: str
    model: str | None
    lora: Path | None


@dataclass(frozen=True)
class ModelSettings:
    """The command line's choice of a model; the options are those of infer.py."""

    model: str
    device: str
    experts: tuple[str, ...] | None = None
    config: Path | None = None
    budget_model: Path | None = None
    refiner: RefinerSettings | None = None
    trust_code: bool = False


class EnsembleCache:
    """Opens ensembles; `names` are the model's experts."""

    def __init__(
        self,
        open_experts: OpenExperts,
        wanted: Sequence[str] | None,
        budget_model: Path | None = None,
        open_refiner: Callable[[torch.device], AnyRefiner] | None = None,
    ) -> None:
        self._open_experts, self.budget_model = open_experts, budget_model
        self._open: OrderedDict[tuple[tuple[str, ...], Precision], Ensemble] = OrderedDict()
        full = open_experts(wanted, PRECISIONS[0])
        self.names = full.names
        # An expert given by a file is asked for by that file again, but known to the visitor by its name.
        self._sources = dict(zip(full.names, full.sources or full.names, strict=True))
        self._keep((full.names, PRECISIONS[0]), full)
        self.refiner = None if open_refiner is None else open_refiner(full.device)

    @classmethod
    def of(cls, settings: ModelSettings, build: BuildEnsemble) -> EnsembleCache:
        """What `build` opens from these settings, all experts at first."""

        def open_experts(wanted: Sequence[str] | None, precision: Precision) -> Ensemble:
            return build(
                settings.model,
                wanted,
                device=settings.device,
                precision=precision,
                config=settings.config,
                trust_code=settings.trust_code,
            )

        refine = None if settings.refiner is None else partial(open_refiner, *settings.refiner)
        return cls(open_experts, settings.experts, settings.budget_model, refine)

    @property
    def full(self) -> Ensemble:
        """All experts in full precision."""
        return self.open(self.names, PRECISIONS[0])

    def open(self, names: Sequence[str], precision: Precision) -> Ensemble:
        """These experts, in the model's order."""
        chosen = tuple(name for name in self.names if name in names)
        if not chosen:
            raise Refusal("no expert is chosen", where="experts", cure="tick at least one")
        if precision not in PRECISIONS:
            raise Refusal(f"no precision '{precision}'", where="precision", cure=f"known: {', '.join(PRECISIONS)}")
        key = (chosen, precision)
        if key not in self._open:
            self._keep(key, self._open_experts([self._sources[name] for name in chosen], precision))
        self._open.move_to_end(key)
        return self._open[key]

    def refiner_for(self, options: Options) -> AnyRefiner | None:
        """The refiner, where the options ask for refinement."""
        if options.refine is not None and self.refiner is None:
            cure = "start the studio with --refine-model"
            raise Refusal("there is no diffusion model to refine by", where="refinement", cure=cure)
        return self.refiner if options.refine is not None else None

    def budget_runner(self, ensemble: Ensemble, options: Options) -> BudgetRunner | None:
        """Plans the budget, where the options set one."""
        if options.budget is None and options.max_loss is None:
            return None
        if self.budget_model is None:
            cure = "start the studio with --budget-model FILE"
            raise Refusal("there is no budget model to plan by", where="budget", cure=cure)
        return BudgetRunner.load(self.budget_model, ensemble, options)

    def _keep(self, key: tuple[tuple[str, ...], Precision], ensemble: Ensemble) -> None:
        self._open[key] = ensemble
        while len(self._open) > _KEPT:
            self._open.popitem(last=False)
