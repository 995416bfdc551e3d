"""EDSR's folded upsampler against the layers themselves: any scale, any size, the border included."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from experts.loading.edsr import EDSR
from experts.open import open_experts
from tests.experts.parts import save_network


def make(upscale: int, seed: int = 0, features: int = 6) -> EDSR:
    torch.manual_seed(seed)
    network = EDSR(num_feat=features, num_block=1, upscale=upscale, img_range=1.0)
    for parameter in network.parameters():  # biases too: under zero padding they are what makes the border another one
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


@pytest.mark.parametrize("upscale", [1, 2, 3, 4, 8])
@given(height=st.integers(1, 21), width=st.integers(1, 21), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_folded_is_the_same_image(upscale: int, height: int, width: int, seed: int) -> None:
    network = make(upscale, seed)
    lr_BCHW = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        plain_BCHW = network(lr_BCHW)
        network.fold()
        folded_BCHW = network(lr_BCHW)
    assert torch.allclose(folded_BCHW, plain_BCHW, rtol=1e-4, atol=1e-4 * float(plain_BCHW.abs().max()))


def test_an_opened_expert_is_folded_in_fp32_alone(tmp_path: Path) -> None:
    file = save_network(make(4, features=24), tmp_path / "net.safetensors")
    lr_BCHW = torch.rand(1, 3, 96, 96)
    costs = []
    for precision in ("fp32", "bf16"):
        (expert,) = open_experts([str(file)], precision=precision)
        with FlopCounterMode(display=False) as counter:
            expert.run(lr_BCHW)
        costs.append(counter.get_total_flops())
    assert costs[0] < 0.5 * costs[1]
