"""PNG as chunks: whole levels -> a PNG file row by row (8 or 16 bits, with profile and text); a file -> its chunks.

Written here because no library at hand writes 16-bit RGB with a colour profile and text, or streams rows.
Axes: H rows, W pixels, C channels (1 grey, 2 grey + alpha, 3 RGB, 4 RGBA).
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np

from imaging.atomic import atomic_path
from imaging.files.contradictions import contradicts
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from pathlib import Path

    from imaging.files.picture import Depth

SIGNATURE = b"\x89PNG\r\n\x1a\n"
XMP_KEY = b"XML:com.adobe.xmp"
_COLOUR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}
_LEVEL = 4  # zlib level: two thirds of the time of 6 for a few per cent more bytes
_BLOCK = 1 << 18  # bytes of compressed data per IDAT chunk


class RowWriter(Protocol):
    """Writes the next rows of an image, any number of them."""

    def __call__(self, rows_HWC: np.ndarray) -> None:
        """Write (any, width, channels) whole levels below those written before."""
        ...


@contextmanager
def png_rows(
    path: Path,
    *,
    height: int,
    width: int,
    channels: int,
    depth: Depth = 8,
    icc: bytes | None = None,
    text: Mapping[str, str] | None = None,
    exif: bytes | None = None,
    xmp: bytes | None = None,
) -> Generator[RowWriter]:
    """Open a PNG for writing from top to bottom; the file appears, whole, when all `height` rows were written.

    Rows are uint8 (depth 8) or uint16 (depth 16) arrays of shape (any, width, channels).
    """
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        stream = _PngStream(file, width, channels, depth)
        stream.head(height, icc)
        stream.notes(text or {}, exif, xmp)
        yield stream.rows
        if stream.written != height:
            raise ValueError(f"{path}: {stream.written} rows were written of {height}")
        stream.tail()


class _PngStream:
    """The state of one PNG being written: the compressor and the last row, which the next one is predicted from."""

    def __init__(self, file: BinaryIO, width: int, channels: int, depth: Depth) -> None:
        self._file, self._width, self._channels, self._depth = file, width, channels, depth
        self._step = channels * depth // 8
        self._above = np.zeros(width * self._step, np.uint8)
        self._compressor = zlib.compressobj(_LEVEL, strategy=zlib.Z_FILTERED)
        self._pending = bytearray()
        self.written = 0

    def head(self, height: int, icc: bytes | None) -> None:
        self._file.write(SIGNATURE)
        header = struct.pack(">IIBBBBB", self._width, height, self._depth, _COLOUR_TYPE[self._channels], 0, 0, 0)
        self._chunk(b"IHDR", header)
        if icc is not None:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))

    def notes(self, text: Mapping[str, str], exif: bytes | None, xmp: bytes | None) -> None:
        for key, value in text.items():
            self._chunk(b"iTXt", _keyword(key) + b"\0\0\0\0\0" + value.encode())
        if exif is not None:
            self._chunk(b"eXIf", exif)
        if xmp is not None:
            self._chunk(b"iTXt", XMP_KEY + b"\0\0\0\0\0" + xmp)

    def rows(self, rows_HWC: np.ndarray) -> None:
        expected = np.dtype(np.uint8 if self._depth == 8 else np.uint16)
        if rows_HWC.dtype != expected or rows_HWC.shape[1:] != (self._width, self._channels):
            raise ValueError(
                f"rows are {rows_HWC.dtype} {rows_HWC.shape}, not {expected} (any, {self._width}, {self._channels})"
            )
        big_endian = np.ascontiguousarray(rows_HWC, dtype=expected.newbyteorder(">"))
        bytes_HB = big_endian.view(np.uint8).reshape(len(rows_HWC), -1)
        # A few megabytes at a time: filtering takes several times the memory of its input.
        block = max(1, (4 << 20) // max(1, bytes_HB.shape[1]))
        for start in range(0, len(bytes_HB), block):
            part_HB = bytes_HB[start : start + block]
            self._pending += self._compressor.compress(_filtered(part_HB, self._above, self._step).tobytes())
            self._above = part_HB[-1].copy()
            if len(self._pending) >= _BLOCK:
                self._flush()
        self.written += len(rows_HWC)

    def tail(self) -> None:
        self._pending += self._compressor.flush()
        self._flush()
        self._chunk(b"IEND", b"")

    def _flush(self) -> None:
        self._chunk(b"IDAT", bytes(self._pending))
        self._pending.clear()

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self._file.write(_chunk(kind, data))


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _filtered(bytes_HB: np.ndarray, above_B: np.ndarray, step: int) -> np.ndarray:
    """Rows -> rows with PNG's filter byte in front: per row the filter with the least sum of absolute differences."""
    up_HB = np.concatenate([above_B[None], bytes_HB[:-1]])
    left_HB, up_left_HB = _shifted(bytes_HB, step), _shifted(up_HB, step)
    average_HB = ((left_HB.astype(np.uint16) + up_HB) >> 1).astype(np.uint8)
    guesses = (np.zeros_like(bytes_HB), left_HB, up_HB, average_HB, _paeth(left_HB, up_HB, up_left_HB))
    out = np.empty((len(bytes_HB), bytes_HB.shape[1] + 1), np.uint8)
    best_H = np.full(len(bytes_HB), np.iinfo(np.int64).max)
    for kind, guess_HB in enumerate(guesses):
        residual_HB = bytes_HB - guess_HB  # modulo 256, as PNG defines it
        cost_H = np.abs(residual_HB.view(np.int8).astype(np.int16)).sum(axis=1, dtype=np.int64)
        better_H = cost_H < best_H
        best_H[better_H] = cost_H[better_H]
        out[better_H, 0] = kind
        out[better_H, 1:] = residual_HB[better_H]
    return out


def _shifted(bytes_HB: np.ndarray, step: int) -> np.ndarray:
    """The same byte of the pixel to the left; zero before the first."""
    left_HB = np.zeros_like(bytes_HB)
    left_HB[:, step:] = bytes_HB[:, :-step]
    return left_HB


def _paeth(left: np.ndarray, up: np.ndarray, up_left: np.ndarray) -> np.ndarray:
    """PNG's predictor: whichever of the three neighbours is nearest to left + up - up_left."""
    a, b, c = left.astype(np.int16), up.astype(np.int16), up_left.astype(np.int16)
    to_a, to_b, to_c = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    return np.where((to_a <= to_b) & (to_a <= to_c), left, np.where(to_b <= to_c, up, up_left))


def _keyword(key: str) -> bytes:
    raw = key.encode("latin-1", "replace")
    if not 1 <= len(raw) <= 79 or b"\0" in raw:
        raise ValueError(f"a PNG text key has 1 to 79 characters, got {key!r}")
    return raw


def chunks(file: BinaryIO, *, where: Path, pixels: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield (kind, data) of each chunk up to IEND; pixel data is passed over unless `pixels`, which also checks it."""
    end = file.seek(0, 2)
    file.seek(len(SIGNATURE))
    kind, first = b"", True
    while kind != b"IEND":
        head = file.read(8)
        if len(head) < 8:
            raise _truncated(where)
        length, kind = struct.unpack(">I4s", head)
        if (kind == b"IHDR") != first:
            raise contradicts("its header is not the one first chunk", where)
        first = False
        if length > end - file.tell():  # before memory is taken for it
            raise _truncated(where)
        if kind == b"IDAT" and not pixels:
            file.seek(length + 4, 1)
            continue
        data, crc = file.read(length), file.read(4)
        if len(data) < length or len(crc) < 4:
            raise _truncated(where)
        critical = kind[:1].isupper()
        if critical and zlib.crc32(kind + data) != int.from_bytes(crc, "big"):
            reason = f"is damaged: the checksum of chunk {kind.decode('latin-1')} does not match"
            raise Refusal(reason, where=where, cure="replace it with an intact copy")
        yield kind, data


def without_metadata(path: Path) -> bytes:
    """The bytes of a PNG without EXIF and XMP; those of one that has none as they are."""
    data = path.read_bytes()
    found = list(chunks(io.BytesIO(data), where=path, pixels=True))
    kept = [(kind, body) for kind, body in found if not (kind == b"eXIf" or body.startswith(XMP_KEY + b"\0"))]
    return data if len(kept) == len(found) else SIGNATURE + b"".join(_chunk(kind, body) for kind, body in kept)


def _truncated(where: Path) -> Refusal:
    return Refusal(
        "is a truncated PNG: it ends before its last chunk", where=where, cure="replace it with a whole copy"
    )
