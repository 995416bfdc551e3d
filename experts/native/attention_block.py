"""Feature map -> feature map by window attention, an optional long-range mixer, and a feed-forward network.

Legend: B batch, C channels, H and W height and width, W windows of the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from experts.native.gdfn import GatedDepthwiseFFN
from experts.native.norm import ChannelNorm
from experts.native.window_attention import WindowAttention
from experts.native.windows import busy_windows

if TYPE_CHECKING:
    from torch import Tensor


class WindowBlock(nn.Module):
    """Norm, attention, add; norm, mixer, add (where there is one); norm, gated feed-forward, add.

    `skip_flat`: windows whose grey levels deviate less than this are left out of attention (0: none).
    `recompute`: forget inner values in training and compute them again for the gradients, to save memory.
    """

    def __init__(
        self,
        channels: int,
        *,
        window: int = 8,
        shifted: bool = False,
        mixer: nn.Module | None = None,
        ratio: float = 2.0,
        drop_path: float = 0.0,
        skip_flat: float = 0.0,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.skip_flat, self.recompute = skip_flat, recompute
        self.norm1 = ChannelNorm(channels)
        self.attention = WindowAttention(channels, window=window, shifted=shifted)
        self.norm_mixer = None if mixer is None else ChannelNorm(channels)
        self.mixer = mixer
        self.norm2 = ChannelNorm(channels)
        self.ffn = GatedDepthwiseFFN(channels, ratio)
        self.drop = StochasticDepth(drop_path, "row")

    def forward(self, x_BCHW: Tensor, guide_B1HW: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); the guide is the grey image at this size, for `skip_flat`."""
        busy_W = None
        if self.skip_flat and guide_B1HW is not None:
            busy_W = busy_windows(guide_B1HW, self.attention.window, self.attention.shift, self.skip_flat)
        if self.recompute and self.training and torch.is_grad_enabled():
            y_BCHW = checkpoint(self._run, x_BCHW, busy_W, use_reentrant=False)
            assert isinstance(y_BCHW, torch.Tensor)
            return y_BCHW
        return self._run(x_BCHW, busy_W)

    def _run(self, x_BCHW: Tensor, busy_W: Tensor | None) -> Tensor:
        x_BCHW = x_BCHW + self.drop(self.attention(self.norm1(x_BCHW), busy_W=busy_W))
        if self.mixer is not None and self.norm_mixer is not None:
            x_BCHW = x_BCHW + self.drop(self.mixer(self.norm_mixer(x_BCHW)))
        return x_BCHW + self.drop(self.ffn(self.norm2(x_BCHW)))
