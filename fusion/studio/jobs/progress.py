"""An ensemble -> the same ensemble, its calls timed, counted and open to cancelling, its contributions among the maps.

Axes: B batch (1), E experts, P phases of the fusion, C colours, H and W at four times LR size.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from fusion.refinement.native.open import NativeRefiner

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from torch import Tensor

    from fusion.inference.ensemble import Answer, Ensemble, Fused, Place, RunExpert
    from fusion.refinement.open import AnyRefiner

FUSION, REFINEMENT = "fusion", "refinement"


@dataclass
class StageProgress:
    """One expert, the fusion or the refiner: calls done and expected, seconds so far."""

    done: int = 0
    expected: int = 0
    seconds: float = 0.0


class EnsembleProgress:
    """Follows one image at a time; `check` is called before every call of a network and raises to cancel the job."""

    def __init__(self, names: tuple[str, ...], device: torch.device, check: Callable[[], None]) -> None:
        self._names, self._device, self._check = names, device, check
        self.phases: tuple[str, ...] = ()
        self.current = ""
        self.stages: dict[str, StageProgress] = {}
        self.begin(0)

    def begin(self, calls: int, refinements: int = 0) -> None:
        """A new image: how often every expert and the fusion will be called, and how often the refiner's networks."""
        self.stages = {name: StageProgress(expected=calls) for name in (*self._names, FUSION)}
        if refinements:
            self.stages[REFINEMENT] = StageProgress(expected=refinements)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Time one call."""
        self._check()
        self.current, began = name, time.perf_counter()
        yield
        if self._device.type == "cuda":  # calls return before the GPU has done them
            torch.cuda.synchronize(self._device)
        stage = self.stages.setdefault(name, StageProgress())
        stage.seconds += time.perf_counter() - began
        stage.done += 1
        # More than expected: the probe for the tile size, and tiles cut smaller where memory ran out.
        stage.expected = max(stage.expected, stage.done)

    def wrap(self, ensemble: Ensemble) -> Ensemble:
        """The ensemble to hand to the pipeline: its images are the same to the bit."""

        def fuse(lr_BCHW: Tensor, answers: Mapping[str, Answer]) -> Fused:
            with self.stage(FUSION):
                fused = ensemble.fuse(lr_BCHW, answers)
            self.phases = tuple(fused.contributions or ())
            return append_contributions(fused)

        experts = {name: self._timed(name, ask) for name, ask in ensemble.experts.items()}
        return replace(ensemble, experts=experts, fuse=fuse)

    def wrap_refiner(self, refiner: AnyRefiner) -> AnyRefiner:
        """The same for a refiner, whose model and VAE, where it has one, are called tile by tile."""
        if isinstance(refiner, NativeRefiner):
            return replace(refiner, model=_TimedNetwork(refiner.model, self))
        return replace(refiner, model=_TimedNetwork(refiner.model, self), vae=_TimedNetwork(refiner.vae, self))

    def _timed(self, name: str, ask: RunExpert) -> RunExpert:
        def timed(lr_BCHW: Tensor, place: Place, turn: int) -> Answer:
            with self.stage(name):
                return ask(lr_BCHW, place, turn)

        return timed


class _TimedNetwork:
    """A network of the refiner, its calls timed; every other attribute is the network's own."""

    def __init__(self, network: Any, progress: EnsembleProgress) -> None:
        self._network, self._progress = network, progress

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._progress.stage(REFINEMENT):
            return self._network(*args, **kwargs)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """The VAE's encoder."""
        with self._progress.stage(REFINEMENT):
            return self._network.encode(*args, **kwargs)

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The VAE's decoder."""
        with self._progress.stage(REFINEMENT):
            return self._network.decode(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def append_contributions(fused: Fused) -> Fused:
    """What each phase added, as a strength per pixel (RMS over colours), appended to the gates."""
    # Gates already pass through tiles, self-ensemble and budget as layers; behind them these need no path of their own.
    if not fused.contributions:
        return fused
    strengths = [part_BCHW.square().mean(1, keepdim=True).sqrt() for part_BCHW in fused.contributions.values()]
    return fused._replace(gates_BEHW=torch.cat([fused.gates_BEHW, *strengths], dim=1))
