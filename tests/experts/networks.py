"""One small network of every architecture that can be a 4x expert, of spandrel's and of ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from spandrel.architectures.ATD import ATD
from spandrel.architectures.AuraSR import AuraSR
from spandrel.architectures.Compact import Compact
from spandrel.architectures.CRAFT import CRAFT
from spandrel.architectures.DAT import DAT
from spandrel.architectures.DCTLSA import DCTLSA
from spandrel.architectures.DITN import DITN
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.FDAT import FDAT
from spandrel.architectures.IPT import IPT
from spandrel.architectures.MMRealSR import MMRealSR
from spandrel.architectures.MoESR import MoESR
from spandrel.architectures.MoSR import MoSR
from spandrel.architectures.OmniSR import OmniSR
from spandrel.architectures.PLKSR import PLKSR, RealPLKSR
from spandrel.architectures.RCAN import RCAN
from spandrel.architectures.RealCUGAN import UpCunet4x
from spandrel.architectures.RGT import RGT
from spandrel.architectures.SAFMN import SAFMN
from spandrel.architectures.SeemoRe import SeemoRe
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwiftSRGAN import SwiftSRGAN
from spandrel.architectures.Swin2SR import Swin2SR
from spandrel.architectures.SwinIR import SwinIR
from torch import nn

from experts.native.freqnet import FreqNet
from experts.native.hit import HiTSRF
from experts.native.msg import MSG
from experts.native.ssm import SSM
from tests.experts.parts import small_network

WINDOWS = {"upscale": 4, "embed_dim": 12, "depths": [2], "num_heads": [2], "img_size": 64, "upsampler": "pixelshuffle"}
NATIVE = {"widths": (16, 16), "up_depths": (1,), "kernel": 3}


MAKERS: dict[str, Callable[[], nn.Module]] = {
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
    "CRAFT": lambda: CRAFT(embed_dim=24, depths=[2], num_heads=[2]),
    "DCTLSA": lambda: DCTLSA(nf=20),
    "DITN": lambda: DITN(dim=16, ITL_blocks=1, SAL_blocks=1),
    "FDAT": lambda: FDAT(embed_dim=16, num_groups=1, depth_per_group=1, num_heads=2, mid_dim=16),
    "HiT_SRF": lambda: HiTSRF(embed_dim=20, depths=[2], num_heads=[2], hier_win_ratios=[0.5, 1]),
    "IPT": lambda: IPT(patch_size=12, n_feats=4, scale=[4], num_layers=1),
    "MMRealSR": lambda: MMRealSR(
        num_in_ch=3, num_out_ch=3, num_feat=8, num_block=1, num_grow_ch=4, num_feats=[8, 8, 8, 8],
        num_blocks=[1, 1, 1, 1],
    ),
    "MoESR": lambda: MoESR(dim=16, n_blocks=1, n_block=1, upsample_dim=16),
    "RealCUGAN": lambda: UpCunet4x(),
    "SeemoRe": lambda: SeemoRe(num_experts=3, num_layers=1, embedding_dim=16),
    "SwiftSRGAN": lambda: SwiftSRGAN(num_channels=16, num_blocks=1),
    "AuraSR": lambda: AuraSR(
        dim=8, image_size=None, input_image_size=None,
        style_network={"dim_in": 8, "dim_out": 32, "depth": 2, "dim_text_latent": 0}, self_attn_dim_head=8,
        full_attn=(False,) * 5, mid_attn_depth=1, unconditional=True,
    ),
    **{name: partial(small_network, name) for name in ("DRCT", "EDSR", "GRL", "HAT")},
}  # fmt: skip


def small(architecture: str) -> nn.Module:
    """One real network of the architecture, as small as it goes, seeded."""
    torch.manual_seed(0)
    return MAKERS[architecture]().eval()
