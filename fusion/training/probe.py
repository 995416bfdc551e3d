"""A task and its settings -> how long a step and a validation take here, so that a run can be planned in minutes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion.training.curriculum import losses_of
from fusion.training.degraded import refuse_for_fusion
from fusion.training.loader import Waiting, stream
from fusion.training.machine import open_machine
from fusion.training.start import start
from fusion.training.state import new_state
from fusion.training.step import take_step

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
    refuse_for_fusion(settings)
    settings = settings.model_copy(update={"steps": MOST})
    accelerator = open_machine(settings)
    losses = losses_of(settings).to(accelerator.device)
    task = make_task(accelerator.process_index, accelerator.num_processes)
    start(task, settings.network)
    state = new_state(task, settings, accelerator)
    state.wrapped.train()
    batches = stream(
        task.source,
        range(MOST),
        workers=settings.data.workers,
        device=accelerator.device,
        waiting=Waiting(),
    )
    begun, counted = time.perf_counter(), 0
    for step, batch in batches:
        take_step(state, batch, task, losses, settings, accelerator)  # reads the loss, so the device is done
        if step < WARM:
            begun = time.perf_counter()
            continue
        counted += 1
        if time.perf_counter() - begun > seconds:
            break
    stepped = time.perf_counter() - begun
    network = state.average.module
    network.eval()
    task.validate(network)
    whole = time.perf_counter() - begun
    return Probe(stepped / counted, whole - stepped, counted, whole)
