"""Phase 2 against SciPy's DCT, PyWavelets and NumPy's FFT; its laws for images of any size."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import pywt
import scipy.fft
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.network.bands.bands import FrequencyBands
from fusion.network.bands.dct import DctBands, blocks_of, zigzag_positions
from fusion.network.bands.dwt import DwtBands
from fusion.network.bands.fft import FftBands
from fusion.network.bands.masks import AdaptiveCuts, soft_masks
from fusion.network.settings import BandsSettings

SIZES = [(8, 8), (9, 16), (13, 21), (16, 11)]


def image(height: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_dct_coefficients_are_scipys() -> None:
    x = image(16, 24)
    ours = DctBands(50.0).coefficients(x)  # B C y u x v
    blocks = blocks_of(x).permute(0, 1, 2, 4, 3, 5).numpy()
    reference = np.asarray(scipy.fft.dctn(blocks, axes=(-2, -1), norm="ortho"))
    np.testing.assert_allclose(ours.permute(0, 1, 2, 4, 3, 5), reference, atol=2e-6)


def test_zigzag_is_jpegs() -> None:
    # ITU-T T.81, figure 5: the first two rows of the zigzag's ranks.
    ranks = (zigzag_positions() * 63).round().int().tolist()
    assert ranks[0] == [0, 1, 5, 6, 14, 15, 27, 28]
    assert ranks[1] == [2, 4, 7, 13, 16, 26, 29, 42]
    assert ranks[7] == [35, 36, 48, 49, 57, 58, 62, 63]


def test_dct_bands_are_scipys_with_the_same_masks() -> None:
    x, bands = image(16, 16), DctBands(50.0)
    masks = soft_masks(bands.zigzag_UV, bands.cuts(x), 50.0)
    blocks = blocks_of(x).permute(0, 1, 2, 4, 3, 5).numpy()
    for band, mask in zip(bands(x), masks, strict=True):
        kept = scipy.fft.dctn(blocks, axes=(-2, -1), norm="ortho") * mask.detach().numpy()[:, None, None, None]
        reference = np.asarray(scipy.fft.idctn(kept, axes=(-2, -1), norm="ortho"))
        reference = reference.transpose(0, 1, 2, 4, 3, 5).reshape(x.shape)
        np.testing.assert_allclose(band.detach(), reference, atol=3e-6)


@pytest.mark.parametrize("wavelet", ["haar", "db4"])
@pytest.mark.parametrize("size", SIZES)
def test_dwt_bands_are_pywavelets(wavelet: str, size: tuple[int, int]) -> None:
    x = image(*size)
    approximation, (horizontal, vertical, diagonal) = pywt.dwt2(x.numpy(), wavelet, mode="symmetric", axes=(2, 3))
    none = np.zeros_like(approximation)
    parts = [
        (approximation, (none, none, none)),
        (none, (horizontal, vertical, none)),
        (none, (none, none, diagonal)),
    ]
    for band, part in zip(DwtBands(wavelet)(x), parts, strict=True):
        reference = pywt.idwt2(part, wavelet, mode="symmetric", axes=(2, 3))[..., : size[0], : size[1]]
        np.testing.assert_allclose(band, reference, atol=3e-6)


@pytest.mark.parametrize("size", SIZES)
def test_fft_bands_are_numpys(size: tuple[int, int]) -> None:
    x, bands = image(*size), FftBands(50.0)
    y, z = np.meshgrid(np.fft.fftfreq(size[0]), np.fft.fftfreq(size[1]), indexing="ij")
    radius = np.hypot(y, z) / np.hypot(0.5, 0.5)
    lower, upper = (cut.detach().numpy()[:, None, None] for cut in bands.cuts(x))
    low = 1 / (1 + np.exp(-50 * (lower - radius)))
    high = 1 / (1 + np.exp(-50 * (radius - upper)))
    spectrum = np.fft.fft2(x.numpy())
    for band, mask in zip(bands(x), (low, 1 - low - high, high), strict=True):
        reference = np.fft.ifft2(spectrum * mask[:, None]).real
        np.testing.assert_allclose(band.detach(), reference, atol=3e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(8, 33), st.integers(8, 33), st.integers(0, 99), st.sampled_from(["haar", "db4"]))
def test_bands_of_each_transform_sum_to_the_image(
    height: int, width: int, seed: int, wavelet: Literal["haar", "db4"]
) -> None:
    torch.manual_seed(seed)
    model = FrequencyBands(BandsSettings(wavelet=wavelet))
    x = image(height, width, seed)
    sums = model.decompose(x).unflatten(1, (3, 3)).sum(dim=2)
    torch.testing.assert_close(sums, x.unsqueeze(1).expand_as(sums), atol=2e-6, rtol=0)


@given(st.floats(-8, 8), st.floats(-8, 8), st.floats(1, 200))
def test_masks_are_a_partition_of_unity(first: float, second: float, temperature: float) -> None:
    cuts = AdaptiveCuts(start=(0.1, 0.4))
    with torch.no_grad():
        cuts.cuts.bias.copy_(torch.tensor([first, second]))
    low, mid, high = soft_masks(torch.linspace(0, 1, 65), cuts(image(8, 8)), temperature)
    torch.testing.assert_close(low + mid + high, torch.ones_like(low))
    assert min(band.min().item() for band in (low, mid, high)) >= -1e-6


def test_cuts_start_where_told_and_follow_the_image() -> None:
    torch.manual_seed(0)
    cuts = AdaptiveCuts(start=(0.2, 0.5))
    lower, upper = cuts(image(8, 8))
    torch.testing.assert_close(lower, torch.full((2,), 0.2), atol=0.03, rtol=0)
    torch.testing.assert_close(upper, torch.full((2,), 0.5), atol=0.03, rtol=0)
    assert not torch.equal(lower, cuts(image(8, 8) * 0.5)[0])


def test_the_mean_lies_in_the_low_bands() -> None:
    flat = torch.full((1, 3, 12, 17), 0.7)
    bands = FrequencyBands(BandsSettings()).decompose(flat).unflatten(1, (3, 3))
    torch.testing.assert_close(bands[:, :, 0], flat.unsqueeze(1).expand(-1, 3, -1, -1, -1), atol=0.01, rtol=0)


def test_rings_turn_and_mirror_with_the_image() -> None:
    x, rings = image(12, 15), FftBands(50.0)
    for turn in (lambda t: t.flip(-1), lambda t: t.flip(-2), lambda t: t.rot90(1, (-2, -1))):
        for straight, turned in zip(rings(x), rings(turn(x)), strict=True):
            torch.testing.assert_close(turn(straight), turned, atol=2e-6, rtol=0)


@pytest.mark.parametrize("bands", [DctBands(50.0), DwtBands("haar"), DwtBands("db4"), FftBands(50.0)])
def test_gradients_in_float64(bands: torch.nn.Module) -> None:
    x = image(9, 10, dtype=torch.float64)[:1].requires_grad_()
    try:
        assert torch.autograd.gradcheck(lambda t: tuple(bands.double()(t)), (x,), fast_mode=True)
    finally:
        bands.float()


def test_bands_stay_float32_under_autocast() -> None:
    model, x = FrequencyBands(BandsSettings()), image(12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        inside = model(x)
        half = model(x.bfloat16())
    assert inside.bands_BKCHW.dtype == half.guidance_BGHW.dtype == torch.float32
    assert torch.equal(inside.guidance_BGHW, model(x).guidance_BGHW)
