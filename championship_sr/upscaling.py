"""An image as a path, PIL image, numpy array or torch tensor -> the same kind, four times as large.

Axes: C channels (1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha), H and W height and width, B batch, K layers.
"""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import infer
from fusion.inference.ensemble import EIGHTFOLD, PLAIN, Place, run_tile
from fusion.inference.memory import choose_tile, effective_tile
from fusion.inference.model_selection import DEFAULT
from fusion.inference.oom_retry import OutOfMemoryRetry
from fusion.inference.source import read_source
from fusion.inference.tiles import whole
from fusion.inference.upscale import Grid
from imaging.device import best_device
from imaging.files import grey_plane, quantize_u8, quantize_u16, read_metadata
from imaging.files.exif import ORIENTATION, PREFIX
from imaging.files.metadata import metadata_of
from imaging.resize import resize_bicubic

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from fusion.inference.ensemble import Ensemble
    from imaging.device import Precision
    from imaging.files import Metadata
    from imaging.tiling import FeatheredSpan

ImageT = TypeVar("ImageT", Image.Image, np.ndarray, Tensor)

_PIL_MODES = ("L", "LA", "RGB", "RGBA")
_PIL_CONVERSIONS = {"1": "L", "P": "RGB", "PA": "RGBA", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB", "YCbCr": "RGB"}


@overload
def upscale(
    image: str | os.PathLike[str],
    *,
    model: str = ...,
    experts: Sequence[str] | None = ...,
    device: str | None = ...,
    tile: int | None = ...,
    tta: bool = ...,
    precision: Precision | None = ...,
) -> Image.Image: ...
@overload
def upscale(
    image: ImageT,
    *,
    model: str = ...,
    experts: Sequence[str] | None = ...,
    device: str | None = ...,
    tile: int | None = ...,
    tta: bool = ...,
    precision: Precision | None = ...,
) -> ImageT: ...
def upscale(
    image: str | os.PathLike[str] | Image.Image | np.ndarray | Tensor,
    *,
    model: str = DEFAULT,
    experts: Sequence[str] | None = None,
    device: str | None = None,
    tile: int | None = None,
    tta: bool = False,
    precision: Precision | None = None,
) -> Image.Image | np.ndarray | Tensor:
    """Enlarge one image (or a batch of tensors) as the experts do, four times; the result is of the kind given.

    image      | a path: the file, upright -> an 8-bit PIL image; colour profile, EXIF and XMP stand in its `info`
               | a PIL image, 8 bits per channel -> a PIL image of mode L, LA, RGB or RGBA, turned as it was
               | numpy (H, W) or (H, W, C) -> (4H, 4W) or (4H, 4W, C), same dtype: uint8 in 0..255, uint16 in
               | 0..65535, or float in [0, 1]
               | torch (C, H, W) or (B, C, H, W) -> (C, 4H, 4W) or (B, C, 4H, 4W), same dtype and device: uint8 in
               | 0..255, or float in [0, 1]
    model      `default` (the weights that ship), `none`, a folder, a file, or a name on the Hub, as for infer.py
    experts    names, files or None for the model's own; any subset of those that the model knows
    device     `cpu`, `cuda`, `cuda:1`, `mps`; None: CUDA where there is one
    tile       side of the tiles in LR pixels; None chooses by free memory, 0 runs images whole
    tta        the mean over eight flips and rotations: eight times the work
    precision  None: as infer.py chooses; fp32; bf16: experts and fusion; fp16: the experts alone

    Results are clamped to their range; alpha is enlarged by bicubic interpolation apart from the colours. 8-bit results
    are those of infer.py. The model that was used last stays open. What the user can mend (a missing file, an unknown
    expert) raises `championship_sr.Refusal`; a wrong shape, dtype or range raises ValueError.
    """
    wanted = None if experts is None else tuple(experts)
    ensemble = _opened(model, wanted, device or best_device(), precision)
    enlarge = partial(_enlarged, ensemble=ensemble, tile=tile, tta=tta)
    if isinstance(image, Image.Image):
        return _of_pil(image, enlarge)
    if isinstance(image, Tensor):
        return _of_tensor(image, enlarge)
    if isinstance(image, np.ndarray):
        return _of_array(image, enlarge)
    return _of_file(Path(image), enlarge)


@lru_cache(maxsize=1)
def _opened(model: str, experts: tuple[str, ...] | None, device: str, precision: Precision | None) -> Ensemble:
    return infer.build(model, experts, device=device, precision=precision)


def _enlarged(planes_CHW: Tensor, name: str = "image", *, ensemble: Ensemble, tile: int | None, tta: bool) -> Tensor:
    """float32 in [0, 1], 1 to 4 channels -> (C, sH, sW) on the CPU, float, not clamped."""
    channels, height, width = planes_CHW.shape
    if channels not in (1, 2, 3, 4) or 0 in (height, width):
        raise ValueError(f"expected 1 to 4 channels and at least one pixel, got (C, H, W) = {tuple(planes_CHW.shape)}")
    colours = 3 if channels > 2 else 1
    lr_BCHW = planes_CHW[:colours].expand(3, -1, -1).contiguous()[None]
    side = choose_tile(ensemble, max(height, width))[0] if tile is None else effective_tile(tile, ensemble)
    grid = Grid.of(height, width, side, ensemble.margin, ensemble.multiple)
    run_tile_on = partial(run_tile, ensemble, turns=EIGHTFOLD if tta else PLAIN)
    retry = OutOfMemoryRetry(run_tile_on, ensemble.margin, ensemble.multiple, ensemble.scale)

    def answer(row: FeatheredSpan, column: FeatheredSpan) -> Tensor:
        part_BCHW = lr_BCHW[..., row.start : row.stop, column.start : column.stop].to(ensemble.device)
        return retry.run(part_BCHW, Place(name, row.start, column.start, height, width)).cpu()

    large_CHW = whole(grid.rows, grid.columns, answer, ensemble.scale)
    if colours == 1:
        large_CHW = grey_plane(large_CHW)
    if channels > colours:
        alpha_CHW = resize_bicubic(planes_CHW[None, colours:], scale=ensemble.scale)[0]
        large_CHW = torch.cat([large_CHW, alpha_CHW.to(large_CHW.dtype)])
    return large_CHW


def _of_file(path: Path, enlarge: partial[Tensor]) -> Image.Image:
    """An image file -> 8 bits per channel, upright, with the file's colour profile."""
    source = read_source(path)
    levels_HWC = source.levels_HWC
    if source.alpha_HW is not None:
        levels_HWC = np.concatenate([levels_HWC, source.alpha_HW[..., None]], axis=2)
    unit_CHW = _unit_range(levels_HWC).permute(2, 0, 1)
    large = _pil(quantize_u8(enlarge(unit_CHW, path.stem)))
    if source.icc is not None:
        large.info["icc_profile"] = source.icc
    return _with_metadata(large, read_metadata(path), (source.height, source.width))


def _of_pil(image: Image.Image, enlarge: partial[Tensor]) -> Image.Image:
    if image.mode not in _PIL_MODES:
        target = _PIL_CONVERSIONS.get(image.mode)
        if target is None:
            raise ValueError(f"PIL images of mode {image.mode} are not read: convert it to one of {_PIL_MODES}")
        image = image.convert("RGBA" if target == "RGB" and "transparency" in image.info else target)
    levels_HWC = np.asarray(image).reshape(image.height, image.width, -1)
    large = _pil(quantize_u8(enlarge(_unit_range(levels_HWC).permute(2, 0, 1))))
    if "icc_profile" in image.info:
        large.info["icc_profile"] = image.info["icc_profile"]
    tags = image.getexif()
    raw = image.info.get("exif") or (tags.tobytes() if tags else None)
    packet = image.info.get("xmp")
    metadata = metadata_of((raw, packet if isinstance(packet, bytes) else None), "image")
    return _with_metadata(large, metadata, (image.height, image.width), orientation=tags.get(ORIENTATION, 1))


def _with_metadata(
    large: Image.Image, metadata: Metadata, before: tuple[int, int], orientation: int = 1
) -> Image.Image:
    """Under the keys that Pillow's readers use; its `save` takes them as options."""
    fitted = metadata.fitted(before, (large.height, large.width), orientation)
    block = fitted.exif.block() if fitted.exif is not None else b""
    large.info |= {"exif": PREFIX + block} if block else {}
    large.info |= {} if fitted.xmp is None else {"xmp": fitted.xmp}
    return large


def _of_array(array: np.ndarray, enlarge: partial[Tensor]) -> np.ndarray:
    if array.ndim not in (2, 3):
        raise ValueError(f"expected (H, W) or (H, W, C), got {array.shape}")
    planes_HWC = array[..., None] if array.ndim == 2 else array
    if array.dtype in (np.dtype(np.uint8), np.dtype(np.uint16)):
        quantize = quantize_u8 if array.dtype == np.uint8 else quantize_u16
        large_CHW = quantize(enlarge(_unit_range(planes_HWC).permute(2, 0, 1)))
    elif np.issubdtype(array.dtype, np.floating):
        unit_HWC = torch.from_numpy(planes_HWC.astype(np.float32))
        large_CHW = enlarge(_checked(unit_HWC).permute(2, 0, 1)).clamp(0, 1)
    else:
        raise ValueError(f"expected uint8, uint16 or a float dtype, got {array.dtype}")
    large_HWC = large_CHW.permute(1, 2, 0).contiguous().numpy().astype(array.dtype)
    return large_HWC[..., 0] if array.ndim == 2 else large_HWC


def _of_tensor(image: Tensor, enlarge: partial[Tensor]) -> Tensor:
    if image.ndim == 4:
        return torch.stack([_of_tensor(one_CHW, enlarge) for one_CHW in image])
    if image.ndim != 3:
        raise ValueError(f"expected (C, H, W) or (B, C, H, W), got {tuple(image.shape)}")
    if image.dtype == torch.uint8:
        return quantize_u8(enlarge(image.cpu().float() / 255)).to(image.device)
    if image.is_floating_point():
        return enlarge(_checked(image.detach().cpu().float())).clamp(0, 1).to(image.device, image.dtype)
    raise ValueError(f"expected uint8 or a float dtype, got {image.dtype}")


def _checked(unit: Tensor) -> Tensor:
    """Floats must lie in [0, 1]: levels given as floats would otherwise come back white."""
    low, high = (float(bound) for bound in torch.aminmax(unit)) if unit.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # NaN fails both
        raise ValueError(f"expected floats in [0, 1], got {low:g} to {high:g}")
    return unit


def _unit_range(levels: np.ndarray) -> Tensor:
    return torch.from_numpy(levels.astype(np.float32)) / float(np.iinfo(levels.dtype).max)


def _pil(levels_CHW: Tensor) -> Image.Image:
    """uint8 (C, H, W) -> a PIL image."""
    levels_HWC = levels_CHW.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(levels_HWC[..., 0] if levels_HWC.shape[2] == 1 else levels_HWC)
