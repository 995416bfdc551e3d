"""Image folders and a limit in bytes -> one folder that fits: images as they are, the largest cut to their middles.

What is kept is kept without loss: files are copied byte for byte, cuts are stored as lossless WebP. The order of the
images stays, and with it which of them training holds out, unless some had to be left out.
Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from PIL import Image
from tqdm import tqdm

from imaging.atomic import atomic_path, write_bytes, write_text
from imaging.files import image_size, list_images, quantize_u8, read_rgb
from imaging.refusal import Refusal
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

RECORD = "pack.json"
_DENSE = 3.0  # bytes per pixel that a lossless file needs at most


@dataclass(frozen=True)
class Packed:
    """Counts of the images and what remains of their pixels."""

    folder: str
    copied: int
    cut: int
    left_out: int
    bytes: int
    pixels_kept: float


@dataclass(frozen=True)
class _File:
    source: Path
    target: Path
    bytes: int


@dataclass(frozen=True)
class _Middle:
    data: bytes
    pixels: int


def pack(folders: Sequence[Path], out: Path, *, limit: int, least: int = 192) -> Packed:
    """Fill `out` with at most `limit` bytes of images; no cut is smaller than `least` pixels on its shorter side."""
    if out.exists() and any(out.iterdir()):
        raise Refusal("is not empty", where=out, cure="remove it, or name another folder")
    files = _listed(folders, out)
    selected, cap = _chosen(files, limit, least)
    copied, cut, kept = 0, 0, 0
    for file in tqdm(selected, desc="packing", unit="image", disable=None):
        if file.bytes <= cap:
            with atomic_path(file.target) as temporary:
                shutil.copyfile(file.source, temporary)
            copied, kept = copied + 1, kept + _pixels(file.source)
        elif (middle := _middle(file.source, cap, least)) is not None:
            write_bytes(file.target.with_suffix(".webp"), middle.data)
            cut, kept = cut + 1, kept + middle.pixels
    if copied + cut == 0:
        raise _too_little(limit, least)
    packed = Packed(
        folder=str(out),
        copied=copied,
        cut=cut,
        left_out=len(files) - copied - cut,
        bytes=sum(path.stat().st_size for path in list_images(out)),
        pixels_kept=round(kept / sum(_pixels(file.source) for file in files), 4),
    )
    sources = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    write_text(out / RECORD, json.dumps({"from": sources, **asdict(packed)}, indent=2) + "\n")
    return packed


def _listed(folders: Sequence[Path], out: Path) -> list[_File]:
    """Every image, in a folder of its own per source whose number keeps their order."""
    files = []
    for number, folder in enumerate(folders):
        name = f"{number:02d}-{'-'.join(folder.resolve().parts[-2:])}"
        files += [
            _File(path, out / name / path.relative_to(folder), path.stat().st_size) for path in list_images(folder)
        ]
    return files


def _chosen(files: Sequence[_File], limit: int, least: int) -> tuple[list[_File], int]:
    """As many images, evenly spread, as can all have `cap` bytes, and that cap: enough for the smallest cut."""
    enough = int(_DENSE * least**2)
    count = len(files)
    while count:
        selected = [files[index * len(files) // count] for index in range(count)]
        cap = _cap([file.bytes for file in selected], limit)
        if cap >= min(enough, max(file.bytes for file in selected)):
            return selected, cap
        count -= max(1, count // 50)
    raise _too_little(limit, least)


def _too_little(limit: int, least: int) -> Refusal:
    what = f"{limit} bytes hold no cut of {least} pixels"
    return Refusal(what, where="limit", cure="raise it, or lower the least side")


def _cap(sizes: Sequence[int], limit: int) -> int:
    """The largest size at which files, none counted for more, make up no more than `limit`."""
    rest, left = limit, len(sizes)
    for size in sorted(sizes):
        if size * left > rest:
            return rest // left
        rest, left = rest - size, left - 1
    return max(sizes)


def _middle(path: Path, cap: int, least: int) -> _Middle | None:
    """The largest cut that takes at most `cap` bytes; None when that is below the least side."""
    rgb_BCHW = read_rgb(path)
    height, width = rgb_BCHW.shape[-2:]
    # The side of a square that is surely too large: no file is denser than its lossless form.
    side = math.sqrt(cap / path.stat().st_size * height * width)
    while True:
        tall, wide = (int(min(side, whole)) // SCALE * SCALE for whole in (height, width))
        if min(tall, wide) < least:
            return None
        data = _lossless(rgb_BCHW[..., (height - tall) // 2 :, (width - wide) // 2 :][..., :tall, :wide])
        if len(data) <= cap:
            return _Middle(data, tall * wide)
        side *= min(0.99, math.sqrt(cap / len(data)))


def _lossless(rgb_BCHW: Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(quantize_u8(rgb_BCHW)[0].permute(1, 2, 0).numpy()).save(
        stream, "WEBP", lossless=True, quality=60
    )  # of lossless WebP: effort, not loss
    return stream.getvalue()


def _pixels(path: Path) -> int:
    return math.prod(image_size(path))
