"""Items as stored -> items with other experts or another profile; slicing and joining copy values, rounding nothing.

Legend: E experts, C channels, H and W LR height and width, T and U rows and columns of tiles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from cache_tools.format.codec import decode_image, dequantize_whole, encode_features, encode_sr
from cache_tools.format.schema import FEAT, FEAT_SCALE, HR, LR, PROFILES, SR, Header
from cache_tools.write.recipe import expert_entries
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cache_tools.format.schema import ExpertEntry, Profile
    from cache_tools.format.store import Recipe
    from cache_tools.read.item_file import TileFile

Arrays = dict[str, np.ndarray]


def read_arrays(file: TileFile) -> Arrays:
    """Every dataset of an item, each chunk checked."""
    return {name: file.whole(name) for name in file.layout.datasets}


def recode(file: TileFile, recipe: Recipe) -> tuple[Header, Arrays]:
    """One item under another recipe: its experts chosen and ordered, its profile lowered."""
    own = {expert.name: expert for expert in file.header.experts}
    chosen = [own[expert.name] for expert in recipe.experts]
    names = [expert.name for expert in file.header.experts]
    arrays = read_arrays(file)
    images = {name: arrays[name] for name in (LR, HR) if name in arrays}
    images[SR] = arrays[SR][[names.index(expert.name) for expert in chosen]]
    profile = PROFILES[recipe.profile]
    if recipe.profile == file.header.profile:
        return _header(file.header, recipe), {**images, **_slice_features(arrays, chosen)}
    images[SR] = _encode_images(images[SR], profile, file.header.id)
    if profile.features is None:
        return _header(file.header, recipe), images
    return _header(file.header, recipe), {**images, **_requantise(arrays, chosen, profile, file.header.id)}


def join(files: Sequence[TileFile], recipe: Recipe) -> tuple[Header, Arrays]:
    """The same item from several caches with different experts -> one item with all of them."""
    arrays = [read_arrays(file) for file in files]
    for file, found in zip(files[1:], arrays[1:], strict=True):
        _require_same_image(files[0], arrays[0], file, found)
    joined: Arrays = {name: arrays[0][name] for name in (LR, HR) if name in arrays[0]}
    joined[SR] = np.concatenate([found[SR] for found in arrays])
    for name, axis in ((FEAT, 0), (FEAT_SCALE, 2)):
        parts = [found[name] for found in arrays if name in found]
        if parts:
            joined[name] = np.concatenate(parts, axis)
    return _header(files[0].header, recipe), joined


def _header(header: Header, recipe: Recipe) -> Header:
    return header.model_copy(
        update={
            "profile": recipe.profile,
            "compression": recipe.compression,
            "experts": expert_entries(recipe),
            "fingerprint": recipe.fingerprint,
        }
    )


def _slice_features(arrays: Arrays, chosen: Sequence[ExpertEntry]) -> Arrays:
    if FEAT not in arrays or not any(expert.channels for expert in chosen):
        return {}
    index = np.concatenate([np.arange(one.first, one.first + one.channels) for one in chosen])
    sliced = {FEAT: np.ascontiguousarray(arrays[FEAT][index])}
    if FEAT_SCALE in arrays:
        sliced[FEAT_SCALE] = np.ascontiguousarray(arrays[FEAT_SCALE][:, :, index])
    return sliced


def _encode_images(sr_ECHW: np.ndarray, profile: Profile, item: str) -> np.ndarray:
    """SR images between types; uint8 stays what it is, so nothing is ever rounded twice."""
    if sr_ECHW.dtype == np.dtype(profile.sr):
        return sr_ECHW
    return encode_sr(decode_image(torch.from_numpy(sr_ECHW)), profile, where=item).numpy()


def _requantise(arrays: Arrays, chosen: Sequence[ExpertEntry], profile: Profile, item: str) -> Arrays:
    sliced = _slice_features(arrays, chosen)
    if not sliced:
        return {}
    feat_CHW: Tensor = torch.from_numpy(sliced[FEAT])
    if FEAT_SCALE in sliced:
        feat_CHW = dequantize_whole(feat_CHW, torch.from_numpy(sliced[FEAT_SCALE]))
    codes_CHW, scale_TUC2 = encode_features(feat_CHW.float(), profile, where=item)
    features = {FEAT: codes_CHW.numpy()}
    if scale_TUC2 is not None:
        features[FEAT_SCALE] = np.ascontiguousarray(scale_TUC2.numpy())
    return features


def _require_same_image(first: TileFile, arrays: Arrays, other: TileFile, found: Arrays) -> None:
    """Experts may only be joined over one and the same LR and HR."""
    for name in (LR, HR):
        if (name in arrays) != (name in found) or (name in arrays and not np.array_equal(arrays[name], found[name])):
            what = f"its {name.upper()} image is not that of {first.layout.path}"
            raise Refusal(what, where=other.layout.path, cure="extract both caches from the same images")
