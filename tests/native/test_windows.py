"""Window and linear attention against brute force over pixels; flat windows that are skipped; the norm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experts.native.blocks.window_attention import LinearMixer, WindowAttention, WindowBlock
from experts.native.blocks.windows import busy_windows, cut_windows, from_windows, to_windows
from imaging.layers import ChannelNorm
from tests.native.parts import features


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 13), st.integers(1, 13), st.sampled_from([2, 4, 5]), st.booleans())
def test_windows_are_put_back_where_they_were(height: int, width: int, window: int, shifted: bool) -> None:
    x_BCHW = features(height, width, batch=2)
    shift = window // 2 if shifted else 0
    there = to_windows(x_BCHW, window, shift)
    assert torch.equal(from_windows(there, (height, width), window, shift), x_BCHW)


@pytest.mark.parametrize(
    ("height", "width", "shifted"),
    [(8, 8, False), (8, 12, True), (7, 10, True), (3, 5, False), (1, 1, True), (15, 9, True)],
)
def test_attention_equals_a_brute_force_over_pixels(height: int, width: int, shifted: bool) -> None:
    """A pixel sees exactly those whose window it shares on the plane, cut at the shifted grid: no roll, no padding."""
    torch.manual_seed(0)
    window, channels = 4, 32
    layer = WindowAttention(channels, window=window, shifted=shifted).double()
    nn.init.normal_(layer.position_bias)
    x_BCHW, context_BCHW = (features(height, width, channels, seed=seed).double() for seed in (0, 1))
    tokens, context = x_BCHW[0].flatten(1).T, context_BCHW[0].flatten(1).T
    query, key, value = layer.query(tokens), *layer.key_value(context).chunk(2, dim=-1)
    shift = window // 2 if shifted else 0
    expected = torch.zeros(channels, height, width, dtype=torch.float64)
    for i in range(height * width):
        y, x = divmod(i, width)
        cell = ((y - shift) // window, (x - shift) // window)
        seen = [j for j in range(height * width)
                if ((j // width - shift) // window, (j % width - shift) // window) == cell]  # fmt: skip
        heads = []
        for head in range(2):
            part = slice(16 * head, 16 * head + 16)
            score = query[i, part] @ key[seen][:, part].T / 4
            rows = [(y - j // width + window - 1) * (2 * window - 1) + x - j % width + window - 1 for j in seen]
            score = score + layer.position_bias[rows, head]
            heads.append(score.softmax(-1) @ value[seen][:, part])
        expected[:, y, x] = layer.project(torch.cat(heads))
    torch.testing.assert_close(layer(x_BCHW, context_BCHW)[0], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("height", "width", "shift"), [(24, 28, 2), (23, 25, 0)])
def test_every_pixel_sees_at_least_itself_and_only_edge_windows_are_cut(height: int, width: int, shift: int) -> None:
    row_M, seen_KNN = cut_windows(height, width, 4, shift)
    assert bool(seen_KNN.diagonal(dim1=1, dim2=2).all())
    cut = (row_M >= 0).view(6, 7)
    assert bool(cut[-1].all())
    assert bool(cut[:, -1].all())
    assert not bool(cut[:-1, :-1].any())
    assert len(cut_windows(24, 28, 4, 0)[1]) == 0


@pytest.mark.parametrize("shifted", [False, True])
def test_skipping_flat_windows_changes_only_them(shifted: bool) -> None:
    torch.manual_seed(0)
    layer = WindowAttention(16, window=4, shifted=shifted)
    x_BCHW = features(12, 14, batch=2)
    guide_B1HW = torch.full((2, 1, 12, 14), 0.5)
    guide_B1HW[1, :, :, 6:] = torch.rand(12, 8, generator=torch.Generator().manual_seed(3))
    busy_W = busy_windows(guide_B1HW, 4, layer.shift, 0.01)
    assert 0 < int(busy_W.sum()) < len(busy_W)
    whole, some = layer(x_BCHW), layer(x_BCHW, busy_W=busy_W)
    busy_BHW = from_windows(busy_W[:, None, None].expand(-1, 16, 1).float(), (12, 14), 4, layer.shift)
    torch.testing.assert_close(some, whole * busy_BHW, rtol=0, atol=1e-6)
    assert not some[0].any()


def test_a_windows_deviation_is_that_of_its_pixels_without_padding() -> None:
    grey = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    corner = float(grey[0, 0, 4:, 4:].numpy().std())
    busy = [busy_windows(grey, 4, 0, threshold)[3].item() for threshold in (corner - 1e-4, corner + 1e-4)]
    assert busy == [True, False]


def test_all_windows_flat_still_has_gradients() -> None:
    block = WindowBlock(16, window=4, skip_flat=0.5)
    block(features(8, 8), torch.zeros(1, 1, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in block.parameters())


def test_linear_attention_equals_the_quadratic_one() -> None:
    torch.manual_seed(0)
    layer = LinearMixer(16, window=8).double()
    x_BCHW = features(5, 6).double()  # smaller than the window: the padding must not be heard
    query, key, value = layer.qkv(x_BCHW[0].flatten(1).T).chunk(3, dim=-1)
    weight = (F.elu(query) + 1) @ (F.elu(key) + 1).T
    expected = layer.project((weight / weight.sum(-1, keepdim=True)) @ value).T.view(16, 5, 6)
    torch.testing.assert_close(layer(x_BCHW)[0], expected, rtol=0, atol=1e-5)


def test_channel_norm_is_layer_norm_of_each_pixel() -> None:
    norm = ChannelNorm(16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x_BCHW = features(3, 4)
    for y, x in np.ndindex(3, 4):
        pixel = x_BCHW[0, :, y, x]
        expected = (pixel - pixel.mean()) / (pixel.var(unbiased=False) + 1e-6).sqrt() * norm.weight + norm.bias
        torch.testing.assert_close(norm(x_BCHW)[0, :, y, x], expected)
