"""Tokens or pixels and their routing scores -> each through its best experts only, and the load balance.

A token is a row of the first axis: a pixel's channels or a whole window. Only the chosen rows are gathered and run. The
3x3 convolution that gathers a pixel's neighbourhood is shared; what follows is routed pixel by pixel.
Legend: B batch, C channels, H and W height and width, T tokens (B*H*W for pixels), E experts, k chosen per token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn

from imaging.layers import ChannelNorm

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

Routing = Literal["sparse", "dense", "single"]


class Mixture(nn.Module):
    """`sparse`: the k best experts of each token; `dense`: all, weighted; `single`: one expert and no routing."""

    def __init__(self, experts: Iterable[nn.Module], *, top_k: int = 2, routing: Routing = "sparse") -> None:
        super().__init__()
        if routing not in ("sparse", "dense", "single"):
            raise ValueError(f"unknown routing '{routing}'; there are sparse, dense, single")
        self.experts = nn.ModuleList(experts)
        if routing == "single":
            self.experts = self.experts[:1]
        elif not 1 <= top_k <= len(self.experts):
            raise ValueError(f"top {top_k} of {len(self.experts)} experts")
        self.top_k, self.routing = top_k, routing

    def forward(self, tokens: Tensor, logits_TE: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(T, ...) and (T, E) -> (T, ...) and the balance: 1 when all experts are used alike, up to E."""
        if self.routing == "single":
            return self.experts[0](tokens), None
        assert logits_TE is not None
        # float32: in half precision near ties would be decided by rounding.
        share_TE = logits_TE.float().softmax(dim=-1)
        if self.routing == "dense":
            parts = [_weigh(expert(tokens), share_TE[:, e]) for e, expert in enumerate(self.experts)]
            return torch.stack(parts).sum(dim=0), balance(share_TE, share_TE)
        weight_Tk, chosen_Tk = share_TE.topk(self.top_k, dim=-1)
        if self.top_k > 1:  # with one expert the share itself must stay, or the router would get no gradient
            weight_Tk = weight_Tk / weight_Tk.sum(dim=-1, keepdim=True)
        used_TE = torch.zeros_like(share_TE).scatter(1, chosen_Tk, 1.0)
        return self._dispatch(tokens, weight_Tk, chosen_Tk), balance(share_TE, used_TE)

    def _dispatch(self, tokens: Tensor, weight_Tk: Tensor, chosen_Tk: Tensor) -> Tensor:
        mixed = torch.zeros_like(tokens)
        for e, expert in enumerate(self.experts):
            # Expert by expert over its own rows: work grows with k, not with the number of experts.
            rows, place = (chosen_Tk == e).nonzero(as_tuple=True)
            weight_R = weight_Tk[rows, place]
            if len(rows) == 0:
                if not self.training:
                    continue
                # An idle expert still takes part, with weight 0: every parameter has a gradient in every step.
                rows, weight_R = rows.new_zeros(1), weight_Tk[:1, 0] * 0
            output = _weigh(expert(tokens[rows]), weight_R)
            mixed = mixed.index_add(0, rows, output.to(mixed.dtype))
        return mixed


def _weigh(output: Tensor, weight_R: Tensor) -> Tensor:
    """Each row times its weight."""
    return output * weight_R.view(-1, *[1] * (output.dim() - 1)).to(output.dtype)


def balance(share_TE: Tensor, used_TE: Tensor) -> Tensor:
    """Load balance of the Switch Transformer (Fedus et al. 2021): E times the sum of (use times mean share)."""
    use_E = used_TE.float().mean(dim=0)
    use_E = use_E / use_E.sum()
    # Use is a count without gradient; the gradient flows through the shares.
    return share_TE.shape[1] * (use_E.detach() * share_TE.mean(dim=0)).sum()


class PointwiseExpert(nn.Module):
    """GELU of one half times the other, per token."""

    def __init__(self, channels: int, ratio: float, out_channels: int | None = None) -> None:
        super().__init__()
        hidden = int(channels * ratio)
        self.widen = nn.Linear(channels, 2 * hidden)
        self.narrow = nn.Linear(hidden, out_channels or channels)

    def forward(self, tokens_TC: Tensor) -> Tensor:
        """(T, C) -> (T, C)."""
        gate, value = self.widen(tokens_TC).chunk(2, dim=-1)
        return self.narrow(F.gelu(gate) * value)


class PixelMixture(nn.Module):
    """Norm, 3x3 per channel, route, add."""

    def __init__(
        self,
        channels: int,
        *,
        experts: int = 4,
        top_k: int = 2,
        routing: Routing = "sparse",
        ratio: float = 1.0,
        freeze_routing: bool = False,
    ) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.router = make_router(channels, experts, routing, frozen=freeze_routing)
        self.mixture = Mixture((PointwiseExpert(channels, ratio) for _ in range(experts)), top_k=top_k, routing=routing)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, C, H, W) -> (B, C, H, W) and the balance."""
        normed_BCHW = self.norm(x_BCHW)
        tokens_BHWC = self.depthwise(normed_BCHW).permute(0, 2, 3, 1)
        tokens_TC = tokens_BHWC.reshape(-1, tokens_BHWC.shape[-1])
        logits_TE = None
        if self.router is not None:
            logits_TE = self.router(normed_BCHW.permute(0, 2, 3, 1).reshape(tokens_TC.shape))
        mixed_TC, balance = self.mixture(tokens_TC, logits_TE)
        return x_BCHW + mixed_TC.view(tokens_BHWC.shape).permute(0, 3, 1, 2), balance


def make_router(channels: int, experts: int, routing: Routing, *, frozen: bool) -> nn.Linear | None:
    """Scores for the experts; none where nothing is routed.

    A frozen router keeps its random choices, so that experts train on a fixed share first; then train on from that file
    with `freeze_routing: false`.
    """
    if routing == "single":
        return None
    return nn.Linear(channels, experts).requires_grad_(not frozen)
