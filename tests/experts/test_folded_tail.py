"""The folded upsampler of EDSR and RCAN against the layers themselves: any scale, any size, the border included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spandrel.architectures.RCAN import RCAN
from torch.utils.flop_counter import FlopCounterMode

from experts.folded_tail import fold_upsampler, unfold_upsampler
from experts.native.edsr import EDSR
from experts.open import open_experts
from imaging.device import Precision
from tests.experts.parts import save_network


def make(kind: type[EDSR] | type[RCAN], upscale: int, seed: int = 0, features: int = 6) -> EDSR | RCAN:
    torch.manual_seed(seed)
    if kind is EDSR:
        network = EDSR(num_feat=features, num_block=1, upscale=upscale, img_range=1.0)
    else:
        network = RCAN(n_feats=features, n_resgroups=1, n_resblocks=1, scale=upscale, reduction=2)
    for parameter in network.parameters():  # biases too: under zero padding they are what makes the border another one
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.mark.parametrize("kind", [EDSR, RCAN])
@pytest.mark.parametrize("upscale", [1, 2, 3, 4, 8])
@given(height=st.integers(1, 21), width=st.integers(1, 21), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_folded_is_the_same_image(
    kind: type[EDSR] | type[RCAN], upscale: int, height: int, width: int, seed: int
) -> None:
    network = make(kind, upscale, seed)
    lr_BCHW = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        plain_BCHW = network(lr_BCHW.clone())  # RCAN multiplies its input in place
        names = list(network.state_dict())
        fold_upsampler(network)
        folded_BCHW = network(lr_BCHW.clone())
        unfold_upsampler(network)
        assert list(network.state_dict()) == names
        assert torch.equal(network(lr_BCHW.clone()), plain_BCHW)
    assert torch.allclose(folded_BCHW, plain_BCHW, rtol=1e-4, atol=1e-4 * float(plain_BCHW.abs().max()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_opened_expert_is_folded(tmp_path: Path, precision: Precision) -> None:
    network = make(EDSR, 4, features=24)
    file = save_network(network, tmp_path / "net.safetensors")
    lr_BCHW = torch.rand(1, 3, 96, 96)
    (expert,) = open_experts([str(file)], precision=precision)
    with FlopCounterMode(display=False) as as_trained:
        network(lr_BCHW)
    with FlopCounterMode(display=False) as opened:
        expert.run(lr_BCHW)
    assert opened.get_total_flops() < 0.5 * as_trained.get_total_flops()


def test_the_folded_image_is_not_rounded_to_bf16() -> None:
    network = make(EDSR, 4)
    fold_upsampler(network)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        image_BCHW = network(torch.rand(1, 3, 24, 24))
    assert image_BCHW.dtype == torch.float32
    assert not torch.equal(image_BCHW, image_BCHW.bfloat16().float())
