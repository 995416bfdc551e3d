"""The experts' outputs for an image -> the datasets of its item, in the types that the profile stores.

Legend: E experts, C channels, H and W LR height and width, T and U rows and columns of tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cache_tools.format.codec import encode_features, encode_sr
from cache_tools.format.schema import FEAT, FEAT_SCALE, HR, LR, PROFILES, SR
from cache_tools.write.recipe import expert_entries
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor

    from cache_tools.format.store import Recipe
    from cache_tools.write.load import LoadedJob
    from experts.spec import ExpertOutput


def encode_item(recipe: Recipe, loaded: LoadedJob, outputs: Sequence[ExpertOutput]) -> dict[str, np.ndarray]:
    """Quantise on the experts' device, move the smaller result once, stack."""
    profile = PROFILES[recipe.profile]
    arrays = {LR: loaded.lr_CHW.contiguous().numpy()}
    if loaded.hr_CHW is not None:
        arrays[HR] = loaded.hr_CHW.contiguous().numpy()
    images: list[Tensor] = []
    codes: list[Tensor] = []
    scales: list[Tensor] = []
    for output, entry in zip(outputs, expert_entries(recipe), strict=True):
        where = f"expert {entry.name} on item {loaded.job.id}"
        # Quantised on the device, then moved: a quarter of the bytes over the bus.
        images.append(encode_sr(output.sr_BCHW[0], profile, where=where).cpu())
        if not entry.channels:
            continue
        codes_CHW, scale_TUC2 = encode_features(_features(output, entry.channels, where), profile, where=where)
        codes.append(codes_CHW.cpu())
        scales += [] if scale_TUC2 is None else [scale_TUC2.cpu()]
    arrays[SR] = torch.stack(images).numpy()
    if codes:
        arrays[FEAT] = torch.cat(codes).numpy()
    if scales:
        arrays[FEAT_SCALE] = torch.cat(scales, 2).numpy()
    return arrays


def _features(output: ExpertOutput, channels: int, where: str) -> Tensor:
    """Features, finite and with the recipe's channel count; anything else must not reach the disk."""
    if output.feat_BCHW is None or output.feat_BCHW.shape[1] != channels:
        found = 0 if output.feat_BCHW is None else output.feat_BCHW.shape[1]
        raise Refusal(f"gave {found} feature channels, its recipe has {channels}", where=where, cure="correct its tap")
    if not bool(torch.isfinite(output.feat_BCHW).all()):
        raise Refusal("features hold NaN or infinity", where=where, cure="run it with --precision fp32")
    return output.feat_BCHW[0]
