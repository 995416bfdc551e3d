"""A state before its first step -> how long the run will take, by a few real steps of a copy that is thrown away."""

from __future__ import annotations

import copy
import logging
import time
from typing import TYPE_CHECKING

from fusion.training.loop.state import state_of
from fusion.training.loop.step import take_step
from fusion.training.sources.loader import Waiting, stream

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fusion.training.loop.state import TrainingState
    from fusion.training.losses.curriculum import WeightedLosses
    from fusion.training.settings import TrainSettings
    from fusion.training.tasks.task import Task

log = logging.getLogger(__name__)

TRIED = 3  # steps, of which the first, that reserves memory, is not counted
SHORTEST = 30  # steps from which on they are worth trying


def tell_duration(
    state: TrainingState, task: Task, losses: WeightedLosses, settings: TrainSettings, accelerator: Accelerator
) -> None:
    """One line before the first step. With several processes there is none: a copy would need their network joined."""
    left = settings.steps - state.step
    if left < SHORTEST or accelerator.num_processes > 1:
        return
    seconds = _seconds_of_a_step(state, task, losses, settings, accelerator)
    judged = settings.steps // settings.validation.every - state.step // settings.validation.every
    log.info(
        "%d steps at about %.2g s each: about %s, and %d validations on whole images beside them",
        *(left, seconds, in_words(left * seconds), max(judged, 1)),
    )


def _seconds_of_a_step(
    state: TrainingState, task: Task, losses: WeightedLosses, settings: TrainSettings, accelerator: Accelerator
) -> float:
    network = copy.deepcopy(state.network)
    network.train()
    trial = state_of(network, settings, accelerator)
    trial.step = state.step
    steps, moments = range(state.step, state.step + TRIED), [time.perf_counter()]
    for _, batch in stream(task.source, steps, workers=0, device=accelerator.device, waiting=Waiting()):
        take_step(trial, batch, task, losses, settings, accelerator)  # reads the loss: complete when it returns
        moments.append(time.perf_counter())
    return (moments[-1] - moments[1]) / (TRIED - 1)


def in_words(seconds: float) -> str:
    """`90` -> `1.5 minutes`."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"
