"""Blocks against independent references: splits against SciPy, folded convolutions, upsamplers, noise."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import nn

from experts.native.blocks.convolution import ConvGatedBlock, LocalChannelGate, PartialLargeKernel
from experts.native.blocks.multi_branch import MultiBranchConv, fold_all
from experts.native.blocks.split import FourierSplit, make_splitter
from experts.native.blocks.upsample import DySampleUp, make_upsampler
from experts.native.ssm import NoiseHead
from tests.native.parts import features


@pytest.mark.parametrize("kind", ["blur", "laplacian", "fft"])
@pytest.mark.parametrize("size", [(16, 16), (7, 10), (1, 1)])
def test_low_and_high_sum_to_the_map(kind: str, size: tuple[int, int]) -> None:
    x_BCHW = features(*size)
    low, high = make_splitter(kind)(x_BCHW)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(low + high, x_BCHW, rtol=0, atol=1e-6)
    level = torch.full((1, 2, *size), 0.7)
    torch.testing.assert_close(make_splitter(kind)(level)[0], level, rtol=0, atol=1e-6)  # pyright: ignore[reportArgumentType]


def test_the_blur_is_scipys() -> None:
    x_BCHW = features(9, 12)
    line = np.array([1, 4, 6, 4, 1]) / 16
    expected = scipy.ndimage.correlate(x_BCHW[0].numpy().astype(np.float64), np.outer(line, line)[None], mode="nearest")
    low, _ = make_splitter("blur")(x_BCHW)
    torch.testing.assert_close(low[0].double(), torch.from_numpy(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["blur", "laplacian", "fft"])
def test_slow_waves_are_low_and_fast_ones_high(kind: str) -> None:
    x = torch.arange(64)[None].expand(64, 64)
    for period, at_least, at_most in ((32, 0.9, 1.0), (2, 0.0, 0.1)):
        wave = torch.cos(2 * torch.pi * x / period)[None, None]
        low, _ = make_splitter(kind)(wave)  # pyright: ignore[reportArgumentType]
        share = float(low.detach()[..., 16:48, 16:48].norm() / wave[..., 16:48, 16:48].norm())
        assert at_least <= share <= at_most


def test_a_fourier_split_of_a_tile_is_that_of_the_image() -> None:
    x_BCHW, split = features(96, 96), FourierSplit()
    tile = split(x_BCHW[..., 16:80, 16:80])[0]
    error = (tile - split(x_BCHW)[0][..., 16:80, 16:80])[..., 16:-16, 16:-16].abs().max().detach()
    assert float(error) < 1e-3


@pytest.mark.parametrize("kernel", [3, 5, 13])
def test_folding_keeps_the_output_and_leaves_one_convolution(kernel: int) -> None:
    torch.manual_seed(0)
    conv = MultiBranchConv(16, kernel)
    x_BCHW = features(20, 17)
    with torch.no_grad():
        before = conv(x_BCHW)
        conv.fold()
        torch.testing.assert_close(conv(x_BCHW), before, rtol=0, atol=1e-5)
    assert [name for name, _ in conv.named_parameters()] == ["folded.weight", "folded.bias"]
    conv.fold()
    fresh = MultiBranchConv(16, kernel, deployed=True)
    fresh.load_state_dict(conv.state_dict())


def test_all_branches_matter_to_the_folded_kernel() -> None:
    torch.manual_seed(0)
    conv = MultiBranchConv(2, 5)
    assert conv.branches is not None
    kernels = [np.asarray(branch.weight.detach()) for branch in conv.branches]  # pyright: ignore[reportAttributeAccessIssue]
    conv.fold()
    assert conv.folded is not None
    expected = kernels[0].copy()
    expected[..., 1:4, 1:4] += kernels[1]
    expected[..., 2:3, :] += kernels[2]
    expected[..., :, 2:3] += kernels[3]
    np.testing.assert_allclose(np.asarray(conv.folded.weight.detach()), expected, atol=1e-6)


def test_a_large_kernel_touches_its_part_only() -> None:
    layer = PartialLargeKernel(24, part=16, kernel=5)
    x_BCHW = features(9, 9, 24)
    y_BCHW = layer(x_BCHW)
    assert torch.equal(y_BCHW[:, 16:], x_BCHW[:, 16:])
    assert not torch.allclose(y_BCHW[:, :16], x_BCHW[:, :16])
    assert fold_all(nn.Sequential(layer, ConvGatedBlock(16, kernel=3))) == 2


def test_a_channel_gate_looks_at_its_neighbourhood_only() -> None:
    torch.manual_seed(0)
    gate = LocalChannelGate(16)
    nn.init.normal_(gate.excite.weight)
    x_BCHW = features(64, 64)
    torch.testing.assert_close(gate(x_BCHW)[..., :40, :40], gate(x_BCHW[..., :48, :48])[..., :40, :40])
    assert gate(x_BCHW[..., :5, :11]).shape[-2:] == (5, 11)


@pytest.mark.parametrize("kind", ["pixelshuffle", "dysample", "moe"])
@pytest.mark.parametrize("scale", [2, 4])
def test_upsamplers_start_small_and_of_the_right_size(kind: str, scale: int) -> None:
    torch.manual_seed(0)
    residual, _ = make_upsampler(kind, 16, scale)(features(6, 5))  # pyright: ignore[reportArgumentType]
    assert residual.shape == (1, 3, 6 * scale, 5 * scale)
    assert 0 < float(residual.detach().std()) < 0.15


def test_dysample_without_offsets_is_bilinear_enlargement() -> None:
    up = DySampleUp(16, 4)
    nn.init.zeros_(up.offset.weight)
    x_BCHW = features(6, 5)
    thin = F.interpolate(up.narrow(x_BCHW), scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(up(x_BCHW)[0], up.to_image(thin), rtol=0, atol=1e-5)


def test_noise_is_low_and_the_same_every_time_in_eval() -> None:
    head = NoiseHead(16, amplitude=0.1)
    nn.init.constant_(head.strength, 10.0)
    x_BCHW = torch.zeros(1, 16, 32, 32)
    assert float(head(x_BCHW).std()) == pytest.approx(0.1, rel=0.1)
    assert not torch.equal(head(x_BCHW), head(x_BCHW))
    head.eval()
    state = torch.get_rng_state()
    assert torch.equal(head(x_BCHW), head(x_BCHW))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(NoiseHead(16, 0.1, seed=1).eval()(x_BCHW), NoiseHead(16, 0.1).eval()(x_BCHW))


def test_dropped_paths_leave_the_input() -> None:
    block = ConvGatedBlock(16, drop_path=0.999)
    torch.manual_seed(0)
    x_BCHW = features(4, 4)
    assert torch.equal(block(x_BCHW), x_BCHW)
    assert not torch.equal(block.eval()(x_BCHW), x_BCHW)
