"""Samples of a step: shares of processes, random streams, aligned crops, augmentations, images held out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fusion.training.settings import AugmentSettings, hold_out_cure
from fusion.training.sources.augment import Augmentation, dihedral
from fusion.training.sources.folder import FolderSource, held_out_indices
from fusion.training.sources.sampling import Purpose, draw, samples_of_step
from imaging.refusal import Refusal
from imaging.resize import downscale
from tests.training.parts import expert_settings, write_pictures


@given(st.integers(0, 1000), st.integers(1, 8), st.integers(1, 4))
def test_processes_share_the_samples_of_a_step(step, part, world):
    shares = [list(samples_of_step(step, part * world, rank, world)) for rank in range(world)]
    assert [one for share in shares for one in share] == list(samples_of_step(step, part * world))


def test_streams_of_random_numbers_do_not_meet():
    drawn = {
        tuple(draw(seed, purpose, place).integers(2**60, size=2))
        for seed in (0, 1)
        for purpose in Purpose
        for place in (0, 1)
    }
    assert len(drawn) == 2 * len(Purpose) * 2


def test_crops_are_aligned_and_never_from_held_out_images(tmp_path):
    folder = write_pictures(tmp_path / "hr")
    source = FolderSource(expert_settings(folder, tmp_path / "run"))
    held = {batch.items[0] for batch in source.held_out()}
    assert len(held) == 2
    for step in range(8):
        batch = source.finish(source.draw(step), torch.device("cpu"))
        assert not held & set(batch.items)
        assert batch.lr_BCHW.shape == (4, 3, 8, 8) and batch.hr_BCHW.shape == (4, 3, 32, 32)
        inner = slice(2, -2)  # further out, the crop's own downscale lacks the whole image's context
        apart = (downscale(batch.hr_BCHW) - batch.lr_BCHW)[..., inner, inner].abs().max()
        assert float(apart) < 1.01 / 255


@pytest.mark.parametrize("name", ["jitter", "crop_scale", "mixup"])
def test_augmented_pairs_still_belong_together(name):
    rng = torch.Generator().manual_seed(1)
    smooth = torch.nn.functional.interpolate(
        torch.rand(4, 3, 6, 6, generator=rng), size=(128, 128), mode="bicubic"
    ).clamp(0.4, 0.6)
    hr = (smooth * 255).round().byte()
    lr = (downscale(smooth) * 255).round().byte()
    augmentation = Augmentation(AugmentSettings(**{name: 1.0}), seed=3, live=True)
    pairs = [augmentation.sample(lr[i], hr[i], 16 if name == "crop_scale" else 32, i) for i in range(4)]
    lr_out, hr_out = augmentation.batch(
        torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs]), range(4)
    )
    lr_out, hr_out = (x.float() / 255 if x.dtype == torch.uint8 else x for x in (lr_out, hr_out))
    assert hr_out.shape[-1] == 4 * lr_out.shape[-1]
    assert float((downscale(hr_out) - lr_out).abs().max()) < 0.01
    if name != "crop_scale":
        assert float((hr_out - torch.stack([p[1] for p in pairs]).float()).abs().max()) > 0.02 or name == "jitter"


def test_blur_and_cutblur_change_only_the_input():
    hr = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    lr = downscale(hr)
    for name in ("blur", "cutblur"):
        augmentation = Augmentation(AugmentSettings(flip=False, rotate=False, **{name: 1.0}), seed=3, live=True)
        pairs = [augmentation.sample(lr[i], hr[i], 16, i) for i in range(2)]
        lr_out, hr_out = augmentation.batch(
            torch.stack([p[0] for p in pairs]), torch.stack([p[1] for p in pairs]), range(2)
        )
        assert torch.equal(hr_out, hr)
        assert not torch.equal(lr_out, lr)


def test_the_eight_orientations_are_different_and_alike_at_both_sizes():
    hr = torch.rand(3, 16, 16)
    lr = downscale(hr[None])[0]
    seen = {dihedral(hr, flip, turns).numpy().tobytes() for flip in (False, True) for turns in range(4)}
    assert len(seen) == 8
    for flip in (False, True):
        for turns in range(4):
            torch.testing.assert_close(downscale(dihedral(hr, flip, turns)[None])[0], dihedral(lr, flip, turns))


@given(st.integers(2, 500), st.integers(1, 200), st.none() | st.integers(0, 99))
def test_held_out_images_are_distinct(count, hold_out, seed):
    names = [f"{index}.png" for index in range(count)]
    if hold_out * 2 > count:
        with pytest.raises(Refusal):
            held_out_indices(names, hold_out, seed)
        value = hold_out_cure(count).partition("data.hold_out=")[2].partition(";")[0]  # what the line names works
        assert not value if count < 4 else len(held_out_indices(names, int(value), seed)) >= 2
        return
    found = held_out_indices(names, hold_out, seed)
    assert found == sorted(found) == held_out_indices(names, hold_out, seed)
    assert len(set(found)) == hold_out and min(found) >= 0 and max(found) < count


def test_images_are_held_out_evenly_or_by_a_seed():
    names = [f"{index}.png" for index in range(100)]
    assert held_out_indices(names, 4) == [12, 37, 62, 87]
    assert len({tuple(held_out_indices(names, 4, seed)) for seed in range(9)}) == 9
    more = [*names[:50], "new.png", *names[50:]]
    kept = {names[index] for index in held_out_indices(names, 20, 1)}
    assert len(kept & {more[index] for index in held_out_indices(more, 20, 1)}) >= 19


def test_a_folder_holds_out_what_the_seed_says(tmp_path):
    folder = write_pictures(tmp_path / "hr", 12)

    def held(**data):
        shared = {"hr": [str(folder)], "patch": 8, "batch": 2, "hold_out": 3}
        source = FolderSource(expert_settings(folder, tmp_path / "run", data={**shared, **data}))
        return [item for batch in source.held_out() for item in batch.items]

    assert held() == held() != held(hold_out_seed=5) == held(hold_out_seed=5)
