"""An image file -> its EXIF and XMP -> those of an image made from it, as far as the new file's format holds them."""

from __future__ import annotations

import logging
import mmap
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from imaging.files.directories import DamagedExifError
from imaging.files.exif import PREFIX, XMP, Exif, parse_exif
from imaging.files.header import detect_format, open_header, refusing
from imaging.files.picture import MAX_PIXELS
from imaging.files.png import XMP_KEY, chunks
from imaging.files.xmp import DamagedXmpError, Size, fitted_xmp
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

MAX_BYTES = 16 << 20  # of EXIF or of XMP: photographs have kilobytes
_XMP_MARK, _MORE_XMP_MARK = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_APP1, _START_OF_SCAN = 0xE1, 0xDA
# A JPEG's segment takes 65,533 bytes, its mark among them.
_MOST = {
    ".jpg": (65_533 - len(PREFIX), 65_533 - len(_XMP_MARK)),
    ".jpeg": (65_533 - len(PREFIX), 65_533 - len(_XMP_MARK)),
}


@dataclass(frozen=True)
class Metadata:
    """What a file says beside its pixels, but for its colour profile; XMP was checked to be XML."""

    exif: Exif | None = None
    xmp: bytes | None = None

    def fitted(self, before: Size, after: Size, orientation: int = 1) -> Metadata:
        """Of an image that was (height, width) `before` and is `after`, turned so: in our outputs it is upright."""
        exif = None if self.exif is None else self.exif.fitted(*after, orientation)
        xmp = None if self.xmp is None else fitted_xmp(self.xmp, before, after, orientation)
        return Metadata(exif, xmp)


@dataclass(frozen=True)
class EmbeddedBlocks:
    """As a format embeds them; `exif` once more in parts, for TIFF."""

    exif: bytes | None = None
    xmp: bytes | None = None
    parts: Exif | None = None


def read_metadata(path: Path) -> Metadata:
    """What can be used of a file's EXIF and XMP; one line says what is damaged or too large and stays behind."""
    try:
        with path.open("rb") as file:
            return metadata_of(_raw(path, file), path)
    except OSError as error:
        cure = "give a readable image file"
        raise Refusal(f"cannot be read ({error.strerror or error})", where=path, cure=cure) from None


def metadata_of(raw: tuple[bytes | mmap.mmap | None, bytes | None], where: Path | str) -> Metadata:
    """EXIF and XMP as they were embedded -> checked."""
    return Metadata(_exif(raw[0], where), _xmp(raw[1], where))


def _exif(data: bytes | mmap.mmap | None, where: Path | str) -> Exif | None:
    if not data or data == PREFIX:
        return None
    try:
        exif = parse_exif(data)
    except DamagedExifError as error:
        log.warning("%s: its EXIF is damaged (%s) and is left out", where, error)
        return None
    if exif.damaged:
        log.warning("%s: %d damaged entries of its EXIF are left out", where, exif.damaged)
    size = len(exif.fitted(1, 1, 1).block())
    if size > MAX_BYTES:
        log.warning("%s: its EXIF has %s bytes, more than %s, and is left out", where, f"{size:,}", f"{MAX_BYTES:,}")
        return None
    return exif


def _xmp(packet: bytes | None, where: Path | str) -> bytes | None:
    if not packet:
        return None
    if len(packet) > MAX_BYTES:
        log.warning("%s: its XMP has more than %s bytes and is left out", where, f"{MAX_BYTES:,}")
        return None
    try:
        fitted_xmp(packet, (1, 1), (1, 1), 1)
    except DamagedXmpError as error:
        log.warning("%s: its XMP is damaged (%s) and is left out", where, error)
        return None
    return packet


def blocks_for(path: Path, metadata: Metadata | None) -> EmbeddedBlocks:
    """What a file of this name will carry; one line says what it cannot hold."""
    suffix = path.suffix.lower()
    if metadata is None or metadata == Metadata():
        return EmbeddedBlocks()
    if suffix == ".bmp":
        log.warning("%s: BMP cannot hold EXIF and XMP; they are left out", path)
        return EmbeddedBlocks()
    exif, xmp = metadata.exif, metadata.xmp
    if exif is not None and suffix == ".avif":
        exif = exif.without_orientation()  # Pillow would write it anew, to move the orientation elsewhere
    block = exif.block() if exif is not None else b""
    most_exif, most_xmp = _MOST.get(suffix, (2 * MAX_BYTES, 2 * MAX_BYTES))
    if exif is not None and len(block) > most_exif:
        exif = exif.without_note()
        block, which = exif.block(), "the camera's own notes in its EXIF are"
        if len(block) > most_exif:
            exif, block, which = None, b"", "its EXIF is"
        log.warning("%s: %s left out: %s holds %s bytes", path, which, suffix, f"{most_exif:,}")
    if xmp is not None and len(xmp) > most_xmp:
        log.warning("%s: its XMP is left out: %s holds %s bytes", path, suffix, f"{most_xmp:,}")
        xmp = None
    return EmbeddedBlocks(block or None, xmp, exif)


def _raw(path: Path, file: BinaryIO) -> tuple[bytes | mmap.mmap | None, bytes | None]:
    """EXIF and XMP as they stand in the file."""
    kind = detect_format(path, file.read(32))
    with refusing(path, kind):
        if kind == "TIFF":
            return _of_tiff(file)
        if kind == "PNG":
            return _of_png(path, file)
        if kind == "JPEG":
            return _of_jpeg(path, file)
        if kind == "WebP":
            found = dict(_riff_chunks(file))
            return found.get(b"EXIF"), found.get(b"XMP ")
        if kind == "BMP":
            return None, None
        file.seek(0)
        info = open_header(path, kind, file, MAX_PIXELS).info
        return info.get("exif"), info.get("xmp")


def _of_tiff(file: BinaryIO) -> tuple[mmap.mmap, bytes | None]:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # closed with its last reference
    try:
        packet = parse_exif(data).image.get(XMP)
    except DamagedExifError:
        packet = None
    return data, packet.data if packet else None


def _of_png(path: Path, file: BinaryIO) -> tuple[bytes | None, bytes | None]:
    exif = xmp = None
    for kind, data in chunks(file, where=path, pixels=False):
        if kind == b"eXIf":
            exif = data
        elif kind == b"iTXt" and data.startswith(XMP_KEY + b"\0"):
            packed, (_, _, text) = data[len(XMP_KEY) + 1] == 1, data[len(XMP_KEY) + 3 :].split(b"\0", 2)
            xmp = zlib.decompressobj().decompress(text, MAX_BYTES + 1) if packed else text
    return exif, xmp


def _of_jpeg(path: Path, file: BinaryIO) -> tuple[bytes | None, bytes | None]:
    """Of the segments before the first scan; EXIF may be cut into several."""
    exif, xmp, more = b"", None, False
    file.seek(2)
    while len(head := file.read(2)) == 2 and head[0] == 0xFF and head[1] != _START_OF_SCAN:
        if head[1] == 0xFF:  # any number of them may stand before a marker
            file.seek(-1, 1)
            continue
        (length,) = struct.unpack(">H", file.read(2).rjust(2, b"\0"))
        data = file.read(max(length - 2, 0))
        if head[1] != _APP1:
            continue
        if data.startswith(PREFIX):
            exif += data[len(PREFIX) :] if exif else data
        elif data.startswith(_XMP_MARK):
            xmp = data[len(_XMP_MARK) :]
        more = more or data.startswith(_MORE_XMP_MARK)
    if more:
        log.warning("%s: the part of its XMP that did not fit into one segment is left out", path)
    return exif or None, xmp


def _riff_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """The chunks of a WebP that hold no pixels."""
    file.seek(12)
    while len(head := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        if kind in (b"EXIF", b"XMP "):
            yield kind, file.read(length)
        else:
            file.seek(length, 1)
        file.seek(length % 2, 1)
