"""The state-space mixer -> the same without its loop over an image's length, which no graph of free size can hold.

Legend: B batch, G heads, L length, K chunks, Q steps of a chunk, P and N channels and states of a head, X = N * P.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F

from experts.native.blocks.state_space import CHUNK, LEAST_STEP, MOST_STEP, StateSpaceMixer, decays

if TYPE_CHECKING:
    from torch import Tensor


class ScanByMatrices(StateSpaceMixer):
    """The scan with a matrix from chunk to chunk instead of a loop."""

    def _scan(self, inner_BCHW: Tensor, selected: Tensor, size: tuple[int, int]) -> Tensor:
        x_BGLP, chosen = self._unroll(inner_BCHW), self._unroll(selected)
        step_BGL, b_BGLN, c_BGLN = chosen[..., 0], chosen[..., 1 : 1 + self.states], chosen[..., 1 + self.states :]
        dt_BGL = F.softplus(step_BGL + self.step_bias[:, None]).clamp(LEAST_STEP, MOST_STEP)
        y_BGLP = _scan_by_matrices(x_BGLP, dt_BGL, self.log_rate.exp(), b_BGLN, c_BGLN)
        return self._roll_up(y_BGLP + self.skip[:, None, None] * x_BGLP, size)


def _scan_by_matrices(x_BGLP: Tensor, dt_BGL: Tensor, rate_G: Tensor, b_BGLN: Tensor, c_BGLN: Tensor) -> Tensor:
    """As `scan_chunked` for a length that is a multiple of the chunk."""
    batch, heads, _, width = x_BGLP.shape
    log_BGKQ1 = decays(dt_BGL, rate_G).reshape(batch, heads, -1, CHUNK, 1).cumsum(3)
    taken_BGKQP = (dt_BGL[..., None] * x_BGLP).reshape(batch, heads, -1, CHUNK, width)
    b_BGKQN, c_BGKQN = (x.reshape(batch, heads, -1, CHUNK, x.shape[-1]) for x in (b_BGLN, c_BGLN))
    inside_BGKQP = ((c_BGKQN @ b_BGKQN.transpose(-1, -2)) * _remaining(log_BGKQ1)) @ taken_BGKQP
    whole_BGK11 = log_BGKQ1[:, :, :, -1:]
    added_BGKNP = (b_BGKQN * (whole_BGK11 - log_BGKQ1).exp()).transpose(-1, -2) @ taken_BGKQP
    # The state at the end of each chunk, then moved on by one chunk: what the next one begins with.
    ended_BGKX = _remaining(whole_BGK11.reshape(batch, heads, -1, 1).cumsum(2)) @ added_BGKNP.flatten(3)
    before_BGKX = F.pad(ended_BGKX, (0, 0, 1, 0))[:, :, :-1]
    before_BGKNP = before_BGKX.reshape(batch, heads, -1, b_BGLN.shape[-1], width)
    y_BGKQP = inside_BGKQP + (c_BGKQN * log_BGKQ1.exp()) @ before_BGKNP
    return y_BGKQP.reshape(batch, heads, -1, width)


def _remaining(log_n1: Tensor) -> Tensor:
    """(..., n, 1) summed log decays -> (..., n, n): how much of step j remains at step i, 0 where j is later."""
    between_nn = log_n1 - log_n1.transpose(-1, -2)
    # Counted on the numbers themselves, which are finite: a range over their length would be recorded as long as now.
    place_n1 = (0 * log_n1 + 1).cumsum(-2)
    later_nn = (place_n1.transpose(-1, -2) > place_n1).float()
    # Minus 1e4 before the exponential: where j is later the difference is positive and could overflow.
    return (between_nn.clamp(max=0) - 1e4 * later_nn).exp()
