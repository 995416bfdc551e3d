"""The least-squares base against a direct solution, for every subset, by band, streamed, and on the real experts."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import minimize

from fusion.network.base.blend import BaseBlend, BaseRecord, blur, split_bands
from fusion.network.base.fit import BORDER, CANDIDATES, BaseFit, fit_base
from imaging.refusal import Refusal
from tests.fusion.parts import REAL_EXPERTS, random_record, real_regions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

NAMES = ("a", "b", "c")


def pairs(count: int = 12, side: int = 40, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Truths, and three experts with errors that are correlated and of different size."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        hr = torch.rand(3, side, side, generator=generator)
        shared = 0.05 * torch.randn(3, side, side, generator=generator)
        own = torch.randn(3, 3, side, side, generator=generator) * torch.tensor([0.02, 0.03, 0.08])[:, None, None, None]
        yield hr + shared + own, hr


def direct_weights(errors_EN: np.ndarray) -> np.ndarray:
    """Least squares with the sum held at 1: the last weight is what the others leave."""
    others = errors_EN[:-1] - errors_EN[-1]
    free = np.linalg.lstsq(others.T, -errors_EN[-1], rcond=None)[0]
    return np.append(free, 1 - free.sum())


@pytest.mark.parametrize("subset", [s for size in (1, 2, 3) for s in combinations(range(3), size)])
def test_every_subset_has_its_own_least_squares(subset: tuple[int, ...]) -> None:
    items = list(pairs())
    inner = np.s_[..., 16:-16, 16:-16]
    errors = np.concatenate([(sr - hr).numpy()[inner].reshape(3, -1) for sr, hr in items], axis=1).astype(np.float64)
    weights = fit_base(iter(items), NAMES).solve([NAMES[i] for i in subset])
    np.testing.assert_allclose(weights[0], direct_weights(errors[list(subset)]), atol=1e-5)


def test_weights_by_band_minimise_the_error() -> None:
    record = random_record(NAMES, groups=((0,), (1, 2)))
    gram = np.array(record.gram)

    def error(free: np.ndarray) -> float:
        low, rest = np.append(free[:2], 1 - free[:2].sum()), np.append(free[2:], 1 - free[2:].sum())
        weights = np.stack([low, rest, rest], axis=1).reshape(-1)
        return float(weights @ gram @ weights)

    best = minimize(error, np.full(4, 1 / 3), tol=1e-14).x
    solved = np.array(record.solve(NAMES))
    np.testing.assert_allclose(solved[:, :2].reshape(-1), best, atol=1e-4)
    np.testing.assert_allclose(solved.sum(axis=1), 1)


def test_the_stream_is_read_once_and_in_any_dtype() -> None:
    stream = pairs(3)
    record = fit_base(stream, NAMES)
    assert next(stream, None) is None
    assert record.items == 3
    bytes_of = ((torch.round(sr.clamp(0, 1) * 255).byte(), torch.round(hr * 255).byte()) for sr, hr in pairs(3))
    floats = ((torch.round(sr.clamp(0, 1) * 255) / 255, torch.round(hr * 255) / 255) for sr, hr in pairs(3))
    np.testing.assert_allclose(fit_base(bytes_of, NAMES).gram, fit_base(floats, NAMES).gram, rtol=1e-6)


def test_bands_win_only_where_held_out_items_say_so() -> None:
    assert fit_base(pairs(20), NAMES).groups == CANDIDATES["whole"]

    def specialists() -> Iterator[tuple[Tensor, Tensor]]:
        for sr, hr in pairs(20, side=64):
            error = sr - hr
            low = blur(error, 3.0) * 4
            yield torch.stack([hr + low[0], hr + error[1] - blur(error, 3.0)[1], hr + error[2]]), hr

    record = fit_base(specialists(), NAMES)
    assert len(record.groups) > 1
    assert max(record.held_out, key=record.held_out.__getitem__) != "whole"
    assert record.held_out["whole"] > record.held_out["mean"]


def test_the_blend_is_what_was_fitted() -> None:
    sr, hr = next(pairs(1))
    for groups in CANDIDATES.values():
        record = random_record(NAMES, groups=groups)
        weights = record.solve(NAMES)
        bands = torch.stack(split_bands(sr))  # K E C H W
        expected = sum(
            weights[g][e] * bands[k, e] for g, members in enumerate(groups) for k in members for e in range(3)
        )
        torch.testing.assert_close(BaseBlend(record).blend(sr[None], NAMES)[0], expected, atol=2e-6, rtol=0)
    assert hr.shape == sr.shape[1:]


@pytest.mark.parametrize("size", [(20, 31), (1, 1), (32, 64), (33, 97), (100, 7)])
def test_bands_are_scipys_gaussians_and_sum_to_the_image(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)
    reference = image.numpy()
    for axis in (2, 3):
        reference = gaussian_filter1d(reference, 3.0, axis=axis, mode="nearest", radius=9)
    np.testing.assert_allclose(blur(image, 3.0), reference, atol=2e-6)
    torch.testing.assert_close(sum(split_bands(image)), image, atol=1e-6, rtol=0)


def test_order_copies_and_the_plain_mean() -> None:
    blend = BaseBlend(random_record(NAMES))
    straight, turned = blend.weights(NAMES)[0], blend.weights(NAMES[::-1])[0]
    assert straight == turned[::-1]
    assert BaseRecord.mean_of(NAMES).solve(("a", "c"))[0] == pytest.approx((0.5, 0.5))
    twice = fit_base(((torch.stack([sr[0], sr[0], sr[1]]), hr) for sr, hr in pairs(4)), NAMES).solve(NAMES)[0]
    assert twice[0] == pytest.approx(twice[1], abs=1e-6)
    assert sum(twice) == pytest.approx(1)


def test_the_record_survives_casts_and_the_state_dict() -> None:
    record = random_record(NAMES, groups=((0,), (1, 2)))
    blend = BaseBlend(record).half()
    other = BaseBlend(BaseRecord.mean_of(NAMES))
    other.load_state_dict(blend.state_dict())
    assert other.record == record
    assert other.weights(("c", "a")) == blend.weights(("c", "a"))


def test_refusals() -> None:
    with pytest.raises(Refusal, match="not one item"):
        BaseFit(NAMES).record()
    with pytest.raises(Refusal, match="against"):
        BaseFit(NAMES).add(torch.rand(2, 3, 40, 40), torch.rand(3, 40, 40))
    with pytest.raises(Refusal, match="border"):
        BaseFit(NAMES).add(torch.rand(3, 3, 32, 32), torch.rand(3, 32, 32))
    with pytest.raises(Refusal, match="did you mean 'a'|known"):
        BaseBlend(random_record(NAMES)).weights(("a", "x"))
    with pytest.raises(Refusal, match="not finite"):
        fit_base([(torch.full((3, 3, 40, 40), torch.nan), torch.rand(3, 40, 40))], NAMES)


def test_weights_of_the_real_experts(shared_data: Path) -> None:
    items = [(sr, hr, lr) for lr, sr, hr in real_regions(shared_data, every=3)]
    record = fit_base(items, REAL_EXPERTS)
    assert record.items == 93
    assert record.groups == CANDIDATES["whole"]  # by band it gains 0.001 dB: not worthwhile
    cut = np.s_[..., BORDER:-BORDER, BORDER:-BORDER]
    errors = [((sr.double() - hr.double()) / 255)[cut].flatten(1).numpy() for sr, hr, _ in items]
    solved = np.linalg.solve(sum(one @ one.T for one in errors), np.ones(len(REAL_EXPERTS)))
    assert record.solve(REAL_EXPERTS)[0] == pytest.approx(tuple(solved / solved.sum()), abs=1e-5)
    assert record.held_out["whole"] > max(record.held_out[name] for name in (*REAL_EXPERTS, "mean"))
    # The LR image corrects what the experts agree in getting wrong, above all how bright it is.
    assert record.held_out["back-projected"] > record.held_out["whole"] + 0.01
    assert 0.9 < record.back_projection < 1.2
    inner = np.s_[..., 16:-16, 16:-16]
    pulled, plain = BaseBlend(record), BaseBlend(record.model_copy(update={"back_projection": 0.0}))
    shifts = []
    for sr, hr, lr in items[::4]:
        images = [base(lr[None] / 255, sr[None] / 255, REAL_EXPERTS)[0] for base in (plain, pulled)]
        shifts.append([255 * (image - hr / 255)[inner].mean().item() for image in images])
    without, with_ = np.abs(np.mean(shifts, axis=0))
    assert with_ < 0.02 < 0.1 < without  # grey levels off the truth
