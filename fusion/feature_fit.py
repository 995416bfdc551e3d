"""A stream of experts' features -> mean and spread of every channel, in one pass.

Axes: B batch, C an expert's feature channels, N the pixels of a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Moments = dict[str, tuple[Tensor, Tensor]]  # expert -> mean (C), spread (C)


def fit_moments(items: Iterable[Mapping[str, Tensor]]) -> Moments:
    """Features by expert, each (B, C, H, W), one item after the other -> their moments; a flat channel has spread 1."""
    sums: dict[str, Tensor] = {}
    for feats in items:
        for name, feat_BCHW in feats.items():
            feat_CN = feat_BCHW.transpose(0, 1).flatten(1).double()
            count_C = torch.full_like(feat_CN[:, 0], feat_CN.shape[1])
            terms_3C = torch.stack([count_C, feat_CN.sum(1), feat_CN.square().sum(1)])
            sums[name] = sums.get(name, torch.zeros_like(terms_3C)) + terms_3C
    return {name: _moments(name, terms_3C) for name, terms_3C in sums.items()}


def _moments(name: str, terms_3C: Tensor) -> tuple[Tensor, Tensor]:
    if not terms_3C.isfinite().all():
        raise Refusal("its features are not finite", where=f"expert {name}", cure="verify the cache")
    count_C, sum_C, square_C = terms_3C
    mean_C = sum_C / count_C
    spread_C = (square_C / count_C - mean_C.square()).clamp(min=0).sqrt().float()
    return mean_C.float(), torch.where(spread_C > 0, spread_C, torch.ones_like(spread_C))
