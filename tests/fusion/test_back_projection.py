"""Back-projection: it asks only what the LR image proves, where tiles agree, as strongly as held-out items allow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.network.base.back_projection import back_project, enlarge, missing, shrink
from fusion.network.base.fit import fit_base
from imaging.resize import downscale, downscale_8bit

NAMES = ("a", "b")


def truths(count: int, side: int = 64, seed: int = 0) -> list[torch.Tensor]:
    """Smooth colour images with some texture, inside [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0.05, 0.95)
    texture = 0.04 * torch.randn(count, 3, side, side, generator=generator)
    return list((smooth + texture).clamp(0, 1))


@settings(max_examples=15, deadline=None)
@given(st.integers(8, 20), st.integers(8, 20), st.integers(0, 99))
def test_the_truth_itself_is_left_alone(height: int, width: int, seed: int) -> None:
    truth = 2 * torch.rand(1, 3, 4 * height, 4 * width, generator=torch.Generator().manual_seed(seed)) - 0.5
    lr = downscale(truth, 4).clamp(0, 1)  # clipped here and there, as files are
    assert missing(truth, lr).abs().max() < 1e-6
    torch.testing.assert_close(back_project(truth, lr, 1.0), truth, atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20))
def test_its_downscale_is_the_one_of_imaging(height: int, width: int) -> None:
    image = torch.rand(2, 3, 4 * height, 4 * width, dtype=torch.float64)
    torch.testing.assert_close(shrink(image), downscale(image, 4), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("level", "sign"), [(0.0, -1.0), (1.0, 1.0)])
def test_a_clipped_pixel_binds_from_one_side(level: float, sign: float) -> None:
    lr = torch.full((1, 3, 10, 10), level)
    beyond, short = torch.full((1, 3, 40, 40), level + 0.2 * sign), torch.full((1, 3, 40, 40), level - 0.2 * sign)
    assert not missing(beyond, lr).any()
    inside = missing(short, lr)[..., 1:-1, 1:-1]
    torch.testing.assert_close(inside, torch.full_like(inside, 0.2 * sign))


def test_a_tile_agrees_with_the_whole_but_for_its_rim() -> None:
    truth = truths(1, 128)[0][None]
    lr = downscale_8bit(truth, 4)
    image = truth + 0.05 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(3))
    whole = back_project(image, lr, 1.0)
    tile = back_project(image[..., 32:96, 32:96], lr[..., 8:24, 8:24], 1.0)
    rim = 4 * 4  # the ring itself, the pixel within it that still sees the edge, and the enlargement's reach
    torch.testing.assert_close(tile[..., rim:-rim, rim:-rim], whole[..., 32 + rim : 96 - rim, 32 + rim : 96 - rim])


def test_the_fitted_strength_is_the_direct_solution() -> None:
    generator = torch.Generator().manual_seed(1)
    items = []
    for truth in truths(12):
        lr = downscale_8bit(truth[None], 4)[0]
        shift = 0.02 * torch.randn(2, 3, 1, 1, generator=generator)
        noise = 0.02 * torch.randn(2, *truth.shape, generator=generator)
        items.append((truth + shift + noise, truth, lr))
    record = fit_base(items, NAMES)
    weights = torch.tensor(record.solve(NAMES)[0])[:, None, None, None]
    pulls, errors = [], []
    for sr, hr, lr in items:
        blend = (weights * sr).sum(0)
        lack = lr - downscale(blend[None], 4)[0]
        lack = torch.where((lr > 0) & (lr < 1), lack, 0.0)
        lack[:, [0, -1]] = lack[:, :, [0, -1]] = 0
        pulls.append(enlarge(lack[None])[0, :, 16:-16, 16:-16].flatten())
        errors.append((hr - blend)[:, 16:-16, 16:-16].flatten())
    pull, error = torch.cat(pulls).double().numpy(), torch.cat(errors).double().numpy()
    direct = np.linalg.lstsq(pull[:, None], error, rcond=None)[0][0]
    assert record.back_projection == pytest.approx(direct, abs=1e-4)
    assert record.held_out["back-projected"] > record.held_out["whole"] + 1


def test_experts_that_know_better_than_the_lr_image_are_left_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    items = []
    for truth in truths(12):
        noisy = downscale_8bit(truth[None], 4)[0] + 0.1 * torch.randn(3, 16, 16, generator=generator)
        items.append((truth + 0.01 * torch.randn(2, *truth.shape, generator=generator), truth, noisy))
    record = fit_base(items, NAMES)
    assert record.back_projection < 0.05
    assert fit_base([item[:2] for item in items], NAMES).back_projection == 0
