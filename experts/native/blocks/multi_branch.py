"""A convolution trained as several parallel ones -> the single convolution that gives the same output.

Legend: B batch, C channels, H and W height and width; O and I output and input channels of a kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


def branch_kernels(kernel: int) -> tuple[tuple[int, int], ...]:
    """The parallel kernels of a large one: itself, a small square, and a strip along either axis."""
    return (kernel, kernel), (3, 3), (1, kernel), (kernel, 1)


class MultiBranchConv(nn.Module):
    """`branches` while training; `folded` once `fold` has been called, or when built as deployed."""

    def __init__(self, channels: int, kernel: int, *, deployed: bool = False) -> None:
        super().__init__()
        if kernel % 2 == 0 or kernel < 3:
            raise ValueError(f"a large kernel is odd and at least 3, not {kernel}")
        self.branches: nn.ModuleList | None = None
        self.folded: nn.Conv2d | None = None
        if deployed:
            self.folded = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        else:
            self.branches = nn.ModuleList(
                # One bias is enough: parallel ones would only sum.
                nn.Conv2d(channels, channels, size, padding=(size[0] // 2, size[1] // 2), bias=index == 0)
                for index, size in enumerate(branch_kernels(kernel))
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.folded is not None:
            return self.folded(x_BCHW)
        assert self.branches is not None
        first, *others = self.branches
        y_BCHW = first(x_BCHW)
        for branch in others:
            y_BCHW = y_BCHW + branch(x_BCHW)
        return y_BCHW

    @torch.no_grad()
    def fold(self) -> None:
        """Sum the kernels, each centred in the largest, into one; done once, a second call changes nothing."""
        if self.branches is None:
            return
        convs = [branch for branch in self.branches if isinstance(branch, nn.Conv2d)]
        first = convs[0]
        size = first.kernel_size[0]
        folded = nn.Conv2d(first.in_channels, first.out_channels, size, padding=size // 2).to(first.weight)
        # Summed in float64 and rounded once.
        kernels_OIHW = [_centred(conv.weight.double(), size) for conv in convs]
        folded.weight.copy_(torch.stack(kernels_OIHW).sum(dim=0))
        assert first.bias is not None
        assert folded.bias is not None
        folded.bias.copy_(first.bias)
        self.branches, self.folded = None, folded.requires_grad_(first.weight.requires_grad)


def _centred(kernel_OIHW: Tensor, size: int) -> Tensor:
    """An odd kernel -> the same in the middle of a square of zeros."""
    rows, columns = (size - kernel_OIHW.shape[-2]) // 2, (size - kernel_OIHW.shape[-1]) // 2
    return F.pad(kernel_OIHW, (columns, columns, rows, rows))


def fold_all(network: nn.Module) -> int:
    """Fold every multi-branch convolution of the network in place; return how many there were."""
    found = [module for module in network.modules() if isinstance(module, MultiBranchConv) and module.branches]
    for module in found:
        module.fold()
    return len(found)
