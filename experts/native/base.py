"""What all native networks share: LR image in [0, 1] -> pad, body, residual over bicubic enlargement, crop -> SR image.

Legend: B batch, C channels, H and W height and width of the low-resolution image, s scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from experts.native.blocks.multi_branch import fold_all
from experts.pad import pad_right_bottom
from experts.spec import Padding
from imaging.resize import enlarge_bicubic

if TYPE_CHECKING:
    from torch import Tensor

Balances = list["Tensor"]


class NativeNetwork(nn.Module):
    """A preset fills in `stem`, `texture`, `upsampler` and `body`; sides are padded to `multiple` within.

    `conv_after_body` is the tap: features at LR size, before the long residual. Nothing is clamped, in training and
    in eval alike. In training a routed network gives (image, balance): see `experts/native/blocks/mixture.py`.
    """

    hyperparameters: dict[str, Any] = {}
    stem: nn.Module
    texture: nn.Module
    upsampler: nn.Module

    def __init__(self, *, channels: int, scale: int, multiple: int) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ValueError(f"native networks upscale by 2, 3 or 4, not by {scale}")
        self.scale, self.padding = scale, Padding(multiple=multiple)
        self.conv_after_body = nn.Conv2d(channels, channels, 3, padding=1)

    def body(self, shallow_BCHW: Tensor, guide_B1HW: Tensor) -> tuple[Tensor, Balances]:
        """Shallow features and the grey image -> deep features of the same size, and the balance of each mixture."""
        raise NotImplementedError

    def forward(self, lr_BCHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, 3, sH, sW), float32."""
        height, width = lr_BCHW.shape[-2:]
        # channels_last: norms and routing work on each pixel's channels, which then lie side by side.
        padded_BCHW = pad_right_bottom(lr_BCHW, self.padding).contiguous(memory_format=torch.channels_last)
        shallow_BCHW = self.stem(padded_BCHW - 0.5)  # around zero
        deep_BCHW, balances = self.body(shallow_BCHW, padded_BCHW.mean(dim=1, keepdim=True))
        refined_BCHW = self.texture(self.conv_after_body(deep_BCHW) + shallow_BCHW)
        residual_BCHW, routed = self.upsampler(refined_BCHW)
        # In float32 under any autocast: the residual is small beside the image and would be rounded away.
        sr_BCHW = enlarge_bicubic(padded_BCHW, self.scale) + residual_BCHW.float()
        sr_BCHW = sr_BCHW[..., : self.scale * height, : self.scale * width]
        balances = balances if routed is None else [*balances, routed]
        # Experts in use return an image alone; only training has a use for the balance.
        if self.training and balances:
            return sr_BCHW, torch.stack(balances).mean()
        return sr_BCHW

    def reparameterize(self) -> int:
        """Fold every multi-branch convolution in place; the outputs stay. Returns how many were folded."""
        folded = fold_all(self)
        if folded:
            self.hyperparameters = {**self.hyperparameters, "deployed": True}
        return folded
