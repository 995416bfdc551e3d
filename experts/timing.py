"""An opened expert -> the seconds that it takes per LR pixel on its device."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from experts.run import NetworkExpert

if TYPE_CHECKING:
    from experts.spec import Expert

SIDE, REPEATS = 64, 3


def seconds_per_pixel(expert: Expert, *, side: int = SIDE, repeats: int = REPEATS) -> float | None:
    """The fastest of several runs after one that warms up; None for folders of images, which cost nothing to ask.

    On a CPU the time of the process's own threads counts, which other programs do not stretch.
    """
    if not isinstance(expert, NetworkExpert):
        return None
    on_gpu = expert.device.type != "cpu"
    clock = time.perf_counter if on_gpu else time.process_time
    lr_BCHW = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(expert.device)
    taken: list[float] = []
    for _ in range(1 + repeats):
        begun = clock()
        expert.run(lr_BCHW)
        if expert.device.type == "cuda":
            torch.cuda.synchronize(expert.device)
        taken.append(clock() - begun)
    return min(taken[1:]) / side**2
