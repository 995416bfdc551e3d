"""Shared by the imaging tests: image files made by other means than our own writer, and small profiles."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms


def levels(*shape: int, depth: int = 8, seed: int = 0) -> np.ndarray:
    """Seeded random whole levels."""
    dtype = np.uint8 if depth == 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 1 << depth, shape, dtype=dtype)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(
    rows: list[bytes], width: int, bits: int, colour_type: int, *, before: bytes = b"", after: bytes = b""
) -> bytes:
    """An unfiltered PNG from packed rows; `before` and `after` are whole chunks around the pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    body = png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", pixels) + after + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png_of(samples: np.ndarray, colour_type: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """8- or 16-bit samples (H,W) or (H,W,S) -> PNG bytes."""
    bits = samples.dtype.itemsize * 8
    rows = [row.astype(f">u{bits // 8}").tobytes() for row in samples]
    return raw_png(rows, samples.shape[1], bits, colour_type, before=before, after=after)


def pillow_bytes(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def rgb_profile() -> bytes:
    """A real sRGB profile (made once: it carries the time)."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def grey_profile() -> bytes:
    """The head of the sRGB profile, relabelled: enough for everything that only looks at the kind."""
    whole = bytearray(rgb_profile())
    whole[16:20] = b"GRAY"
    return bytes(whole)


def exif(orientation: int) -> bytes:
    """EXIF that says nothing but the orientation."""
    record = Image.Exif()
    record[0x0112] = orientation
    return record.tobytes()


def as_levels(unit: torch.Tensor, depth: int) -> np.ndarray:
    """[0, 1] planes (C,H,W) or (H,W) -> whole levels (H,W,C) or (H,W); fails when a value is not one."""
    top = (1 << depth) - 1
    whole = np.rint(unit.double().numpy() * top)
    assert np.abs(unit.double().numpy() * top - whole).max() < 0.01
    return np.moveaxis(whole, 0, -1) if whole.ndim == 3 else whole


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
