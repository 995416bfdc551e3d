"""A task and its settings -> how long a step and a validation take here, so that a run can be planned in minutes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion.training.loader import Waiting
from fusion.training.trial import open_trial

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion.training.settings import TrainSettings
    from fusion.training.task import Task

WARM = 5  # steps that are not counted: memory is reserved, workers start, kernels are chosen
MOST = 100_000


@dataclass(frozen=True)
class Probe:
    """Seconds of one step and of one validation, over how many steps, and how long all of it took."""

    step: float
    validation: float
    steps: int
    counted: float


def probe(settings: TrainSettings, make_task: Callable[[int, int], Task], seconds: float) -> Probe:
    """Train for `seconds` beyond the first steps, validate once, keep nothing."""
    trial = open_trial(settings.model_copy(update={"steps": MOST}), make_task)
    begun, counted = time.perf_counter(), 0
    for step in trial.steps(MOST, Waiting()):
        if step < WARM:
            begun = time.perf_counter()
            continue
        counted += 1
        if time.perf_counter() - begun > seconds:
            break
    stepped = time.perf_counter() - begun
    network = trial.state.average.module
    network.eval()
    trial.task.validate(network)
    whole = time.perf_counter() - begun
    return Probe(stepped / counted, whole - stepped, counted, whole)
