"""A source and a range of steps -> finished batches in order, and how long training waited for them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fusion.training.sources.batch import Source, TrainBatch


class StepDataset(Dataset[Any]):
    """Step number -> this process's raw batch: what makes resuming and worker counts irrelevant to the numbers."""

    def __init__(self, draw: Callable[[int], Any]) -> None:
        self._draw = draw

    def __getitem__(self, step: int) -> Any:
        """The raw batch of one step."""
        return self._draw(step)


def step_loader(draw: Callable[[int], Any], steps: range, workers: int) -> Iterator[Any]:
    """`draw(step)` for every step, in order, made ahead by the workers."""
    loader = DataLoader(
        StepDataset(draw),
        batch_size=None,  # a step's number is the index: batches are drawn whole
        sampler=list(steps),
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # its own: the loader would draw its workers' seed from torch's
    )
    return iter(loader)


class Waiting:
    """Seconds spent waiting for data, and in all."""

    def __init__(self) -> None:
        self._begun, self.waited = time.perf_counter(), 0.0

    def restart(self) -> None:
        """Count from now on."""
        self._begun, self.waited = time.perf_counter(), 0.0

    @property
    def share(self) -> float:
        """The share of the time since the start in which training waited for data."""
        return self.waited / max(time.perf_counter() - self._begun, 1e-9)


def stream(
    source: Source, steps: range, *, workers: int, device: torch.device, waiting: Waiting
) -> Iterator[tuple[int, TrainBatch]]:
    """Yield (step, batch) for every step of the range."""
    if not steps:
        return
    raw_batches = source.raw_batches(steps, workers)
    for step in steps:
        begun = time.perf_counter()
        raw = next(raw_batches)
        waiting.waited += time.perf_counter() - begun
        yield step, source.finish(raw, device)
