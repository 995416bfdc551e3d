"""A folder of images that some model produced -> an expert: closed and foreign models join the ensemble.

`FOLDER/<item>.png` or `<item>x4.png` (any image format) is the 4x image of LR item `<item>`, beside 2x experts
`<item>x2.png` the 2x image; features, if there are any, lie in `FOLDER/features/<item>.npy` as (C, H, W) at LR size.

Legend: B batch, C channels, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from experts.spec import FOLDER, ExpertIdentity, ExpertOutput
from imaging.files import list_images, read_rgb
from imaging.hashes import file_sha256
from imaging.names import valid_text
from imaging.refusal import Refusal
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

FEATURES = "features"
_TIMES = {2: "two", 3: "three", 4: "four"}


class ImageFolderExpert:
    """An expert that looks its answers up instead of computing them."""

    def __init__(
        self, folder: Path, *, name: str | None = None, device: torch.device | None = None, scale: int = SCALE
    ) -> None:
        if not folder.is_dir():
            raise Refusal("no such folder of images", where=folder, cure="check the path after 'images:'")
        self.folder = folder
        self.device = device or torch.device("cpu")
        self._name = name or folder.resolve().name
        self.scale = scale
        self._images = _by_item(folder, list_images(folder), scale)
        self._features = _by_item(folder / FEATURES, sorted((folder / FEATURES).rglob("*.npy")), scale)

    def at_scale(self, scale: int) -> ImageFolderExpert:
        """The same folder beside experts of this factor: of images alone nobody can tell theirs."""
        if scale == self.scale:
            return self
        return ImageFolderExpert(self.folder, name=self._name, device=self.device, scale=scale)

    @property
    def name(self) -> str:
        """The folder's name, unless another was given."""
        return self._name

    @property
    def identity(self) -> ExpertIdentity:
        """What the folder holds, by name and content."""
        return self._identity

    @cached_property
    def _identity(self) -> ExpertIdentity:
        """The hash covers every image and feature file, so that a changed folder is another expert."""
        digest = hashlib.sha256()
        for item, path in (*sorted(self._images.items()), *sorted(self._features.items())):
            digest.update(f"{item}\0{file_sha256(path)}\n".encode())
        return ExpertIdentity(
            name=self.name,
            architecture=FOLDER,
            tap=FEATURES if self._features else None,
            channels=self._channels,
            weights_sha256=digest.hexdigest(),
            precision="fp32",
            tiling="whole",
            scale=self.scale,
        )

    @cached_property
    def _channels(self) -> int:
        if not self._features:
            return 0
        return int(_read_features(next(iter(self._features.values()))).shape[0])

    def run(self, lr_BCHW: Tensor, items: Sequence[str] = ()) -> ExpertOutput:
        """(B, 3, H, W) and the names of its B images -> what the folder holds for them."""
        if len(items) != lr_BCHW.shape[0]:
            raise ValueError("a folder of images needs the name of every image of the batch")
        height, width = lr_BCHW.shape[-2:]
        images = [self._image(item, self.scale * height, self.scale * width) for item in items]
        sr_BCHW = torch.cat(images).to(self.device)
        if not self._features:
            return ExpertOutput(sr_BCHW, None)
        features = [self._feature(item, height, width) for item in items]
        return ExpertOutput(sr_BCHW, torch.stack(features).to(self.device))

    def _image(self, item: str, height: int, width: int) -> Tensor:
        path = _lookup(self._images, item_name(item, self.scale), self.folder)
        sr_BCHW = read_rgb(path)
        found = tuple(sr_BCHW.shape[-2:])
        if found != (height, width):
            what = f"is {found[1]}x{found[0]}, {_TIMES[self.scale]} times its LR image is {width}x{height}"
            raise Refusal(what, where=path, cure=f"give the model's whole {self.scale}x output")
        return sr_BCHW

    def _feature(self, item: str, height: int, width: int) -> Tensor:
        path = _lookup(self._features, item_name(item, self.scale), self.folder / FEATURES)
        feat_CHW = _read_features(path)
        if tuple(feat_CHW.shape) != (self._channels, height, width):
            what = f"is {tuple(feat_CHW.shape)}, wanted {(self._channels, height, width)}"
            raise Refusal(what, where=path, cure="give (C, H, W) at LR size, the same C everywhere")
        if not bool(torch.isfinite(feat_CHW).all()):
            raise Refusal("holds NaN or infinity", where=path, cure="make the features again")
        return feat_CHW


def _by_item(root: Path, paths: Sequence[Path], scale: int) -> dict[str, Path]:
    """Files -> item names: the path within the folder without suffix and without the mark `x4`."""
    by_item: dict[str, Path] = {}
    for path in paths:
        relative = path.relative_to(root)
        if relative.parts[0] == FEATURES:
            continue
        item = item_name(relative.with_suffix("").as_posix(), scale)
        if item in by_item:
            raise Refusal(f"and {by_item[item].name} are both '{item}'", where=path, cure="keep one of them")
        by_item[item] = path
    return by_item


def item_name(stem: str, scale: int = SCALE) -> str:
    """`baby`, `babyx4` -> `baby`: the NTIRE and DIV2K convention for names of 4x pairs; text that a cache can hold."""
    return valid_text(stem).removesuffix(f"x{scale}")


def _lookup(known: dict[str, Path], item: str, folder: Path) -> Path:
    path = known.get(item)
    if path is None:
        raise Refusal(f"has nothing for item '{item}'", where=folder, cure="put the model's output for it there")
    return path


def _read_features(path: Path) -> Tensor:
    """A .npy file -> float32 (C, H, W); pickled arrays are refused, since they could run code."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise Refusal(f"is no plain .npy array ({error})", where=path, cure="save it with numpy.save") from None
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.floating):
        raise Refusal(f"is {array.dtype} {array.shape}, not floats (C, H, W)", where=path, cure="save it so")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
