"""An ensemble -> the same ensemble, every call of it timed, counted and stoppable, its contributions among the maps.

Axes: B batch (1), E experts, P phases of the fusion, C colours, H and W at four times LR size.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from fusion.inference.ensemble import Answer, Ensemble, Fused, Place, RunExpert
    from fusion.refinement.open import Refiner

FUSION, REFINEMENT = "fusion", "refinement"


@dataclass
class Stage:
    """One step of the way: calls done and expected, seconds so far."""

    done: int = 0
    expected: int = 0
    seconds: float = 0.0


class EnsembleProgress:
    """Follows one image at a time; `check` is asked before every call and raises to stop the work."""

    def __init__(self, names: tuple[str, ...], device: torch.device, check: Callable[[], None]) -> None:
        self._names, self._device, self._check = names, device, check
        self.phases: tuple[str, ...] = ()
        self.now = ""
        self.stages: dict[str, Stage] = {}
        self.begin(0)

    def begin(self, calls: int, refinements: int = 0) -> None:
        """A new image, for which every expert and the fusion are called so often, and a refiner's parts so often."""
        self.stages = {name: Stage(expected=calls) for name in (*self._names, FUSION)}
        if refinements:
            self.stages[REFINEMENT] = Stage(expected=refinements)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one call."""
        self._check()
        self.now, began = name, time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        stage = self.stages.setdefault(name, Stage())
        stage.seconds += time.perf_counter() - began
        stage.done += 1
        stage.expected = max(stage.expected, stage.done)

    def over(self, ensemble: Ensemble) -> Ensemble:
        """The ensemble to hand to the pipeline: its images are the same to the bit."""

        def fuse(lr_BCHW: Tensor, answers: Mapping[str, Answer]) -> Fused:
            with self.stage(FUSION):
                fused = ensemble.fuse(lr_BCHW, answers)
            self.phases = tuple(fused.contributions or ())
            return with_contributions(fused)

        experts = {name: self._timed(name, ask) for name, ask in ensemble.experts.items()}
        return replace(ensemble, experts=experts, fuse=fuse)

    def over_refiner(self, refiner: Refiner) -> Refiner:
        """The same for a refiner, whose model and VAE are called tile by tile."""
        return replace(refiner, model=_Part(refiner.model, self), vae=_Part(refiner.vae, self))

    def _timed(self, name: str, ask: RunExpert) -> RunExpert:
        def timed(lr_BCHW: Tensor, place: Place, turn: int) -> Answer:
            with self.stage(name):
                return ask(lr_BCHW, place, turn)

        return timed


class _Part:
    """A network of the refiner; all but its calls is the network's own."""

    def __init__(self, network: Any, watch: EnsembleProgress) -> None:
        self._network, self._watch = network, watch

    def __call__(self, *words: Any, **named: Any) -> Any:
        with self._watch.stage(REFINEMENT):
            return self._network(*words, **named)

    def encode(self, *words: Any, **named: Any) -> Any:
        """The VAE's encoder."""
        with self._watch.stage(REFINEMENT):
            return self._network.encode(*words, **named)

    def decode(self, *words: Any, **named: Any) -> Any:
        """The VAE's decoder."""
        with self._watch.stage(REFINEMENT):
            return self._network.decode(*words, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def with_contributions(fused: Fused) -> Fused:
    """What each phase added, as a strength per pixel, behind the gates: so they go the way of all maps."""
    if not fused.contributions:
        return fused
    strengths = [part_BCHW.square().mean(1, keepdim=True).sqrt() for part_BCHW in fused.contributions.values()]
    return fused._replace(gates_BEHW=torch.cat([fused.gates_BEHW, *strengths], dim=1))
