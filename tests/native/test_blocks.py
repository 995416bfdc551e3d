"""Blocks against independent references: masks against brute force, splits against SciPy, folding, mixtures by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experts.native.blocks.convolution import ConvGatedBlock, LocalChannelGate, PartialLargeKernel
from experts.native.blocks.mixture import Mixture, PixelMixture, balance
from experts.native.blocks.multi_branch import MultiBranchConv, fold_all
from experts.native.blocks.split import FourierSplit, make_splitter
from experts.native.blocks.upsample import DySampleUp, make_upsampler
from experts.native.blocks.window_attention import LinearMixer, WindowAttention, WindowBlock
from experts.native.blocks.window_mixture import WindowMixture
from experts.native.blocks.windows import busy_windows, cut_windows, from_windows, to_windows
from experts.native.ssm import NoiseHead
from imaging.layers import ChannelNorm


def features(height: int, width: int, channels: int = 16, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


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


class Times(nn.Module):
    """Multiplies by a factor and counts the tokens it is given."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.seen = nn.Parameter(torch.tensor(factor)), 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.seen += len(tokens)
        return tokens * self.factor


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_mixture_runs_only_the_chosen_experts_on_each_token(top_k: int) -> None:
    experts = [Times(factor) for factor in (1.0, 10.0, 100.0)]
    mixture = Mixture(experts, top_k=top_k).eval()
    tokens, logits = torch.rand(50, 4), torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    mixed, _ = mixture(tokens, logits)
    factors, share = np.array([1.0, 10.0, 100.0]), logits.softmax(-1).numpy()
    for row in range(50):
        best = np.argsort(-share[row])[:top_k]
        weight = share[row, best] / (share[row, best].sum() if top_k > 1 else 1)
        np.testing.assert_allclose(mixed[row].detach(), tokens[row] * (weight @ factors[best]), rtol=1e-4)
    assert sum(expert.seen for expert in experts) == 50 * top_k


def test_all_chosen_is_the_dense_mixture() -> None:
    tokens, logits = torch.rand(20, 4), torch.randn(20, 3)
    experts = [Times(factor) for factor in (1.0, 10.0, 100.0)]
    sparse, _ = Mixture(experts, top_k=3)(tokens, logits)
    dense, _ = Mixture(experts, top_k=1, routing="dense")(tokens, logits)
    torch.testing.assert_close(sparse, dense)


def test_an_idle_expert_still_has_a_gradient_in_training_and_no_work_in_eval() -> None:
    experts = [Times(1.0), Times(2.0)]
    mixture = Mixture(experts, top_k=1)
    tokens, logits = torch.rand(6, 4), torch.tensor([[5.0, -5.0]]).repeat(6, 1)
    mixed, _ = mixture(tokens, logits)
    mixed.sum().backward()
    assert experts[1].factor.grad == 0
    assert experts[0].factor.grad != 0
    experts[1].seen = 0
    torch.testing.assert_close(mixture.eval()(tokens, logits)[0], mixed)
    assert experts[1].seen == 0


def test_balance_is_one_when_even_and_rises_with_collapse() -> None:
    even = torch.full((8, 4), 0.25)
    assert float(balance(even, torch.eye(4).repeat(2, 1))) == pytest.approx(1.0)
    lone = torch.tensor([[0.97, 0.01, 0.01, 0.01]]).repeat(8, 1)
    assert float(balance(lone, F.one_hot(torch.zeros(8, dtype=torch.long), 4))) == pytest.approx(3.88)


def test_minimising_the_balance_spreads_the_tokens() -> None:
    torch.manual_seed(0)
    mixture = PixelMixture(16, experts=4, top_k=1)
    assert mixture.router is not None
    with torch.no_grad():
        mixture.router.bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    optimizer = torch.optim.Adam(mixture.router.parameters(), lr=0.05)
    x_BCHW, course = features(12, 12), []
    for _ in range(60):
        _, uneven = mixture(x_BCHW)
        assert uneven is not None
        course.append(float(uneven.detach()))
        optimizer.zero_grad()
        uneven.backward()
        optimizer.step()
    assert course[0] > 1.5
    assert course[-1] < 1.1


@pytest.mark.parametrize("make", [PixelMixture, lambda c, **k: WindowMixture(c, window=4, kernel=3, **k)])
def test_frozen_routing_leaves_the_router_alone(make) -> None:
    mixture = make(16, freeze_routing=True)
    assert [name for name, p in mixture.named_parameters() if not p.requires_grad] == ["router.weight", "router.bias"]


def test_a_routed_window_depends_on_itself_only() -> None:
    torch.manual_seed(0)
    mixture = WindowMixture(16, window=4, kernel=3).eval()
    x_BCHW = features(8, 8)
    changed = x_BCHW.clone()
    changed[..., 4:, 4:] += 1
    assert torch.equal(mixture(changed)[0][..., :4, :], mixture(x_BCHW)[0][..., :4, :])


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
