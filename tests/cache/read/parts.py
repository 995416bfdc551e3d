"""Batches of patches, taken and compared."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch

from cache_tools.read.batch import PatchBatch

if TYPE_CHECKING:
    from collections.abc import Iterable


def take(source: Iterable[PatchBatch], count: int) -> list[PatchBatch]:
    """The first batches of a sequence."""
    return list(islice(source, count))


def same(one: PatchBatch, other: PatchBatch) -> bool:
    """Equal bit for bit, of the same items and step."""
    tensors = ("lr_BCHW", "hr_BCHW", "sr_BECHW", "feats_BCHW", "scale_BTTC2", "origin_B2", "dihedral_B")
    equal = all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
    return equal and (one.items, one.epoch, one.step) == (other.items, other.epoch, other.step)


def all_same(ones: list[PatchBatch], others: list[PatchBatch]) -> bool:
    """The same for two sequences."""
    return len(ones) == len(others) and all(map(same, ones, others))
