"""MSG, the first draft: multi-scale two-path encoder-decoder, routed detail refinement, large-kernel texture head.

    stem -> LF/HF split -> 3 scales (gated convolutions; windows; windows + long range) -> cross-attention
         -> decoder -> 2-of-4 detail experts per pixel -> large-kernel head -> upsampler
Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from torch import nn

from experts.native.base import NativeNetwork
from experts.native.blocks.convolution import ConvGatedBlock
from experts.native.blocks.cross_fusion import CrossAttentionFusion
from experts.native.blocks.mixture import PixelMixture
from experts.native.blocks.split import Splitter, make_splitter
from experts.native.blocks.state_space import StateSpaceMixer
from experts.native.blocks.upsample import Upsampler, make_upsampler
from experts.native.blocks.window_attention import LinearMixer, WindowBlock
from experts.native.dual_path import DualPath, Level, UpLevel
from experts.native.recognise import stores_hyperparameters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from experts.native.base import Balances
    from experts.native.blocks.mixture import Routing

LongRange = Literal["linear", "ssm", "window"]


class Join(nn.Module):
    """The bottleneck's fusion: cross-attention of both paths, or a gated block where there is one path only."""

    def __init__(self, channels: int, *, window: int, paths: int) -> None:
        super().__init__()
        self.fuse = CrossAttentionFusion(channels, window=window) if paths == 2 else None
        self.block = ConvGatedBlock(channels) if paths == 1 else None

    def forward(
        self,
        low_BCHW: Tensor,
        high_BCHW: Tensor | None,
        guide_B1HW: Tensor,  # noqa: ARG002 (as every bottleneck)
    ) -> tuple[Tensor, Balances]:
        """Low and high -> one map; nothing is routed here."""
        if self.fuse is not None and high_BCHW is not None:
            return self.fuse(low_BCHW, high_BCHW), []
        assert self.block is not None
        return self.block(low_BCHW), []


@stores_hyperparameters
class MSG(NativeNetwork):
    """Input and output RGB, nominally in [0, 1].

    Ablations: `split` none is a single stream; `long_range` window has attention only; `moe` single is one expert;
    `texture` plain is a 3x3 head; `upsampler` any of three.
    """

    def __init__(
        self,
        *,
        scale: int = 4,
        widths: Sequence[int] = (48, 64, 64),
        depths: Sequence[int] = (2, 2, 2),
        up_depths: Sequence[int] = (1, 2),
        window_size: int = 8,
        split: Literal[Splitter, "none"] = "blur",
        long_range: LongRange = "linear",
        moe: Routing = "sparse",
        experts: int = 4,
        top_k: int = 2,
        freeze_routing: bool = False,
        texture: Literal["large", "plain"] = "large",
        kernel: int = 13,
        upsampler: Upsampler = "pixelshuffle",
        drop_path: float = 0.05,
        recompute: bool = False,
        deployed: bool = False,
    ) -> None:
        if len(widths) != len(depths) or len(up_depths) != len(widths) - 1:
            raise ValueError("depths must be as many as widths, up_depths one less")
        super().__init__(channels=widths[0], scale=scale, multiple=window_size * 2 ** (len(widths) - 1))
        paths = 1 if split == "none" else 2
        attention = {"window": window_size, "drop_path": drop_path, "recompute": recompute}
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, padding=1), nn.GELU())
        self.pyramid = DualPath(
            widths,
            splitter=None if split == "none" else make_splitter(split),
            levels=[
                Level(
                    width,
                    _low_blocks(place, width, depth, len(widths) - 1, long_range, attention),
                    None if paths == 1 else [ConvGatedBlock(width) for _ in range(depth)],
                )
                for place, (width, depth) in enumerate(zip(widths, depths, strict=True))
            ],
            bottleneck=Join(widths[-1], window=window_size, paths=paths),
            ups=[
                UpLevel(widths[-1 - i], widths[-2 - i], paths, [ConvGatedBlock(widths[-2 - i]) for _ in range(depth)])
                for i, depth in enumerate(up_depths)
            ],
        )
        self.detail = PixelMixture(widths[0], experts=experts, top_k=top_k, routing=moe, freeze_routing=freeze_routing)
        large = texture == "large"
        self.texture = (
            ConvGatedBlock(widths[0], kernel=kernel, deployed=deployed)
            if large
            else nn.Conv2d(widths[0], widths[0], 3, padding=1)
        )
        self.upsampler = make_upsampler(upsampler, widths[0], scale)

    def body(self, shallow_BCHW: Tensor, guide_B1HW: Tensor) -> tuple[Tensor, Balances]:
        """Pyramid, then detail refinement by routed experts."""
        deep_BCHW, balances = self.pyramid(shallow_BCHW, guide_B1HW)
        deep_BCHW, routed = self.detail(deep_BCHW)
        return deep_BCHW, balances if routed is None else [*balances, routed]


def _low_blocks(
    place: int, width: int, depth: int, last: int, long_range: LongRange, attention: dict[str, int | float | bool]
) -> Sequence[nn.Module]:
    """The low path: convolutions at full size, windows below, windows and the long-range mixer at the coarsest."""
    if place == 0:
        return [ConvGatedBlock(width) for _ in range(depth)]
    mixers = {"linear": LinearMixer, "ssm": StateSpaceMixer, "window": None}
    if long_range not in mixers:
        raise ValueError(f"unknown long_range '{long_range}'; there are {', '.join(mixers)}")
    mixer = mixers[long_range] if place == last else None
    return [
        WindowBlock(width, shifted=index % 2 == 1, mixer=None if mixer is None else mixer(width), **attention)  # pyright: ignore[reportArgumentType]
        for index in range(depth)
    ]
