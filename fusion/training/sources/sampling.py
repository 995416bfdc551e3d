"""Seed, purpose and place in the run -> random numbers. Stateless, so resuming changes nothing.

Every random decision of training is a pure function of (seed, purpose, step, sample): the number of workers, a kill
and a resume, or the number of processes change nothing.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """What the numbers are for; streams of different purposes are independent.

    The values are part of every seed: changing one changes all runs.
    """

    CROP = 1
    AUGMENT = 2
    EXPERT_DROPOUT = 3
    NETWORK = 4
    BOOTSTRAP = 5
    DEGRADE = 6
    DEGRADE_HELD_OUT = 7


def draw(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """An independent NumPy generator for this purpose at this place."""
    return np.random.default_rng([seed, int(purpose), *place])


def seed_torch(seed: int, *place: int) -> None:
    """Set torch's own generators, for networks that draw numbers in their forward (dropout, noise)."""
    torch.manual_seed(int(draw(seed, Purpose.NETWORK, *place).integers(2**62)))


def samples_of_step(step: int, batch: int, rank: int = 0, world: int = 1) -> range:
    """The sample numbers that this process contributes to the global batch of `step`."""
    if batch % world:
        raise ValueError(f"a batch of {batch} cannot be dealt to {world} processes")
    part = batch // world
    first = step * batch + rank * part
    return range(first, first + part)
