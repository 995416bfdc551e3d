"""FreqNet (HybridMoE-FreqNet), the second draft: split spectrum, attention on the low path, large kernels on the high.

    stem -> FFT or Laplacian split -> scales of (windows + gated FFN | large kernel + gated convolution), exchange
         -> bottleneck: windows and routed feed-forward -> decoder -> texture head -> upsampler
Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from experts.native.base import NativeNetwork
from experts.native.blocks.convolution import ConvGatedBlock
from experts.native.blocks.mixture import PixelMixture
from experts.native.blocks.split import Splitter, make_splitter
from experts.native.blocks.upsample import Upsampler, make_upsampler
from experts.native.blocks.window_attention import WindowBlock
from experts.native.dual_path import DualPath, Level, UpLevel, run_block
from experts.native.recognise import stores_hyperparameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from experts.native.base import Balances
    from experts.native.blocks.mixture import Routing


class RoutedBottleneck(nn.Module):
    """Both paths joined, then per block: attention within windows and a routed feed-forward."""

    def __init__(
        self, channels: int, *, paths: int, blocks: Sequence[nn.Module], mixtures: Sequence[PixelMixture]
    ) -> None:
        super().__init__()
        self.join = nn.Conv2d(2 * channels, channels, 1) if paths == 2 else None
        self.blocks = nn.ModuleList(blocks)
        self.mixtures = nn.ModuleList(mixtures)

    def forward(self, low_BCHW: Tensor, high_BCHW: Tensor | None, guide_B1HW: Tensor) -> tuple[Tensor, Balances]:
        """Low and high -> one map and the balances."""
        x_BCHW, balances = low_BCHW, []
        if self.join is not None and high_BCHW is not None:
            x_BCHW = low_BCHW + self.join(torch.cat([low_BCHW, high_BCHW], dim=1))
        for block, mixture in zip(self.blocks, self.mixtures, strict=True):
            x_BCHW, balance = mixture(run_block(block, x_BCHW, guide_B1HW))
            balances += [] if balance is None else [balance]
        return x_BCHW, balances


@stores_hyperparameters
class FreqNet(NativeNetwork):
    """Input and output RGB, nominally in [0, 1].

    Ablations: `moe` single is a dense feed-forward; `high` off leaves the low path; `attention` off makes it all
    convolutions; `splitter` any of three; `upsampler` any of three; `skip_flat` is in units of the image's [0, 1].
    """

    def __init__(
        self,
        *,
        scale: int = 4,
        widths: Sequence[int] = (48, 64, 64),
        depths: Sequence[int] = (1, 2),
        bottleneck: int = 2,
        up_depths: Sequence[int] = (1, 2),
        window_size: int = 8,
        splitter: Splitter = "fft",
        high: bool = True,
        attention: bool = True,
        kernel: int = 9,
        moe: Routing = "sparse",
        experts: int = 4,
        top_k: int = 2,
        freeze_routing: bool = False,
        upsampler: Upsampler = "pixelshuffle",
        skip_flat: float = 0.0,
        drop_path: float = 0.05,
        recompute: bool = False,
        deployed: bool = False,
    ) -> None:
        if len(depths) != len(widths) - 1 or len(up_depths) != len(depths):
            raise ValueError("depths and up_depths must be one less than widths")
        super().__init__(channels=widths[0], scale=scale, multiple=window_size * 2 ** (len(widths) - 1))
        paths = 2 if high else 1

        def mixing(width: int, depth: int) -> list[nn.Module]:
            """The low path's blocks: attention within windows, or convolutions in its place."""
            if not attention:
                return [ConvGatedBlock(width, drop_path=drop_path) for _ in range(depth)]
            return [
                WindowBlock(
                    width,
                    window=window_size,
                    shifted=index % 2 == 1,
                    drop_path=drop_path,
                    skip_flat=skip_flat,
                    recompute=recompute,
                )
                for index in range(depth)
            ]

        def texture(width: int, depth: int) -> list[nn.Module]:
            """The high path's blocks: large kernel, gated convolution, a gate per channel."""
            return [ConvGatedBlock(width, kernel=kernel, channel_gate=True, deployed=deployed) for _ in range(depth)]

        def routed(width: int) -> PixelMixture:
            return PixelMixture(width, experts=experts, top_k=top_k, routing=moe, freeze_routing=freeze_routing)

        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        blocks = [
            (
                [ConvGatedBlock(width), *mixing(width, depth)],
                texture(width, depth) if high else None,
            )
            for width, depth in zip(widths, depths, strict=False)
        ]
        self.pyramid = DualPath(
            widths,
            splitter=make_splitter(splitter) if high else None,
            levels=[
                *(Level(width, low, fine) for width, (low, fine) in zip(widths, blocks, strict=False)),
                # No blocks at the coarsest size, only the exchange: its blocks are the bottleneck's.
                Level(widths[-1], [], [] if high else None),
            ],
            bottleneck=RoutedBottleneck(
                widths[-1],
                paths=paths,
                blocks=mixing(widths[-1], bottleneck),
                mixtures=[routed(widths[-1]) for _ in range(bottleneck)],
            ),
            ups=[
                UpLevel(widths[-1 - i], widths[-2 - i], paths, [ConvGatedBlock(widths[-2 - i]) for _ in range(depth)])
                for i, depth in enumerate(up_depths)
            ],
        )
        self.texture = ConvGatedBlock(widths[0], kernel=kernel, deployed=deployed)
        self.upsampler = make_upsampler(upsampler, widths[0], scale)

    def body(self, shallow_BCHW: Tensor, guide_B1HW: Tensor) -> tuple[Tensor, Balances]:
        """The pyramid is the body."""
        return self.pyramid(shallow_BCHW, guide_B1HW)
