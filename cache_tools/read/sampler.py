"""Seed, epoch, step, rank -> exactly which patches make up a batch: a pure function, whoever asks and in what order.

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

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        self._order = lru_cache(maxsize=4)(self._draw_order)

    def __getstate__(self) -> tuple[list[Group], Sampling]:
        return self._groups, self._sampling

    def __setstate__(self, state: tuple[list[Group], Sampling]) -> None:
        self.__init__(*state)

    @property
    def steps(self) -> int:
        """Batches per epoch and rank; the last is filled up from a new round over the groups."""
        how = self._sampling
        samples = how.samples or len(self._groups) * how.crops_per_region
        return -(-samples // (how.batch * how.world))

    def batch(self, epoch: int, step: int) -> list[Crop]:
        """The patches of one batch."""
        how = self._sampling
        first = (step * how.world + how.rank) * how.batch
        return [self._crop(epoch, number) for number in range(first, first + how.batch)]

    def _crop(self, epoch: int, number: int) -> Crop:
        """Sample `number` of an epoch: crops of one region follow one another."""
        how = self._sampling
        visit, crop = divmod(number, how.crops_per_region)
        round_, place = divmod(visit, len(self._groups))
        group = self._groups[self._order(epoch, round_)[place]]
        visit_rng = np.random.default_rng([how.seed, epoch, visit])
        turn = int(visit_rng.integers(VARIANTS)) if how.augment else 0
        stored = {variant.dihedral: variant for variant in group.variants}
        exact = len(stored) == VARIANTS
        variant = stored[turn] if exact else stored[0]
        rows = self._axis(variant.height, visit_rng)
        columns = self._axis(variant.width, visit_rng)
        rng = np.random.default_rng([how.seed, epoch, visit, _CROP_STREAM, crop])
        top, left = int(rng.choice(rows)), int(rng.choice(columns))
        approximate = int(rng.integers(VARIANTS)) if how.augment and not exact else 0
        return Crop(variant.item, top, left, approximate)

    def _axis(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """Where crops may begin along one axis: on the grid or flush with the far edge, inside the visit's region."""
        how = self._sampling
        last = length - how.patch
        places = np.unique(np.append(np.arange(0, last + 1, how.grid), last))
        anchor = int(rng.choice(places))
        if how.crops_per_region == 1:
            return np.array([anchor])
        # The region: the tiles that a patch at the anchor touches, so that its crops share their reads.
        begin = anchor // TILE * TILE
        end = begin + (how.patch + 2 * TILE - 2) // TILE * TILE
        return places[(places >= begin) & (places + how.patch <= end)]

    def _draw_order(self, epoch: int, round_: int) -> np.ndarray:
        return np.random.default_rng([self._sampling.seed, epoch, round_, 2, 7]).permutation(len(self._groups))
