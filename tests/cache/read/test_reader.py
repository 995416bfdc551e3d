"""Patches and whole items: cut at one place from all, decoded right, as the experts gave them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.read.batch import PatchBatch, Slice, dequantize
from cache_tools.read.dataset import CacheDataset
from cache_tools.read.reader import CacheReader, iterate_items, split_items
from imaging.dihedral import VARIANTS, transform, undo
from imaging.refusal import Refusal
from tests.cache.parts import SIZES, command, experts, make_cache, write_images
from tests.cache.read.parts import same, take

if TYPE_CHECKING:
    from pathlib import Path

    from cache_tools.read.batch import FusionBatch


def place_of(patch: torch.Tensor, image: torch.Tensor) -> list[tuple[int, int]]:
    """Every place in an image where a patch is found, by sliding over all of it."""
    windows = image.unfold(1, patch.shape[-2], 1).unfold(2, patch.shape[-1], 1)
    equal = (windows == patch[:, None, None]).flatten(3).all(3).all(0)
    return [(int(y), int(x)) for y, x in equal.nonzero()]


@pytest.mark.parametrize("grid", [1, 8, 32])
@pytest.mark.parametrize("patch", [32, 40])
def test_patches_are_cut_at_one_place_from_all(cache: Path, patch: int, grid: int) -> None:
    """Found by brute force in the whole LR, the same place must hold in HR, SR and features, turned alike."""
    whole: dict[str, FusionBatch] = {item.items[0]: item for item in iterate_items(cache)}
    source = CacheDataset(cache, patch=patch, grid=grid, batch=3, seed=grid)
    turns: set[int] = set()
    for stored in take(source, 4):
        batch = dequantize(stored)
        assert batch.hr_BCHW is not None
        for number, item in enumerate(stored.items):
            turn = int(stored.dihedral_B[number])
            turns.add(turn)
            image = whole[item]
            assert image.hr_BCHW is not None
            places = place_of(undo(batch.lr_BCHW[number], turn), image.lr_BCHW[0])
            assert len(places) == 1
            ((top, left),) = places
            last = [side - patch for side in image.lr_BCHW.shape[-2:]]
            assert all(at % grid == 0 or at == end for at, end in zip((top, left), last, strict=True))
            small = (..., slice(top, top + patch), slice(left, left + patch))
            large = (..., slice(4 * top, 4 * (top + patch)), slice(4 * left, 4 * (left + patch)))
            assert torch.equal(batch.hr_BCHW[number], transform(image.hr_BCHW[0][large], turn))
            assert torch.equal(batch.sr_BECHW[number], transform(image.sr_BECHW[0][large], turn))
            for name in batch.feats:
                wanted = transform(image.feats[name][0][small], turn)
                torch.testing.assert_close(batch.feats[name][number], wanted, rtol=1e-5, atol=1e-5)
    assert len(turns) > 3


def test_numpy_undoes_what_transform_does() -> None:
    image = torch.arange(24).reshape(1, 4, 6)
    seen = set()
    for variant in range(VARIANTS):
        turned = transform(image, variant)
        mirrored = np.flip(image.numpy(), -1) if variant >= 4 else image.numpy()
        assert np.array_equal(turned.numpy(), np.rot90(mirrored, variant % 4, (-2, -1)))
        assert torch.equal(undo(turned, variant), image)
        seen.add(str(turned.tolist()))
    assert len(seen) == VARIANTS


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(0, 31), st.integers(0, 31), st.integers(0, 7))
def test_dequantize_finds_each_pixels_tile(patch: int, top: int, left: int, turn: int) -> None:
    rng = np.random.default_rng(patch)
    tiles = (patch + 62) // 32
    codes = rng.integers(0, 256, (1, 2, patch, patch), np.uint8)
    scales = rng.normal(size=(1, tiles, tiles, 2, 2)).astype(np.float32)
    image = torch.zeros(1, 3, patch, patch, dtype=torch.uint8)
    large = torch.zeros(1, 1, 3, 4 * patch, 4 * patch, dtype=torch.uint8)
    batch = PatchBatch(
        lr_BCHW=image,
        hr_BCHW=large[:, 0],
        sr_BECHW=large,
        feats_BCHW=torch.from_numpy(codes),
        scale_BTTC2=torch.from_numpy(scales),
        origin_B2=torch.tensor([[top, left]]),
        dihedral_B=torch.tensor([turn]),
        slices=(Slice("e", 0, 2),),
        items=("x",),
        epoch=0,
        step=0,
    )
    wanted = np.empty((2, patch, patch), np.float32)
    for y in range(patch):
        for x in range(patch):
            pair = scales[0, (top + y) // 32, (left + x) // 32]
            wanted[:, y, x] = codes[0, :, y, x] * pair[:, 0] + pair[:, 1]
    found = dequantize(batch).feats["e"][0]
    torch.testing.assert_close(found, transform(torch.from_numpy(wanted), turn), rtol=1e-5, atol=1e-4)


def test_the_stored_batch_is_not_changed_by_decoding(cache: Path) -> None:
    (stored,) = take(CacheDataset(cache, patch=32, batch=2, augment=False), 1)
    (again,) = take(CacheDataset(cache, patch=32, batch=2, augment=False), 1)
    first, second = dequantize(stored), dequantize(stored)
    assert same(stored, again)
    assert all(torch.equal(first.feats[name], second.feats[name]) for name in first.feats)


def test_experts_are_chosen_and_ordered(cache: Path) -> None:
    (both,) = take(CacheDataset(cache, patch=32, batch=2), 1)
    (turned,) = take(CacheDataset(cache, patch=32, batch=2, experts=["e1", "e0"]), 1)
    (single,) = take(CacheDataset(cache, patch=32, batch=2, experts=["e1"]), 1)
    a, b, c = dequantize(both), dequantize(turned), dequantize(single)
    assert (a.experts, b.experts, c.experts) == (("e0", "e1"), ("e1", "e0"), ("e1",))
    assert torch.equal(a.sr_BECHW.flip(1), b.sr_BECHW)
    assert torch.equal(a.sr_BECHW[:, 1:], c.sr_BECHW)
    assert all(torch.equal(a.feats[name], b.feats[name]) for name in a.feats)
    assert torch.equal(a.feats["e1"], c.feats["e1"])
    for item, other in zip(iterate_items(cache), iterate_items(cache, experts=["e1"]), strict=True):
        assert torch.equal(item.feats["e1"], other.feats["e1"])
        assert torch.equal(item.sr_BECHW[:, 1:], other.sr_BECHW)
    with pytest.raises(Refusal, match="no expert 'e2'; known: e0, e1"):
        CacheReader(cache, experts=["e2"])


def test_features_can_be_left_unread(cache: Path) -> None:
    (batch,) = take(CacheDataset(cache, patch=32, batch=2, features=False), 1)
    assert batch.feats_BCHW is None
    assert dequantize(batch).feats == {}
    assert next(iterate_items(cache, features=False)).feats == {}


@pytest.mark.parametrize("profile", ["half", "lossless", "images"])
def test_every_profile_is_read(tmp_path: Path, profile: str) -> None:
    root = make_cache(tmp_path, [(64, 64)], profile=profile)
    item = next(iterate_items(root))
    batch = dequantize(take(CacheDataset(root, patch=64, batch=1, augment=False), 1)[0])
    assert torch.equal(batch.sr_BECHW, item.sr_BECHW)
    assert set(batch.feats) == set(item.feats) == (set() if profile == "images" else {"e0", "e1"})
    assert all(torch.equal(batch.feats[name], item.feats[name]) for name in item.feats)


def test_items_smaller_than_a_patch_are_refused_or_left_out(cache: Path) -> None:
    with pytest.raises(Refusal, match="1 item.*smaller than a patch of 64"):
        CacheDataset(cache, patch=64)
    (batch,) = take(CacheDataset(cache, patch=64, batch=4, leave_out_small=True), 1)
    assert {item[0] for item in batch.items} == {"a", "b"}


def test_no_cache_no_items_no_such_item(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(Refusal, match="is not a cache"):
        CacheReader(tmp_path)
    with pytest.raises(Refusal, match="no item 'zebra'"):
        CacheReader(cache, items=["zebra"])
    root = make_cache(tmp_path, [(16, 16)])
    next(root.glob("items/*/*.h5")).unlink()
    with pytest.raises(Refusal, match="holds no items"):
        CacheReader(root)


def test_splits_never_part_an_image(tmp_path: Path) -> None:
    root = make_cache(tmp_path, [(70, 70)] * 5, regions=2, region_size=32)
    entries = CacheReader(root).entries
    train, held = split_items(entries, 0.4)
    assert sorted(train + held) == sorted(entry.id for entry in entries)
    assert len({name[0] for name in held}) == 2
    assert not {name[0] for name in held} & {name[0] for name in train}
    assert split_items(entries, 0.4) == (train, held)
    assert len({tuple(split_items(entries, 0.4, seed=seed)[1]) for seed in range(8)}) > 2


def test_patches_are_what_the_experts_give(tmp_path: Path) -> None:
    """Beside the experts run on whole images; a turned patch holds their answer turned, not that to a turned input."""
    root = make_cache(tmp_path, SIZES, profile="lossless")
    nets = experts(tmp_path / "weights")
    images = {item.items[0]: item.lr_BCHW for item in iterate_items(root)}
    stored = take(CacheDataset(root, patch=32, batch=6, seed=4), 1)[0]
    batch = dequantize(stored)
    differs: list[bool] = []
    for number, item in enumerate(stored.items):
        turn = int(stored.dihedral_B[number])
        ((top, left),) = place_of(undo(batch.lr_BCHW[number], turn), images[item][0])
        small = (0, ..., slice(top, top + 32), slice(left, left + 32))
        large = (0, ..., slice(4 * top, 4 * top + 128), slice(4 * left, 4 * left + 128))
        for index, expert in enumerate(nets):
            plain, turned = expert.run(images[item]), expert.run(transform(images[item], turn))
            assert plain.feat_BCHW is not None
            wanted = transform(plain.sr_BCHW[large], turn)
            torch.testing.assert_close(batch.sr_BECHW[number, index], wanted, rtol=0, atol=1e-5)
            feats = transform(plain.feat_BCHW[small], turn)
            torch.testing.assert_close(batch.feats[expert.name][number], feats, rtol=0, atol=1e-3)
            exact = transform(undo(turned.sr_BCHW, turn)[large], turn)
            differs.append(bool((exact - wanted).abs().max() > 1e-4))
            assert differs[-1] == (turn != 0)
    assert any(differs)
    assert not all(differs)


def test_folders_of_images_come_back_as_they_are(tmp_path: Path) -> None:
    hr = write_images(tmp_path / "hr")
    assert command("import-images", "--hr", hr, "--out", tmp_path / "c", f"truth={hr}") == 0
    batch = dequantize(take(CacheDataset(tmp_path / "c", patch=32, batch=3, seed=4), 1)[0])
    assert batch.hr_BCHW is not None
    assert torch.equal(batch.sr_BECHW[:, 0], batch.hr_BCHW)
