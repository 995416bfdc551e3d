"""Every line of the catalog's tap table, against a real network of that architecture: it loads, fires, fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from spandrel import ModelLoader
from spandrel.architectures.ATD import ATD
from spandrel.architectures.Compact import Compact
from spandrel.architectures.DAT import DAT
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.MoSR import MoSR
from spandrel.architectures.OmniSR import OmniSR
from spandrel.architectures.PLKSR import PLKSR, RealPLKSR
from spandrel.architectures.RCAN import RCAN
from spandrel.architectures.RGT import RGT
from spandrel.architectures.SAFMN import SAFMN
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.Swin2SR import Swin2SR
from spandrel.architectures.SwinIR import SwinIR
from torch import nn

from experts.catalog import built_in_catalog
from experts.loading.load import registry
from experts.native.freqnet import FreqNet
from experts.native.msg import MSG
from experts.native.ssm import SSM
from experts.open import open_experts
from experts.run import NetworkExpert
from tests.experts.parts import image, small_network

WINDOWS = {"upscale": 4, "embed_dim": 12, "depths": [2], "num_heads": [2], "img_size": 64, "upsampler": "pixelshuffle"}
NATIVE = {"widths": (16, 16), "up_depths": (1,), "kernel": 3}


def small(architecture: str) -> nn.Module:
    """One real network of the architecture, as small as it goes."""
    makers = {
        "ATD": lambda: ATD(
            upscale=4, embed_dim=12, depths=(2,), num_heads=(2,), window_size=8, category_size=16, num_tokens=8,
            reducted_dim=4, convffn_kernel_size=5, upsampler="pixelshuffle",
        ),
        "Compact": lambda: Compact(num_feat=8, num_conv=2, upscale=4),
        "DAT": lambda: DAT(
            upscale=4, embed_dim=32, depth=[2], num_heads=[2], split_size=[2, 4], upsampler="pixelshuffle", img_size=64
        ),
        "ESRGAN": lambda: ESRGAN(in_nc=3, out_nc=3, num_filters=8, num_blocks=2, scale=4),
        "FreqNet": lambda: FreqNet(**NATIVE, depths=(1,)),
        "MSG": lambda: MSG(**NATIVE, depths=(1, 1)),
        "SSM": lambda: SSM(widths=(16, 16), stages=1, kernel=3),
        "MoSR": lambda: MoSR(upscale=4, n_block=2, dim=16),
        "OmniSR": lambda: OmniSR(num_feat=16, res_num=1, up_scale=4, block_num=1, window_size=8),
        "PLKSR": lambda: RealPLKSR(dim=16, n_blocks=2, upscaling_factor=4),
        "PLKSR (first)": lambda: PLKSR(dim=16, n_blocks=2, upscaling_factor=4),
        "RCAN": lambda: RCAN(scale=4, n_resgroups=2, n_resblocks=2, n_feats=16),
        "RGT": lambda: RGT(upscale=4, embed_dim=12, depth=[2], num_heads=[2], split_size=[8, 8], img_size=64),
        "SAFMN": lambda: SAFMN(dim=16, n_blocks=2, upscaling_factor=4),
        "SPAN": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=16, upscale=4),
        "Swin2SR": lambda: Swin2SR(**WINDOWS, window_size=8),
        "SwinIR": lambda: SwinIR(**WINDOWS, window_size=8),
    }  # fmt: skip
    if architecture in ("DRCT", "EDSR", "GRL", "HAT"):
        return small_network(architecture)
    torch.manual_seed(0)
    return makers[architecture]().eval()


@pytest.mark.parametrize("architecture", [*built_in_catalog().taps, "PLKSR (first)"])
def test_the_tap_of_each_architecture(architecture: str, tmp_path: Path) -> None:
    network = small(architecture)
    path = tmp_path / "net.safetensors"
    save_file({key: value.contiguous().clone() for key, value in network.state_dict().items()}, path)
    (expert,) = open_experts([str(path)])
    assert isinstance(expert, NetworkExpert)
    assert expert.identity.architecture == architecture.partition(" ")[0]
    lr_BCHW = image(40, 44) if architecture == "GRL" else image(24, 20)
    untouched = lr_BCHW.clone()
    output = expert.run(lr_BCHW)
    assert torch.equal(lr_BCHW, untouched)
    descriptor = ModelLoader(registry=registry()).load_from_file(path)
    with torch.inference_mode():
        torch.testing.assert_close(output.sr_BCHW.clamp(0, 1), descriptor(lr_BCHW), rtol=0, atol=1e-5)
    height, width = lr_BCHW.shape[-2:]
    assert output.sr_BCHW.shape == (1, 3, 4 * height, 4 * width)
    assert output.feat_BCHW is not None
    assert output.feat_BCHW.shape[-2:] == (height, width)
    assert output.feat_BCHW.shape[1] == expert.identity.channels > 3
    assert float(output.feat_BCHW.std()) > 0
