"""SSM, the third draft: large-kernel convolutions, a Fourier branch, and a trunk of windows, state space and experts.

    stem -> low path (convolutions, halved) | high path (FFT split, gated convolution)
         -> trunk at half size: N x (windows + FFN, state-space scan, top-2 experts, gated fusion)
         -> gated decoder (quarter, half, full) -> large-kernel refinement -> noise (off) -> upsampler
The noise feeds texture as in StyleGAN2, the same every time an image is run.
Legend: B batch, C channels, H and W height and width (halved in the trunk).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from experts.native.base import NativeNetwork
from experts.native.blocks.convolution import ConvGatedBlock, GatedConv
from experts.native.blocks.split import FourierSplit
from experts.native.blocks.state_space import StateSpaceMixer
from experts.native.blocks.upsample import Upsampler, make_upsampler
from experts.native.blocks.window_attention import WindowBlock
from experts.native.blocks.window_mixture import WindowMixture
from experts.native.dual_path import Down, Up
from experts.native.recognise import stores_hyperparameters
from imaging.layers import ChannelNorm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from experts.native.base import Balances
    from experts.native.blocks.mixture import Routing


class NoiseHead(nn.Module):
    """One plane of white noise, weighed per channel within `amplitude`.

    In training the noise is new every time, from torch's own generator, or the network would fit to that one plane.
    """

    def __init__(self, channels: int, amplitude: float, seed: int = 0) -> None:
        super().__init__()
        self.amplitude, self.seed = amplitude, seed
        self.strength = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        batch, _, height, width = x_BCHW.shape
        if self.training:
            noise_B1HW = torch.randn(batch, 1, height, width, device=x_BCHW.device)
        else:
            # On the CPU, whose generator gives the same numbers for every device.
            generator = torch.Generator().manual_seed(self.seed)
            noise_B1HW = torch.randn(1, 1, height, width, generator=generator).to(x_BCHW.device)
        # tanh: no channel takes more noise than the amplitude, however it is trained.
        weight_C11 = self.amplitude * torch.tanh(self.strength)[:, None, None]
        return x_BCHW + (weight_C11 * noise_B1HW).to(x_BCHW.dtype)


class TrunkStage(nn.Module):
    """Windows, state space, experts; then a gate per pixel and channel for how much of it all is added.

    `mixer` window puts shifted windows where the scan would be.
    """

    def __init__(self, channels: int, *, window: WindowBlock, mixer: nn.Module, experts: WindowMixture | None) -> None:
        super().__init__()
        self.window = window
        self.norm = ChannelNorm(channels)
        self.mixer = mixer
        self.experts = experts
        self.gate = nn.Conv2d(2 * channels, channels, 1)
        self.fuse = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> (B, C, H, W) and the balance."""
        y_BCHW, balance = self.window(x_BCHW), None
        y_BCHW = y_BCHW + self.mixer(self.norm(y_BCHW))
        if self.experts is not None:
            y_BCHW, balance = self.experts(y_BCHW)
        gate_BCHW = torch.sigmoid(self.gate(torch.cat([x_BCHW, y_BCHW], dim=1)))
        return x_BCHW + gate_BCHW * self.fuse(y_BCHW), balance


class GatedUp(nn.Module):
    """A coarse map is added to a fine one through a gate computed from both."""

    def __init__(self, wider: int, channels: int) -> None:
        super().__init__()
        self.up = Up(wider, channels)
        self.gate = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, coarse_BCHW: Tensor, fine_BCHW: Tensor) -> Tensor:
        """(B, C', H/2, W/2) and (B, C, H, W) -> (B, C, H, W)."""
        up_BCHW = self.up(coarse_BCHW)
        return fine_BCHW + torch.sigmoid(self.gate(torch.cat([up_BCHW, fine_BCHW], dim=1))) * up_BCHW


class TextureHead(nn.Module):
    """Large-kernel refinement and, if an amplitude is given, noise."""

    def __init__(self, channels: int, *, kernel: int, noise: float, noise_seed: int, deployed: bool) -> None:
        super().__init__()
        self.refine = ConvGatedBlock(channels, kernel=kernel, deployed=deployed)
        self.noise = NoiseHead(channels, noise, noise_seed) if noise > 0 else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        refined_BCHW = self.refine(x_BCHW)
        return refined_BCHW if self.noise is None else self.noise(refined_BCHW)


@stores_hyperparameters
class SSM(NativeNetwork):
    """Input and output RGB, nominally in [0, 1].

    Ablations: `mixer` window needs no scan; `fourier` off has no high path; `moe` single takes the convolution for
    every window, off no experts; `noise` is an amplitude of features, 0 for none; `upsampler` any of three.
    """

    def __init__(
        self,
        *,
        scale: int = 4,
        widths: Sequence[int] = (48, 64),
        stages: int = 3,
        window_size: int = 8,
        mixer: Literal["ssm", "window"] = "ssm",
        directions: int = 4,
        states: int = 8,
        fourier: bool = True,
        kernel: int = 9,
        moe: Literal[Routing, "off"] = "sparse",
        top_k: int = 2,
        freeze_routing: bool = False,
        noise: float = 0.0,
        noise_seed: int = 0,
        upsampler: Upsampler = "pixelshuffle",
        drop_path: float = 0.05,
        recompute: bool = False,
        deployed: bool = False,
    ) -> None:
        fine, coarse = widths
        super().__init__(channels=fine, scale=scale, multiple=2 * window_size)
        if mixer not in ("ssm", "window"):
            raise ValueError(f"unknown mixer '{mixer}'; there are ssm, window")
        attention = {"window": window_size, "drop_path": drop_path, "recompute": recompute}

        def stage(index: int) -> TrunkStage:
            odd = index % 2 == 1
            # Windows of the attention, its replacement and the experts alternate, so that no seam lies in two of them.
            inner = StateSpaceMixer(coarse, states=states, directions=directions) if mixer == "ssm" else None
            mixture = None
            if moe != "off":
                mixture = WindowMixture(
                    coarse,
                    window=window_size,
                    shifted=not odd,
                    top_k=top_k,
                    routing=moe,
                    freeze_routing=freeze_routing,
                    deployed=deployed,
                )
            return TrunkStage(
                coarse,
                window=WindowBlock(coarse, shifted=odd, **attention),  # pyright: ignore[reportArgumentType]
                mixer=inner or WindowBlock(coarse, shifted=not odd, **attention),  # pyright: ignore[reportArgumentType]
                experts=mixture,
            )

        self.stem = nn.Sequential(
            nn.Conv2d(3, fine, 3, padding=1), ConvGatedBlock(fine, kernel=kernel, deployed=deployed)
        )
        self.low = nn.Sequential(ConvGatedBlock(fine), ConvGatedBlock(fine))
        self.down = Down(fine, coarse)
        self.split = FourierSplit() if fourier else None
        self.high = ConvGatedBlock(fine, channel_gate=True) if fourier else None
        self.recombine = nn.Conv2d(2 * fine, fine, 1) if fourier else None
        self.trunk = nn.ModuleList(stage(index) for index in range(stages))
        self.down_low = Down(coarse, coarse)
        self.coarsest = ConvGatedBlock(coarse)
        self.up_trunk = GatedUp(coarse, coarse)
        self.up_full = GatedUp(coarse, fine)
        self.decode = nn.Sequential(ConvGatedBlock(fine), GatedConv(fine))
        self.texture = TextureHead(fine, kernel=kernel, noise=noise, noise_seed=noise_seed, deployed=deployed)
        self.upsampler = make_upsampler(upsampler, fine, scale)

    def body(self, shallow_BCHW: Tensor, guide_B1HW: Tensor) -> tuple[Tensor, Balances]:  # noqa: ARG002 (no windows are skipped here)
        """Low path, trunk, decoder; the high path joins at full size."""
        low_BCHW = self.low(shallow_BCHW)
        deep_BCHW, balances = self._trunk(self.down(low_BCHW))
        deep_BCHW = self.up_trunk(self.coarsest(self.down_low(deep_BCHW)), deep_BCHW)
        full_BCHW = self.up_full(deep_BCHW, low_BCHW)
        return self.decode(self._with_high(full_BCHW, shallow_BCHW)), balances

    def _trunk(self, x_BCHW: Tensor) -> tuple[Tensor, Balances]:
        balances: Balances = []
        for stage in self.trunk:
            x_BCHW, balance = stage(x_BCHW)
            balances += [] if balance is None else [balance]
        return x_BCHW, balances

    def _with_high(self, full_BCHW: Tensor, shallow_BCHW: Tensor) -> Tensor:
        """The Fourier branch is added through a gate: the decoder's map itself passes unchanged."""
        if self.split is None or self.high is None or self.recombine is None:
            return full_BCHW
        _, high_BCHW = self.split(shallow_BCHW)
        high_BCHW = self.high(high_BCHW)
        gate_BCHW = torch.sigmoid(self.recombine(torch.cat([full_BCHW, high_BCHW], dim=1)))
        return full_BCHW + gate_BCHW * high_BCHW
