"""A task and a number of steps -> samples a second of its training, and the share of time spent waiting for data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion.training.curriculum import losses_of
from fusion.training.loader import Waiting, stream
from fusion.training.machine import open_machine
from fusion.training.state import new_state
from fusion.training.step import take_step

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
    accelerator = open_machine(settings)
    losses = losses_of(settings).to(accelerator.device)
    task = make_task(accelerator.process_index, accelerator.num_processes)
    state = new_state(task, settings, accelerator)
    state.wrapped.train()
    waiting, begun, cpu = Waiting(), time.perf_counter(), time.process_time()
    workers, numbers = settings.data.workers, range(warm + steps)
    for step, batch in stream(task.source, numbers, workers=workers, device=accelerator.device, waiting=waiting):
        take_step(state, batch, task, losses, settings, accelerator)  # reads the loss, so the device is done
        if step + 1 == warm:
            waiting.restart()
            begun, cpu = time.perf_counter(), time.process_time()
    seconds = time.perf_counter() - begun
    rate = steps * settings.data.batch / seconds
    return Pace(rate, waiting.share, steps, seconds, time.process_time() - cpu)
