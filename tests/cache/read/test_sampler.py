"""The sequence of patches: the same whoever reads it and wherever it resumes, every item and edge, every turn."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.read.dataset import CacheDataset
from cache_tools.read.sampler import Group, Sampler, Sampling, Variant
from imaging.dihedral import VARIANTS
from tests.cache.parts import make_cache
from tests.cache.read.parts import all_same, same, take

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("crops", [1, 3])
def test_workers_do_not_change_the_sequence(cache: Path, crops: int) -> None:
    source = CacheDataset(cache, patch=32, batch=2, seed=5, crops_per_region=crops)
    alone = take(source, 7)
    assert all_same(take(source.loader(0), 7), alone)
    assert all_same(take(source.loader(2, multiprocessing_context="fork"), 7), alone)


@pytest.mark.slow
def test_spawned_workers_give_the_same(cache: Path) -> None:
    source = CacheDataset(cache, patch=32, batch=2, seed=5)
    alone = take(source, 5)
    assert all_same(take(source.loader(1, multiprocessing_context="spawn"), 5), alone)


def test_handles_are_not_carried_into_other_processes(cache: Path) -> None:
    source = CacheDataset(cache, patch=32, batch=2)
    first = take(source, 2)
    copy = pickle.loads(pickle.dumps(source))
    assert all_same(take(copy, 2), first)


def test_seeds_epochs_and_steps_differ(cache: Path) -> None:
    batches = take(CacheDataset(cache, patch=32, batch=3, seed=1), 4)
    assert [(one.epoch, one.step) for one in batches] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert len({one.lr_BCHW.numpy().tobytes() for one in batches}) == 4
    assert not same(batches[0], take(CacheDataset(cache, patch=32, batch=3, seed=2), 1)[0])
    assert all(len(set(one.items)) == 3 for one in batches)


def test_resuming_in_the_middle_of_an_epoch_is_exact(cache: Path) -> None:
    def source() -> CacheDataset:
        return CacheDataset(cache, patch=32, batch=2, seed=9, samples=10)

    whole = take(source(), 12)
    assert source().steps_per_epoch == 5
    for stop in (1, 4, 7):
        last = whole[stop - 1]
        resumed = source()
        resumed.set_position(last.epoch, last.step + 1)
        assert all_same(take(resumed.loader(2), 12 - stop), whole[stop:])
    with pytest.raises(ValueError, match="has 5 steps"):
        source().set_position(0, 6)


def test_ranks_share_one_sequence(cache: Path) -> None:
    one = take(CacheDataset(cache, patch=32, batch=4, seed=3, samples=16), 4)
    ranks = [take(CacheDataset(cache, patch=32, batch=2, seed=3, samples=16, rank=r, world=2), 4) for r in range(2)]
    for whole, *parts in zip(one, *ranks, strict=True):
        assert whole.items == parts[0].items + parts[1].items
        assert torch.equal(whole.lr_BCHW, torch.cat([part.lr_BCHW for part in parts]))


def test_every_item_is_visited_each_round() -> None:
    groups = [Group(str(number), (Variant(str(number), 0, 40, 40),)) for number in range(10)]
    sampler = Sampler(groups, Sampling(patch=32, batch=5, seed=0))
    for epoch in range(3):
        seen = [crop.item for step in range(sampler.steps) for crop in sampler.batch(epoch, step)]
        assert sorted(seen) == sorted(group.id for group in groups)


def test_crops_reach_every_edge() -> None:
    group = Group("x", (Variant("x", 0, 77, 50),))
    for crops in (1, 4):
        sampler = Sampler([group], Sampling(patch=32, grid=8, crops_per_region=crops, batch=4, samples=2000))
        drawn = [crop for step in range(500) for crop in sampler.batch(0, step)]
        assert {crop.top for crop in drawn} == {0, 8, 16, 24, 32, 40, 45}
        assert {crop.left for crop in drawn} == {0, 8, 16, 18}
        assert {crop.dihedral for crop in drawn} == set(range(8))


def test_crops_of_a_region_lie_in_the_same_tiles() -> None:
    group = Group("x", (Variant("x", 0, 500, 500),))
    sampler = Sampler([group], Sampling(patch=64, grid=8, crops_per_region=4, batch=4, samples=400))
    for step in range(100):
        crops = sampler.batch(0, step)
        for axis in ("top", "left"):
            places = [getattr(crop, axis) for crop in crops]
            assert (max(places) + 63) // 32 - min(places) // 32 < 3
    assert len({crop.top for crop in sampler.batch(0, 3)}) > 1


def test_exact_variants_are_used_instead_of_flips(tmp_path: Path) -> None:
    root = make_cache(tmp_path, [(32, 40)], dihedral=True)
    variants: set[str] = set()
    for batch in take(CacheDataset(root, patch=32, batch=4, samples=40), 10):
        assert not batch.dihedral_B.any()
        variants.update(item.rpartition("-d")[2] if "-d" in item else "0" for item in batch.items)
    assert variants == {str(number) for number in range(8)}
    plain = take(CacheDataset(root, patch=32, batch=4, samples=40, augment=False), 10)
    assert all("-d" not in item for batch in plain for item in batch.items)


@settings(max_examples=60, deadline=None)
@given(turns=st.sets(st.integers(1, 7)), augment=st.booleans(), seed=st.integers(0, 99))
def test_flipped_items_are_drawn_only_where_all_eight_are_there(turns: set[int], augment: bool, seed: int) -> None:
    """Some of the turns are no set of turns: then the upright item is drawn, and turned after decoding."""
    groups = [
        Group(name, tuple(Variant(f"{name}{turn}", turn, 40, 40) for turn in [*sorted(turns), 0])) for name in "ab"
    ]
    sampler = Sampler(groups, Sampling(patch=32, batch=64, augment=augment, seed=seed))
    drawn = sampler.batch(0, 0)
    exact = len(turns) == VARIANTS - 1
    if not (exact and augment):
        assert {crop.item for crop in drawn} == {"a0", "b0"}
    else:
        assert len({crop.item for crop in drawn}) > 8
    assert any(crop.dihedral for crop in drawn) is (augment and not exact)
