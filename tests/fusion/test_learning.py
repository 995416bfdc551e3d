"""Short trainings: one batch is learned, real images keep their brightness; bfloat16 and compilation change nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fusion.network import ExpertSlot
from fusion.network.base.fit import fit_base
from tests.fusion.parts import REAL_EXPERTS, batch_for, random_record, real_regions, small_model, stir

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from fusion.network import FusionSR


def psnr(image: Tensor, truth: Tensor) -> float:
    return -10 * math.log10((image - truth).square().mean().item())


def train(
    model: FusionSR, lr: Tensor, sr: Tensor, feats: dict[str, Tensor | None] | None, truth: Tensor, steps: int
) -> Iterator[Tensor]:
    """Adam on the squared error; yields the image before each step and after the last."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        image = model(lr, sr, feats).image_BCHW
        yield image.detach()
        optimizer.zero_grad()
        (image - truth).square().mean().backward()
        optimizer.step()
    yield model(lr, sr, feats).image_BCHW.detach()


def test_one_batch_is_learned_far_beyond_the_base() -> None:
    model = small_model()
    lr, sr, feats = batch_for(model.settings, 16, 16)
    # The truth is one expert in one half and another in the other, known from a feature, plus texture of its own.
    side = torch.arange(64) < 32
    truth = torch.where(side, sr[:, 0], sr[:, 1]) + 0.02 * torch.sin(torch.arange(64) * 2.5)
    given = dict(feats)
    given["a"] = torch.where(side[::4], 1.0, -1.0).expand(2, 6, 16, 16)
    images = list(train(model, lr, sr, given, truth, 60))
    assert psnr(images[-1], truth) > psnr(images[0], truth) + 1.0


def test_real_images_keep_their_brightness_and_gain(shared_data: Path) -> None:
    items = list(real_regions(shared_data, count=160, every=40))
    base = fit_base(((sr, hr) for _, sr, hr in items), REAL_EXPERTS)
    model = small_model(base=base, slots=[ExpertSlot(name=name, channels=0) for name in REAL_EXPERTS])
    lr, sr, hr = (torch.stack([item[part] for item in items]).float() / 255 for part in range(3))
    lr, sr, hr = lr[..., 8:40, 8:40], sr[..., 32:160, 32:160], hr[..., 32:160, 32:160]
    base_BCHW = model.base(lr, sr, REAL_EXPERTS)
    errors, shifts = [], []
    for image in train(model, lr, sr, None, hr, 25):
        errors.append((image - hr).square().mean().item())
        shifts.append(255 * (image - base_BCHW).mean(dim=(2, 3)).abs().max().item())  # of any image and colour
    assert max(shifts) < 0.01  # grey levels, against the base: how bright that is, the experts decide
    assert errors[-1] < 0.99 * errors[0]
    assert max(errors) < 1.02 * errors[0]


def test_bfloat16_keeps_the_image_within_a_hundredth_of_a_decibel() -> None:
    model = stir(small_model(), scale=0.03)
    lr, sr, feats = batch_for(model.settings, 16, 16)
    truth = sr.mean(dim=1) + 0.01 * torch.randn(sr.shape[0], 3, 64, 64)
    with torch.no_grad():
        exact = model(lr, sr, feats)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(lr, sr, feats)
    assert half.image_BCHW.dtype == torch.float32
    assert torch.equal(half.base_BCHW, exact.base_BCHW)
    assert not torch.equal(half.image_BCHW, exact.image_BCHW)
    assert abs(psnr(half.image_BCHW, truth) - psnr(exact.image_BCHW, truth)) < 0.01


def test_untrained_it_is_the_base_under_autocast_too() -> None:
    model = small_model()
    lr, sr, feats = batch_for(model.settings)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(lr, sr, feats)
        output.image_BCHW.sum().backward()
    assert torch.equal(output.image_BCHW, model.base(lr, sr, model.settings.names))


# Graph capture and autograd as torch.compile does them; building the C++ of the last step takes minutes on a CPU.
def test_compiles_without_graph_breaks() -> None:
    torch.compiler.reset()
    model = stir(small_model(base=random_record(("a", "b", "c"), pull=1.07)), scale=0.03)
    lr, sr, feats = batch_for(model.settings)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    ours, theirs = model(lr, sr, feats), compiled(lr, sr, feats)
    torch.testing.assert_close(theirs.image_BCHW, ours.image_BCHW, atol=1e-4, rtol=0)
    theirs.image_BCHW.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    captured = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():  # as in inference, and without the graph of a second backward pass
        few = captured(lr, sr[:, :2], feats, ("a", "b"))
    torch.testing.assert_close(few.image_BCHW, model(lr, sr[:, :2], feats, ("a", "b")).image_BCHW, atol=1e-4, rtol=0)
