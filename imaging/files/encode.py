"""float RGB in [0, 1] (and alpha, profile, text) -> an image file, whole or not at all. Axes: C colour, H, W."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import tifffile
import torch
from PIL import Image

from imaging.atomic import atomic_path
from imaging.files.exif import PREFIX, add_to_tiff
from imaging.files.folders import WRITTEN
from imaging.files.heif import AVIF_CURE, has_avif
from imaging.files.metadata import EmbeddedBlocks, Metadata, blocks_for
from imaging.files.png import png_rows
from imaging.quantize import quantize_u8, quantize_u16
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from imaging.files.picture import Depth, Picture

log = logging.getLogger(__name__)

_DEEP = (".png", ".tif", ".tiff")
TRANSPARENT = (".png", ".tif", ".tiff", ".webp", ".avif")
LOSSY = (".jpg", ".jpeg", ".webp", ".avif")  # that have a quality
_LONGEST_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383, ".avif": 65_536}  # the formats' own limits
_JPEG_QUALITY, _AVIF_QUALITY = 95, 90
_LUMA = (0.299, 0.587, 0.114)  # BT.601, full range: what "grey" means in image files


def write_picture(
    path: Path,
    rgb: Tensor,
    *,
    like: Picture | None = None,
    depth: Depth | None = None,
    alpha: Tensor | None = None,
    icc: bytes | None = None,
    text: Mapping[str, str] | None = None,
) -> None:
    """Write `rgb`, (1,3,H,W) or (3,H,W) float, in the format that the suffix names.

    Values are clamped to [0, 1] and rounded to nearest once (imaging.quantize). Depth, profile and one-channel
    grey come from `like` unless given; without either, 8-bit RGB. `alpha` is (H,W), or with leading ones;
    that of `like` is used when its size fits, and a `like` whose alpha does not fit demands `alpha`.
    WebP is written without loss, JPEG and AVIF at quality 95 and 90 without chroma subsampling; no EXIF and no XMP is.
    `text` goes into PNG only.
    A format that cannot hold the depth, the transparency or the size is refused: nothing is dropped silently.
    """
    rgb_CHW = _as_chw(rgb)
    height, width = rgb_CHW.shape[-2:]
    bits = depth or (like.depth if like else 8)
    alpha_HW = _alpha_for(like, alpha, (height, width))
    check_format(path, bits, transparent=alpha_HW is not None, longest=max(height, width))
    levels_HWC = _levels(rgb_CHW, alpha_HW, bits, grey=like is not None and like.grey)
    write_levels(path, levels_HWC, icc=icc or (like.icc if like else None), text=text)


def write_levels(
    path: Path,
    levels_HWC: np.ndarray,
    *,
    icc: bytes | None = None,
    text: Mapping[str, str] | None = None,
    metadata: Metadata | None = None,
    quality: int | None = None,
) -> None:
    """Write whole levels, uint8 or uint16 of 1 to 4 channels (grey or RGB, transparency last), as they are.

    `quality`, 1 to 100, is of JPEG, WebP (which has loss then) and AVIF.
    """
    suffix = path.suffix.lower()
    height, width, channels = levels_HWC.shape
    bits: Depth = 16 if levels_HWC.dtype == np.uint16 else 8
    check_format(path, bits, transparent=channels in (2, 4), longest=max(height, width))
    profile = _fitting_profile(icc, channels, path)
    blocks = blocks_for(path, metadata)
    try:
        if suffix == ".png":
            _write_png(path, levels_HWC, profile, text, blocks)
        elif suffix in (".tif", ".tiff"):
            _write_tiff(path, levels_HWC, profile, blocks)
        else:
            _write_with_pillow(path, suffix, levels_HWC, profile, blocks, quality)
    except OSError as error:
        cure = "free space there, fix its permissions, or write elsewhere"
        raise Refusal(f"cannot be written ({error.strerror or error})", where=path, cure=cure) from error


def _write_png(
    path: Path, levels_HWC: np.ndarray, icc: bytes | None, text: Mapping[str, str] | None, blocks: EmbeddedBlocks
) -> None:
    height, width, channels = levels_HWC.shape
    with png_rows(
        path,
        height=height,
        width=width,
        channels=channels,
        depth=16 if levels_HWC.dtype == np.uint16 else 8,
        icc=icc,
        text=text,
        exif=blocks.exif,
        xmp=blocks.xmp,
    ) as rows:
        rows(levels_HWC)


def _as_chw(rgb: Tensor) -> Tensor:
    rgb_CHW = rgb[0] if rgb.ndim == 4 and rgb.shape[0] == 1 else rgb
    if rgb_CHW.ndim != 3 or rgb_CHW.shape[0] != 3 or 0 in rgb_CHW.shape:
        raise ValueError(f"expected one RGB image, (1,3,H,W) or (3,H,W), got {tuple(rgb.shape)}")
    return rgb_CHW.detach().cpu()


def _alpha_for(like: Picture | None, alpha: Tensor | None, size: tuple[int, int]) -> Tensor | None:
    if alpha is None and like is not None:
        alpha = like.alpha_HW
    if alpha is None:
        return None
    if tuple(alpha.shape[-2:]) != size or alpha.numel() != size[0] * size[1]:
        raise ValueError(f"transparency is {tuple(alpha.shape)}, the image {size}: resize it and pass alpha=")
    return alpha.detach().cpu().reshape(size)


def check_format(path: Path, bits: Depth, *, transparent: bool, longest: int) -> None:
    """Refuse a suffix that cannot hold the depth, the transparency or the size."""
    suffix = path.suffix.lower()
    if suffix not in WRITTEN:
        kinds = ", ".join(sorted(WRITTEN))
        raise Refusal(f"'{suffix}' is not a format that can be written", where=path, cure=f"use one of {kinds}")
    if bits == 16 and suffix not in _DEEP:
        raise Refusal(f"{suffix} cannot hold 16 bits", where=path, cure="write .png or .tif, or request 8 bits")
    if transparent and suffix not in TRANSPARENT:
        raise Refusal(f"{suffix} cannot hold transparency", where=path, cure="write .png, .tif or .webp")
    if suffix == ".avif" and not has_avif():
        raise Refusal("this Pillow does not write AVIF", where=path, cure=AVIF_CURE)
    limit = _LONGEST_SIDE.get(suffix)
    if limit is not None and longest > limit:
        raise Refusal(f"{suffix} ends at {limit} pixels a side, not {longest}", where=path, cure="write .png or .tif")


def _levels(rgb_CHW: Tensor, alpha_HW: Tensor | None, bits: Depth, *, grey: bool) -> np.ndarray:
    """Float planes -> uint8 or uint16 (H,W,C) with C = 1 or 3, and one more for transparency."""
    planes_CHW = grey_plane(rgb_CHW) if grey else rgb_CHW
    if alpha_HW is not None:
        planes_CHW = torch.cat([planes_CHW, alpha_HW[None].to(planes_CHW.dtype)])
    planes_HWC = planes_CHW.permute(1, 2, 0)
    if bits == 8:
        return quantize_u8(planes_HWC).contiguous().numpy()
    return quantize_u16(planes_HWC).contiguous().numpy().astype(np.uint16)


def grey_plane(rgb_CHW: Tensor) -> Tensor:
    """RGB -> the one channel (float64) that a grey file holds."""
    weights_C11 = torch.tensor(_LUMA, dtype=torch.float64, device=rgb_CHW.device)[:, None, None]
    return (rgb_CHW.double() * weights_C11).sum(0, keepdim=True)


def _fitting_profile(icc: bytes | None, channels: int, path: Path) -> bytes | None:
    """A profile for one grey channel does not describe RGB: it is left out, and that is logged."""
    if icc is not None and channels >= 3 and icc[16:20] == b"GRAY":
        log.warning("%s: the grey colour profile does not fit an RGB image and is left out", path)
        return None
    return icc


def _write_tiff(path: Path, levels_HWC: np.ndarray, icc: bytes | None, blocks: EmbeddedBlocks) -> None:
    channels = levels_HWC.shape[-1]
    with atomic_path(path) as temporary:
        tifffile.imwrite(
            temporary,
            levels_HWC[..., 0] if channels == 1 else levels_HWC,
            photometric="rgb" if channels >= 3 else "minisblack",
            planarconfig="contig" if channels > 1 else None,
            extrasamples=["unassalpha"] if channels in (2, 4) else None,
            compression="zlib",
            predictor=True,
            iccprofile=icc,
            metadata=None,
        )
        if blocks != EmbeddedBlocks() and not add_to_tiff(temporary, blocks.parts, blocks.xmp):
            log.warning("%s: a TIFF beyond 4 GB is written without EXIF and XMP", path)


def _write_with_pillow(
    path: Path, suffix: str, levels_HWC: np.ndarray, icc: bytes | None, blocks: EmbeddedBlocks, quality: int | None
) -> None:
    """8-bit JPEG, WebP, AVIF and BMP."""
    channels = levels_HWC.shape[-1]
    image = Image.fromarray(levels_HWC[..., 0] if channels == 1 else levels_HWC)
    beside = {"icc_profile": icc, "exif": blocks.exif or b"", "xmp": blocks.xmp or b""}
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if suffix in (".jpg", ".jpeg"):
            beside["exif"] = PREFIX + blocks.exif if blocks.exif else b""
            image.save(file, "JPEG", quality=quality or _JPEG_QUALITY, subsampling=0, **beside)
        elif suffix == ".webp":
            loss = {"lossless": True, "exact": True} if quality is None else {"quality": quality}
            image.save(file, "WEBP", **loss, **beside)
        elif suffix == ".avif":
            grey = "4:0:0" if channels == 1 else "4:4:4"
            image.save(file, "AVIF", quality=quality or _AVIF_QUALITY, subsampling=grey, **beside)
        else:
            if icc is not None:
                log.warning("%s: BMP cannot hold the colour profile; it is left out", path)
            image.save(file, "BMP")
