"""The layers of the fusion network against torch's own, and their gradients in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F

from fusion.network.attention import LargeKernelAttention, attend
from fusion.network.hierarchy import shrink, spread
from fusion.network.parts import channel_norm, weigh, zero_mean_per_pixel, zero_sum
from tests.fusion.parts import batch_for, small_model, stir

if TYPE_CHECKING:
    from collections.abc import Callable


def test_attention_is_torchs() -> None:
    query, key, value = (torch.randn(2, 5, 3, 4, 6, 7, dtype=torch.float64) for _ in range(3))
    order = (0, 4, 5, 2, 1, 3)  # B T N d H W -> B H W N T d
    reference = F.scaled_dot_product_attention(query.permute(order), key.permute(order), value.permute(order))
    torch.testing.assert_close(attend(query, key, value).permute(order), reference)


def test_norm_is_torchs() -> None:
    x = torch.randn(2, 6, 5, 4)
    reference = F.layer_norm(x.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(channel_norm(6)(x), reference)


def test_lka_is_decomposed_as_described() -> None:
    lka = LargeKernelAttention(6)
    layers = [lka.near, lka.across, lka.along, lka.mix]
    assert [layer.kernel_size for layer in layers] == [(5, 5), (1, 21), (21, 1), (1, 1)]
    assert [layer.dilation for layer in layers] == [(1, 1), (1, 3), (3, 1), (1, 1)]
    assert [layer.groups for layer in layers] == [6, 6, 6, 1]
    x = torch.zeros(1, 6, 71, 71)
    x[..., 35, 35] = 1
    reach = (lka.along(lka.across(lka.near(x))) - lka.along(lka.across(lka.near(x * 0)))).abs().sum(dim=(0, 1)) > 0
    rows = reach.any(dim=1).nonzero()
    assert (rows.min().item(), rows.max().item()) == (35 - 32, 35 + 32)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_shrinking_unshuffled_images_is_average_pooling(scale: int) -> None:
    images = torch.rand(2, 3, 3, 16, 24)
    unshuffled = F.pixel_unshuffle(images, 4)
    pooled = F.avg_pool2d(images.flatten(0, 1), 4 // scale).unflatten(0, (2, 3))
    torch.testing.assert_close(F.pixel_shuffle(shrink(unshuffled, scale, 4), scale), pooled)
    repeated = pooled.repeat_interleave(4 // scale, -1).repeat_interleave(4 // scale, -2)
    torch.testing.assert_close(F.pixel_shuffle(spread(shrink(unshuffled, scale, 4), scale, 4), 4), repeated)


def test_gradients_of_the_hand_written_parts_in_float64() -> None:
    def check(function: Callable[..., torch.Tensor], *shapes: tuple[int, ...]) -> bool:
        inputs = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
        return torch.autograd.gradcheck(function, inputs, fast_mode=True)

    assert check(attend, (1, 3, 2, 2, 2, 3), (1, 3, 2, 2, 2, 3), (1, 3, 2, 2, 2, 3))
    assert check(lambda d, x: weigh(zero_sum(d), x), (1, 3, 16, 2, 2), (1, 3, 48, 2, 2))
    assert check(zero_mean_per_pixel, (1, 48, 2, 3))
    assert check(channel_norm(4).double(), (1, 4, 3, 2))
    model = stir(small_model()).double()
    lr, sr, feats = batch_for(model.settings, 8, 9, batch=1)
    doubles = {name: feat.double() for name, feat in feats.items() if feat is not None}
    assert check(lambda a, b: model(a, b, doubles).image_BCHW, tuple(lr.shape), tuple(sr.shape))
