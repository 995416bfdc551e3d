"""A task and a number of steps -> samples a second of its training, and the share of time spent waiting for data."""

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


@dataclass(frozen=True)
class Pace:
    """Of the counted steps; `wait_share` is the share of their time in which training stood still for data.

    `cpu_seconds` are those of this process's threads, which other load on the machine does not stretch.
    """

    samples_per_second: float
    wait_share: float
    steps: int
    seconds: float
    cpu_seconds: float


def measure_pace(settings: TrainSettings, make_task: Callable[[int, int], Task], steps: int, warm: int) -> Pace:
    """Real steps, nothing kept: `warm` uncounted ones, in which workers start and memory is reserved, then `steps`."""
    trial = open_trial(settings, make_task)
    waiting, begun, cpu = Waiting(), time.perf_counter(), time.process_time()
    for step in trial.steps(warm + steps, waiting):
        if step + 1 == warm:
            waiting.restart()
            begun, cpu = time.perf_counter(), time.process_time()
    seconds = time.perf_counter() - begun
    rate = steps * settings.data.batch / seconds
    return Pace(rate, waiting.share, steps, seconds, time.process_time() - cpu)
