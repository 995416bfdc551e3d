"""A task and its settings -> all that steps need, for timing them; no run's folder is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusion.training.curriculum import losses_of
from fusion.training.degraded import refuse_for_fusion
from fusion.training.loader import stream
from fusion.training.machine import open_machine
from fusion.training.start import start
from fusion.training.state import new_state
from fusion.training.step import take_step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accelerate import Accelerator

    from fusion.training.curriculum import WeightedLosses
    from fusion.training.loader import Waiting
    from fusion.training.settings import TrainSettings
    from fusion.training.state import TrainingState
    from fusion.training.task import Task


@dataclass(frozen=True)
class Trial:
    """A training that leaves nothing behind."""

    settings: TrainSettings
    accelerator: Accelerator
    losses: WeightedLosses
    task: Task
    state: TrainingState

    def steps(self, count: int, waiting: Waiting) -> Iterator[int]:
        """Real steps; each is over when its number is given."""
        workers, device = self.settings.data.workers, self.accelerator.device
        for step, batch in stream(self.task.source, range(count), workers=workers, device=device, waiting=waiting):
            # It reads the loss, so the device is done when it returns.
            take_step(self.state, batch, self.task, self.losses, self.settings, self.accelerator)
            yield step


def open_trial(settings: TrainSettings, make_task: Callable[[int, int], Task]) -> Trial:
    """As a run begins, up to its folder."""
    refuse_for_fusion(settings)
    accelerator = open_machine(settings)
    losses = losses_of(settings).to(accelerator.device)
    task = make_task(accelerator.process_index, accelerator.num_processes)
    start(task, settings.network)
    state = new_state(task, settings, accelerator)
    state.wrapped.train()
    return Trial(settings, accelerator, losses, task, state)
