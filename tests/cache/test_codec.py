"""Quantisation against NumPy, tile by tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cache_tools.format.codec import decode_image, dequantize_whole, encode_features, encode_sr, quantize
from cache_tools.format.schema import PROFILES, TILE
from imaging.refusal import Refusal
from tests.cache.parts import dequantized_by_hand


def test_every_tile_uses_its_own_256_steps() -> None:
    feat = np.random.default_rng(0).normal(size=(5, 70, 45)).astype(np.float32) * 7 + 3
    codes, scales = (part.numpy() for part in quantize(torch.from_numpy(feat)))
    assert codes.shape == feat.shape
    assert scales.shape == (3, 2, 5, 2)
    for y in range(3):
        for x in range(2):
            tile = feat[:, 32 * y : 32 * y + 32, 32 * x : 32 * x + 32]
            low, high = tile.min((1, 2)), tile.max((1, 2))
            np.testing.assert_allclose(scales[y, x, :, 0], (high - low) / 255, rtol=1e-6)
            np.testing.assert_array_equal(scales[y, x, :, 1], low)
            steps = (tile - low[:, None, None]) / ((high - low) / np.float32(255))[:, None, None]
            found = codes[:, 32 * y : 32 * y + 32, 32 * x : 32 * x + 32]
            assert np.abs(found - steps).max() <= 0.501
            assert found.min() == 0
            assert found.max() == 255


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)),
        elements=st.floats(-1e4, 1e4, width=32),
    )
)
def test_no_value_moves_by_more_than_half_a_step(feat: np.ndarray) -> None:
    codes, scales = quantize(torch.from_numpy(feat))
    back = dequantize_whole(codes, scales).numpy()
    np.testing.assert_allclose(back, dequantized_by_hand(codes.numpy(), scales.numpy()), rtol=1e-5, atol=1e-2)
    step = scales.numpy()[..., 0].max((0, 1))[:, None, None]
    # A range so small that a 255th of it is no normal float32 any more counts as nought.
    rounding = 1e-6 * np.abs(feat).max() + 255 * np.finfo(np.float32).tiny
    assert (np.abs(back - feat) <= 0.5001 * step + rounding).all()


def test_constant_features_come_back_exactly() -> None:
    feat = torch.full((2, 40, 40), -3.25)
    assert torch.equal(dequantize_whole(*quantize(feat)), feat)


def test_half_refuses_what_it_cannot_hold_and_lossless_keeps_it() -> None:
    feat = torch.full((1, 4, 4), 70000.0)
    with pytest.raises(Refusal, match="16-bit"):
        encode_features(feat, PROFILES["half"], where="x")
    assert torch.equal(encode_features(feat, PROFILES["lossless"], where="x")[0], feat)


def test_images_are_rounded_once_and_clamped_or_kept() -> None:
    sr = torch.tensor([[[-0.2, 0.5, 1.3, 0.1]]]).expand(3, 1, 4)
    assert encode_sr(sr, PROFILES["compact"], where="x")[0, 0].tolist() == [0, 128, 255, 26]
    assert torch.equal(encode_sr(sr, PROFILES["lossless"], where="x"), sr)
    for profile in PROFILES.values():
        with pytest.raises(Refusal):
            encode_sr(sr * float("nan"), profile, where="x")


@pytest.mark.parametrize("value", [65504.0, -65504.0, 70000.0, -70000.0])
def test_half_holds_up_to_its_largest(value: float) -> None:
    feat = torch.zeros(2, 3, 3)
    feat[1, 2, 0] = value
    if abs(value) <= 65504:
        stored, scales = encode_features(feat, PROFILES["half"], where="x")
        assert (stored.dtype, scales) == (torch.float16, None)
        assert torch.equal(stored.float(), feat)
    else:
        with pytest.raises(Refusal, match="x: features exceed what 16-bit"):
            encode_features(feat, PROFILES["half"], where="x")


def test_each_profile_has_its_types() -> None:
    feat, image = torch.rand(2, 40, 40, dtype=torch.float64), torch.rand(3, 8, 8, dtype=torch.float64)
    codes, scales = encode_features(feat, PROFILES["compact"], where="x")
    assert scales is not None
    assert (codes.dtype, scales.dtype, tuple(scales.shape)) == (torch.uint8, torch.float32, (2, 2, 2, 2))
    assert dequantize_whole(codes, scales).dtype == torch.float32
    whole, none = encode_features(feat, PROFILES["lossless"], where="x")
    assert (whole.dtype, none) == (torch.float32, None)
    kept = encode_sr(image, PROFILES["lossless"], where="x")
    assert kept.dtype == torch.float32
    with pytest.raises(Refusal, match="x: .*NaN or infinity"):
        encode_sr(image / 0, PROFILES["lossless"], where="x")
    assert decode_image(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert decode_image(kept) is not None and torch.equal(decode_image(kept), kept)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 99))
def test_codes_are_the_nearest_of_256_steps(height: int, width: int, seed: int) -> None:
    """Tile by tile in NumPy; at the edges only pixels that exist decide the range."""
    feat = np.random.default_rng(seed).normal(size=(2, height, width)).astype(np.float32)
    codes, scales = (part.numpy() for part in quantize(torch.from_numpy(feat)))
    assert (codes.dtype, codes.shape, scales.dtype) == (np.uint8, feat.shape, np.float32)
    for y, x in np.ndindex(scales.shape[:2]):
        here = np.s_[:, TILE * y : TILE * (y + 1), TILE * x : TILE * (x + 1)]
        low, high = feat[here].min((1, 2)), feat[here].max((1, 2))
        scale = (high - low) / np.float32(255)
        np.testing.assert_allclose(scales[y, x], np.stack([scale, low], -1), rtol=1e-6)
        step = np.where(scale > 0, scale, 1)[:, None, None]
        assert np.abs(codes[here] - (feat[here] - low[:, None, None]) / step).max() <= 0.501
    assert scales.shape == (-(-height // TILE), -(-width // TILE), 2, 2)
