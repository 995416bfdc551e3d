"""Step of the run -> learning rate: linear warm-up, then cosine cycles with warm restarts. A pure function."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion.training.settings import ScheduleSettings


def learning_rate(step: int, steps: int, peak: float, settings: ScheduleSettings) -> float:
    """The rate for step 0..steps-1; each cycle starts at `peak` and ends at `peak * floor`."""
    warmup = min(settings.warmup, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    position, length = _in_cycle(step - warmup, steps - warmup, settings)
    falling = 0.5 * (1 + math.cos(math.pi * position / length))
    return peak * (settings.floor + (1 - settings.floor) * falling)


def _in_cycle(step: int, steps: int, settings: ScheduleSettings) -> tuple[float, float]:
    """How far into its cycle a step is, and how long that cycle lasts."""
    sizes = [settings.growth**index for index in range(settings.cycles)]
    start = 0.0
    for size in sizes[:-1]:
        length = steps * size / sum(sizes)
        if step < start + length:
            return step - start, length
        start += length
    return step - start, max(steps - start, 1.0)
