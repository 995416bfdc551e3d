"""Feature map -> feature map by selective state-space scans along its rows and columns, both ways, linear in length.

    h_t = exp(-dt_t * rate) h_(t-1) + dt_t * x_t b_t^T        y_t = h_t c_t

One decay per head and step, as in Mamba-2 (Dao and Gu 2024), which allows matrix products over chunks. Each head scans
in one direction, so four directions cost as much as one. All float32; dt and rate positive.
Legend: B batch, C channels, H and W height and width; G or H heads, L = H*W length, P channels of a head, N states,
K chunks, Q steps of a chunk.
"""

from __future__ import annotations

import importlib
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from imaging.layers import ChannelNorm

if TYPE_CHECKING:
    from torch import Tensor

CHUNK = 64  # steps: work within a chunk grows with its square, the loop over chunks with their number
LEAST_STEP, MOST_STEP = 1e-3, 1.0  # of dt: no pixel is ignored, none counts more than once
MOST_DECAY = 8.0  # exp(-8): the most that one step decays; keeps exponents and gradients finite in half precision


def decays(dt_BHL: Tensor, rate_H: Tensor) -> Tensor:
    """(B, H, L) log decay of every step, clamped to [-MOST_DECAY, 0]."""
    return (-dt_BHL * rate_H[:, None]).clamp(-MOST_DECAY, 0.0)


def scan_sequential(x_BHLP: Tensor, dt_BHL: Tensor, rate_H: Tensor, b_BHLN: Tensor, c_BHLN: Tensor) -> Tensor:
    """(B, H, L, P): step by step, as the formula says; slow, the reference of the others."""
    decay_BHL = decays(dt_BHL, rate_H).exp()
    state_BHPN = x_BHLP.new_zeros(*x_BHLP.shape[:2], x_BHLP.shape[-1], b_BHLN.shape[-1])
    outputs = []
    for step in range(x_BHLP.shape[2]):
        taken_BHP = dt_BHL[:, :, step, None] * x_BHLP[:, :, step]
        state_BHPN = decay_BHL[:, :, step, None, None] * state_BHPN + taken_BHP[..., None] * b_BHLN[:, :, step, None]
        outputs.append((state_BHPN * c_BHLN[:, :, step, None]).sum(-1))
    return torch.stack(outputs, dim=2)


def scan_chunked(
    x_BHLP: Tensor, dt_BHL: Tensor, rate_H: Tensor, b_BHLN: Tensor, c_BHLN: Tensor, chunk: int = CHUNK
) -> Tensor:
    """(B, H, L, P): within chunks by matrix products, from chunk to chunk by a loop over their states."""
    length = x_BHLP.shape[2]
    chunk = min(chunk, length)
    log_BHKQ = _chunks(decays(dt_BHL, rate_H)[..., None], chunk)[..., 0].cumsum(-1)
    taken_BHKQP = _chunks(dt_BHL[..., None] * x_BHLP, chunk)
    b_BHKQN, c_BHKQN = _chunks(b_BHLN, chunk), _chunks(c_BHLN, chunk)
    # How much of step j remains at step i of the same chunk; exp only where i >= j, elsewhere it would overflow.
    between = log_BHKQ[..., :, None] - log_BHKQ[..., None, :]
    earlier = torch.ones(chunk, chunk, dtype=torch.bool, device=x_BHLP.device).tril()
    left_BHKQQ = between.masked_fill(~earlier, float("-inf")).exp()
    inside_BHKQP = ((c_BHKQN @ b_BHKQN.transpose(-1, -2)) * left_BHKQQ) @ taken_BHKQP
    to_end_BHKQ = (log_BHKQ[..., -1:] - log_BHKQ).exp()
    added_BHKNP = (b_BHKQN * to_end_BHKQ[..., None]).transpose(-1, -2) @ taken_BHKQP
    before_BHKNP = _carry(added_BHKNP, log_BHKQ[..., -1].exp())
    carried_BHKQP = (c_BHKQN * log_BHKQ.exp()[..., None]) @ before_BHKNP
    return (inside_BHKQP + carried_BHKQP).flatten(2, 3)[:, :, :length]


def _carry(added_BHKNP: Tensor, kept_BHK: Tensor) -> Tensor:
    """What each chunk adds and keeps -> the state before each chunk."""
    state_BHNP = torch.zeros_like(added_BHKNP[:, :, 0])
    before = []
    for added_BHNP, kept_BH in zip(added_BHKNP.unbind(2), kept_BHK.unbind(2), strict=True):
        before.append(state_BHNP)
        state_BHNP = kept_BH[..., None, None] * state_BHNP + added_BHNP
    return torch.stack(before, dim=2)


def _chunks(x_BHLD: Tensor, chunk: int) -> Tensor:
    """(B, H, L, D) -> (B, H, K, Q, D), zeros after the end: they neither add nor decay."""
    missing = -x_BHLD.shape[2] % chunk
    return F.pad(x_BHLD, (0, 0, 0, missing)).unflatten(2, (-1, chunk))


def scan_kernel(kernel: Any, x_BHLP: Tensor, dt_BHL: Tensor, rate_H: Tensor, b_BHLN: Tensor, c_BHLN: Tensor) -> Tensor:
    """(B, H, L, P) by `mamba_ssm`'s selective_scan_fn: a head is a group of P channels with equal step and decay."""
    _, _, length, width = x_BHLP.shape
    # The kernel does not clamp dt * rate: it gets the clamped product as step, -1 as rate, and inputs divided by it.
    log_BHL = decays(dt_BHL, rate_H)
    taken_BDL = (dt_BHL[..., None] * x_BHLP / (-log_BHL[..., None])).transpose(2, 3).flatten(1, 2)
    step_BDL = (-log_BHL).repeat_interleave(width, dim=1)
    rate_DN = -torch.ones(step_BDL.shape[1], b_BHLN.shape[-1], device=x_BHLP.device)
    b_BHNL, c_BHNL = b_BHLN.transpose(2, 3).contiguous(), c_BHLN.transpose(2, 3).contiguous()
    y_BDL = kernel(taken_BDL.contiguous(), step_BDL.contiguous(), rate_DN, b_BHNL, c_BHNL)
    return y_BDL.unflatten(1, (-1, width)).transpose(2, 3)[:, :, :length]


@lru_cache(maxsize=1)
def find_kernel() -> Any | None:
    """`mamba_ssm`'s CUDA kernel where it is installed."""
    try:
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except ImportError:
        return None


def scan(x_BHLP: Tensor, dt_BHL: Tensor, rate_H: Tensor, b_BHLN: Tensor, c_BHLN: Tensor) -> Tensor:
    """By the fastest available implementation; all agree."""
    kernel = find_kernel() if x_BHLP.is_cuda else None
    if kernel is not None:
        return scan_kernel(kernel, x_BHLP, dt_BHL, rate_H, b_BHLN, c_BHLN)
    return scan_chunked(x_BHLP, dt_BHL, rate_H, b_BHLN, c_BHLN)


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
        # Steps start between 0.01 and 0.3, rates between 0.5 and 4: the state decays over one to two hundred pixels.
        steps = torch.exp(torch.linspace(math.log(0.01), math.log(0.3), heads))
        # The inverse of softplus: with a zero projection the steps are exactly these.
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
