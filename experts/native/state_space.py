"""Feature map -> feature map by state-space scans along its rows and columns, both ways.

Each head scans in one direction, so four directions cost as much as one.
Legend: B batch, C channels, H and W height and width; G heads, L = H*W length, P channels of a head, N states.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from experts.native.norm import ChannelNorm
from experts.native.scan import LEAST_STEP, MOST_STEP, scan

if TYPE_CHECKING:
    from torch import Tensor


class StateSpaceMixer(nn.Module):
    """Project, 3x3 per channel, scan in `directions` (1, 2 or 4), gate, project back."""

    def __init__(self, channels: int, *, heads: int = 4, states: int = 8, directions: int = 4) -> None:
        super().__init__()
        if directions not in (1, 2, 4) or heads % directions or channels % heads:
            raise ValueError(f"{heads} heads over {channels} channels cannot scan in {directions} directions")
        self.heads, self.states, self.directions = heads, states, directions
        self.enter = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.select = nn.Conv2d(channels, heads * (1 + 2 * states), 1)
        # Steps start between 0.01 and 0.3, rates between 0.5 and 4: memories of a pixel to two hundred.
        steps = torch.exp(torch.linspace(math.log(0.01), math.log(0.3), heads))
        self.step_bias = nn.Parameter(torch.log(torch.expm1(steps)))
        self.log_rate = nn.Parameter(torch.log(torch.linspace(0.5, 4.0, heads)))
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = ChannelNorm(channels)
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        inner_BCHW, gate_BCHW = self.enter(x_BCHW).chunk(2, dim=1)
        inner_BCHW = F.silu(self.depthwise(inner_BCHW))
        y_BCHW = self._scan(inner_BCHW, self.select(inner_BCHW), size).to(inner_BCHW.dtype)
        return self.leave(self.norm(y_BCHW) * F.silu(gate_BCHW))

    def _scan(self, inner_BCHW: Tensor, selected: Tensor, size: tuple[int, int]) -> Tensor:
        """In float32, out of autocast: sums over a whole image do not fit half precisions."""
        with torch.autocast(inner_BCHW.device.type, enabled=False):
            x_BGLP = self._unroll(inner_BCHW.float())
            chosen = self._unroll(selected.float())
            step_BGL, b_BGLN, c_BGLN = chosen[..., 0], chosen[..., 1 : 1 + self.states], chosen[..., 1 + self.states :]
            dt_BGL = F.softplus(step_BGL + self.step_bias.float()[:, None]).clamp(LEAST_STEP, MOST_STEP)
            y_BGLP = scan(x_BGLP, dt_BGL, self.log_rate.float().exp(), b_BGLN, c_BGLN)
            return self._roll_up(y_BGLP + self.skip.float()[:, None, None] * x_BGLP, size)

    def _unroll(self, x_BCHW: Tensor) -> Tensor:
        """(B, G*D, H, W) -> (B, G, L, D): each group of heads along its own path through the image."""
        x_BGDHW = x_BCHW.unflatten(1, (self.heads, -1))
        paths = []
        for direction, group_BGDHW in enumerate(x_BGDHW.chunk(self.directions, dim=1)):
            path = group_BGDHW if direction < 2 else group_BGDHW.transpose(-1, -2)
            path = path.flatten(-2)
            paths.append(path.flip(-1) if direction % 2 else path)
        return torch.cat(paths, dim=1).transpose(2, 3)

    def _roll_up(self, y_BGLP: Tensor, size: tuple[int, int]) -> Tensor:
        """The inverse of `_unroll`."""
        height, width = size
        maps = []
        for direction, path in enumerate(y_BGLP.transpose(2, 3).chunk(self.directions, dim=1)):
            way = path.flip(-1) if direction % 2 else path
            if direction < 2:
                maps.append(way.unflatten(-1, (height, width)))
            else:
                maps.append(way.unflatten(-1, (width, height)).transpose(-1, -2))
        return torch.cat(maps, dim=1).flatten(1, 2)
