"""A task and its settings -> how fast it trains here: a run's steps without its folder, timed and thrown away.

`measure_pace` gives samples a second and the share of time spent waiting for data; `probe` the seconds of a step and of
a validation, from which a run's steps are planned for a time budget.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion.training.loop.accelerator import open_accelerator
from fusion.training.loop.initial_weights import load_initial_weights
from fusion.training.loop.state import new_state
from fusion.training.loop.step import take_step
from fusion.training.losses.curriculum import losses_of
from fusion.training.sources.degraded import refuse_for_fusion
from fusion.training.sources.loader import Waiting, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accelerate import Accelerator

    from fusion.training.loop.state import TrainingState
    from fusion.training.losses.curriculum import WeightedLosses
    from fusion.training.settings import TrainSettings
    from fusion.training.tasks.task import Task


@dataclass(frozen=True)
class DryRun:
    """A training that writes no file."""

    settings: TrainSettings
    accelerator: Accelerator
    losses: WeightedLosses
    task: Task
    state: TrainingState

    def steps(self, count: int, waiting: Waiting) -> Iterator[int]:
        """Real steps; each is complete when its number is yielded."""
        workers, device = self.settings.data.workers, self.accelerator.device
        for step, batch in stream(self.task.source, range(count), workers=workers, device=device, waiting=waiting):
            # No synchronisation needed for timing: it reads the loss, so the device is idle when it returns.
            take_step(self.state, batch, self.task, self.losses, self.settings, self.accelerator)
            yield step


def open_dry_run(settings: TrainSettings, make_task: Callable[[int, int], Task]) -> DryRun:
    """Everything that a run does before its folder is made."""
    refuse_for_fusion(settings)
    accelerator = open_accelerator(settings)
    losses = losses_of(settings).to(accelerator.device)
    task = make_task(accelerator.process_index, accelerator.num_processes)
    load_initial_weights(task, settings.network)
    state = new_state(task, settings, accelerator)
    state.wrapped.train()
    return DryRun(settings, accelerator, losses, task, state)


@dataclass(frozen=True)
class Pace:
    """Of the counted steps; `wait_share` is the share of their time in which training waited for data.

    `cpu_seconds` are those of this process's threads, which other load on the machine does not stretch.
    """

    samples_per_second: float
    wait_share: float
    steps: int
    seconds: float
    cpu_seconds: float


def measure_pace(settings: TrainSettings, make_task: Callable[[int, int], Task], steps: int, warm: int) -> Pace:
    """Real steps, nothing kept: `warm` uncounted ones, in which workers start and memory is reserved, then `steps`."""
    dry_run = open_dry_run(settings, make_task)
    waiting, begun, cpu = Waiting(), time.perf_counter(), time.process_time()
    for step in dry_run.steps(warm + steps, waiting):
        if step + 1 == warm:
            waiting.restart()
            begun, cpu = time.perf_counter(), time.process_time()
    seconds = time.perf_counter() - begun
    rate = steps * settings.data.batch / seconds
    return Pace(rate, waiting.share, steps, seconds, time.process_time() - cpu)


WARM = 5  # steps that are not counted: memory is reserved, workers start, kernels are chosen
MOST = 100_000  # more than fit into any probe: its clock ends it


@dataclass(frozen=True)
class Probe:
    """Seconds of one step and of one validation, over how many steps, and how long all of it took."""

    step: float
    validation: float
    steps: int
    counted: float


def probe(settings: TrainSettings, make_task: Callable[[int, int], Task], seconds: float) -> Probe:
    """Train for `seconds` beyond the first steps, validate once, keep nothing."""
    dry_run = open_dry_run(settings.model_copy(update={"steps": MOST}), make_task)
    begun, counted = time.perf_counter(), 0
    for step in dry_run.steps(MOST, Waiting()):
        if step < WARM:
            begun = time.perf_counter()
            continue
        counted += 1
        if time.perf_counter() - begun > seconds:
            break
    stepped = time.perf_counter() - begun
    network = dry_run.state.average.module
    network.eval()
    dry_run.task.validate(network)
    whole = time.perf_counter() - begun
    return Probe(stepped / counted, whole - stepped, counted, whole)
