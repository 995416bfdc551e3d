"""Seed, epoch, step, rank -> exactly which patches make up a batch: a pure function of these four.

Sample number i of an epoch does not depend on ranks or workers; rank r of W takes samples
step * B * W + r * B ... of B each, so W ranks of batch B see the same as one rank of batch W * B.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from cache_tools.format.schema import TILE
from imaging.dihedral import VARIANTS
from imaging.tiling import most_touched

if TYPE_CHECKING:
    from collections.abc import Sequence

# Appended to the seed of a random stream, so that different draws of one visit are independent of each other.
_CROP_STREAM = 1


@dataclass(frozen=True)
class Variant:
    """One stored item of a group: the flip or rotation in which it is stored, and its LR size."""

    item: str
    dihedral: int
    height: int
    width: int


@dataclass(frozen=True)
class Group:
    """An image or region, plain and perhaps also in its exact flips and rotations."""

    id: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Crop:
    """A patch: LR pixel (top, left) of an item, to be turned by `dihedral` after decoding."""

    item: str
    top: int
    left: int
    dihedral: int


@dataclass(frozen=True)
class Sampling:
    """How patches are drawn. `samples` per epoch over all ranks; None is every group `crops_per_region` times."""

    patch: int = 64
    grid: int = 8
    crops_per_region: int = 1
    augment: bool = True
    seed: int = 0
    batch: int = 8
    samples: int | None = None
    rank: int = 0
    world: int = 1


class Sampler:
    """Draws the batches of one rank."""

    def __init__(self, groups: Sequence[Group], sampling: Sampling) -> None:
        self._groups = list(groups)
        self._sampling = sampling
        # A batch may span two rounds, and look-ahead two epochs.
        self._order = lru_cache(maxsize=4)(self._draw_order)

    def __getstate__(self) -> tuple[list[Group], Sampling]:
        return self._groups, self._sampling

    def __setstate__(self, state: tuple[list[Group], Sampling]) -> None:
        self.__init__(*state)

    @property
    def steps(self) -> int:
        """Batches per epoch and rank; the last is filled up from a new round over the groups."""
        sampling = self._sampling
        samples = sampling.samples or len(self._groups) * sampling.crops_per_region
        return -(-samples // (sampling.batch * sampling.world))

    def batch(self, epoch: int, step: int) -> list[Crop]:
        """The patches of one batch."""
        sampling = self._sampling
        first = (step * sampling.world + sampling.rank) * sampling.batch
        return [self._crop(epoch, number) for number in range(first, first + sampling.batch)]

    def _crop(self, epoch: int, number: int) -> Crop:
        """Sample `number` of an epoch: crops of one region follow one another."""
        sampling = self._sampling
        visit, crop = divmod(number, sampling.crops_per_region)
        round_, place = divmod(visit, len(self._groups))
        group = self._groups[self._order(epoch, round_)[place]]
        # Crops of one visit share its turn and region; each has its own stream for its place.
        visit_rng = np.random.default_rng([sampling.seed, epoch, visit])
        turn = int(visit_rng.integers(VARIANTS)) if sampling.augment else 0
        stored = {variant.dihedral: variant for variant in group.variants}
        # All eight cached: draw among them. Else turn the plain item's features, which approximates (see dataset.py).
        exact = len(stored) == VARIANTS
        variant = stored[turn] if exact else stored[0]
        rows = self._axis(variant.height, visit_rng)
        columns = self._axis(variant.width, visit_rng)
        rng = np.random.default_rng([sampling.seed, epoch, visit, _CROP_STREAM, crop])
        top, left = int(rng.choice(rows)), int(rng.choice(columns))
        approximate = int(rng.integers(VARIANTS)) if sampling.augment and not exact else 0
        return Crop(variant.item, top, left, approximate)

    def _axis(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """Where crops may begin along one axis: on the grid or flush with the far edge, inside the visit's region."""
        sampling = self._sampling
        last = length - sampling.patch
        places = np.unique(np.append(np.arange(0, last + 1, sampling.grid), last))
        anchor = int(rng.choice(places))
        if sampling.crops_per_region == 1:
            return np.array([anchor])
        # The region: the tiles that a patch at the anchor touches, so that its crops share their reads.
        begin = anchor // TILE * TILE
        end = begin + most_touched(sampling.patch, TILE) * TILE
        return places[(places >= begin) & (places + sampling.patch <= end)]

    def _draw_order(self, epoch: int, round_: int) -> np.ndarray:
        # 2, 7: this stream's number; another one would change the order of every training so far.
        return np.random.default_rng([self._sampling.seed, epoch, round_, 2, 7]).permutation(len(self._groups))
