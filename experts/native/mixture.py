"""Tokens and their routing scores -> each token through its few best experts only, and how evenly they were used.

A token is a row of the first axis: a pixel's channels or a whole window. Only the chosen rows are gathered and run.
Legend: T tokens, E experts, k chosen experts per token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

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
            rows, place = (chosen_Tk == e).nonzero(as_tuple=True)
            weight_R = weight_Tk[rows, place]
            if len(rows) == 0:
                if not self.training:
                    continue
                # An idle expert still takes part, with weight 0: every parameter has a gradient in every step.
                rows, weight_R = rows.new_zeros(1), weight_Tk[:1, 0] * 0
            given = _weigh(expert(tokens[rows]), weight_R)
            mixed = mixed.index_add(0, rows, given.to(mixed.dtype))
        return mixed


def _weigh(given: Tensor, weight_R: Tensor) -> Tensor:
    """Each row times its weight."""
    return given * weight_R.view(-1, *[1] * (given.dim() - 1)).to(given.dtype)


def balance(share_TE: Tensor, used_TE: Tensor) -> Tensor:
    """Load balance of the Switch Transformer (Fedus et al. 2021): E times the sum of (use times mean share)."""
    use_E = used_TE.float().mean(dim=0)
    use_E = use_E / use_E.sum()
    return share_TE.shape[1] * (use_E.detach() * share_TE.mean(dim=0)).sum()
