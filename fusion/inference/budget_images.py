"""A cached item and a menu of selections -> the image that each selection gives, by the closed form or a fusion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fusion.network.back_projection import back_project
from fusion.network.base import WHOLE, weighted_sum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cache_tools.reader import FusionBatch
    from fusion.network import FusionSR
    from fusion.network.base import BaseBlend

SCALE = 4


def blends(blend: BaseBlend, item: FusionBatch, menu: Sequence[tuple[str, ...]]) -> list[Tensor]:
    """The blend of each selection; what is alike for all of them, the pull onto the LR image, is made once each."""
    record, lr_BCHW = blend.record, item.lr_BCHW
    with torch.no_grad():
        if record.groups != WHOLE:
            images = {name: item.sr_BECHW[:, index] for index, name in enumerate(item.experts)}
            return [blend(lr_BCHW, torch.stack([images[name] for name in names], 1), names) for names in menu]
        pulled = {
            name: back_project(item.sr_BECHW[:, index], lr_BCHW, record.back_projection)
            for index, name in enumerate(item.experts)
        }
        return [
            weighted_sum(torch.stack([pulled[name] for name in names], 1), blend.weights(names)[0]) for names in menu
        ]


def fused_images(model: FusionSR, item: FusionBatch, menu: Sequence[tuple[str, ...]]) -> list[Tensor]:
    """The trained fusion's image of each selection, made of these experts' images and features alone."""
    device = next(model.parameters()).device
    lr_BCHW = item.lr_BCHW.to(device)
    images: list[Tensor] = []
    for names in menu:
        order = [item.experts.index(name) for name in names]
        feats = {name: item.feats[name].to(device) for name in names if name in item.feats}
        with torch.no_grad():
            output = model(lr_BCHW, item.sr_BECHW[:, order].to(device), feats, names)
        images.append(output.image_BCHW.float().cpu())
    return images


def truth_of(item: FusionBatch) -> Tensor:
    """hr_BCHW, which the readers here were asked to have."""
    assert item.hr_BCHW is not None
    return item.hr_BCHW
