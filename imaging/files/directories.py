"""A TIFF's or an EXIF block's directories <-> typed entries, whose values stay the bytes that they are."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import mmap
    from collections.abc import Mapping, Sequence

Order = Literal["<", ">"]
BYTE, SHORT, LONG, IFD = 1, 3, 4, 13
# Bytes of one value, and of its parts that a byte order turns around (a rational is two numbers).
BYTES = {BYTE: 1, 2: 1, SHORT: 2, LONG: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, IFD: 4}
_WORDS = {**BYTES, 5: 4, 10: 4}
_FIRST = 8  # where the first directory may lie, after the header


class DamagedExifError(ValueError):
    """Nothing can be read of it."""


@dataclass(frozen=True)
class ExifEntry:
    """One value, or several of one kind, in the file's byte order; `at`: where they were read."""

    kind: int
    data: bytes
    at: int = 0

    def turned(self) -> ExifEntry:
        """In the other byte order."""
        size = _WORDS[self.kind]
        data = self.data if size == 1 else np.frombuffer(self.data, f"u{size}").byteswap().tobytes()
        return ExifEntry(self.kind, data)


Directory = dict[int, ExifEntry]
Pointer = tuple[int, int, int]  # a directory's number, its tag, and the number of the directory that this leads to


@dataclass(frozen=True)
class Layout:
    """How a TIFF's, or a BigTIFF's, directories are packed."""

    order: Order
    count: str = "H"
    word: str = "I"

    @property
    def room(self) -> int:
        """Bytes of a value that stand in the entry itself."""
        return struct.calcsize(f"={self.word}")

    @property
    def is_big(self) -> bool:
        """With 64-bit offsets?"""
        return self.word == "Q"


LAYOUTS = {
    b"II*\0": Layout("<"),
    b"MM\0*": Layout(">"),
    b"II+\0": Layout("<", "Q", "Q"),
    b"MM\0+": Layout(">", "Q", "Q"),
}


def read_first(data: bytes | mmap.mmap, layout: Layout) -> tuple[Directory, int]:
    """The first directory, and how many of its entries cannot be read."""
    (at,) = _unpacked(data, layout.order + layout.word, 8 if layout.is_big else 4)
    return read_directory(data, layout, at)


def read_directory(data: bytes | mmap.mmap, layout: Layout, at: int) -> tuple[Directory, int]:
    """A directory, and how many of its entries cannot be read."""
    (count,) = _unpacked(data, layout.order + layout.count, at)
    at += struct.calcsize(f"={layout.count}")
    size = 4 + 2 * layout.room
    if at + count * size > len(data):
        raise DamagedExifError("a directory of it lies beyond its end")
    entries, damaged = Directory(), 0
    for start in range(at, at + count * size, size):
        tag, kind, values = _unpacked(data, f"{layout.order}HH{layout.word}", start)
        length, place = BYTES.get(kind, 0) * values, start + 4 + layout.room
        if length > layout.room:
            (place,) = _unpacked(data, layout.order + layout.word, place)
        if length == 0 or place + length > len(data) or tag in entries:
            damaged += 1
        else:
            entries[tag] = ExifEntry(kind, bytes(data[place : place + length]), place)
    return entries, damaged


def read_pointer(entry: ExifEntry, order: Order) -> int:
    """Where a directory lies."""
    form = {SHORT: "H", LONG: "I", IFD: "I"}.get(entry.kind)
    if form is None or len(entry.data) != struct.calcsize(f"={form}"):
        raise DamagedExifError("a directory of it has no place")
    return struct.unpack(order + form, entry.data)[0]


def _unpacked(data: bytes | mmap.mmap, form: str, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, data, at)
    except struct.error:
        raise DamagedExifError("a directory of it lies beyond its end") from None


def size_of(directory: Directory, pinned: Mapping[int, int]) -> int:
    """Bytes of a directory with its values, but for those that lie elsewhere; always even, as offsets must be."""
    values = (len(entry.data) for tag, entry in directory.items() if len(entry.data) > 4 and tag not in pinned)
    return 6 + 12 * len(directory) + sum(size + size % 2 for size in values)


def places_of(sizes: Sequence[int], gap: tuple[int, int] = (0, 0)) -> list[int]:
    """Where directories go, one after another from behind the header on, around the gap (start, length)."""
    places: list[int] = []
    at = _FIRST
    for size in sizes:
        if at < sum(gap) and at + size > gap[0]:
            at = sum(gap) + sum(gap) % 2
        places.append(at)
        at += size
    return places


def put(
    out: bytearray,
    order: Order,
    directories: Sequence[Directory],
    places: Sequence[int],
    pointers: Sequence[Pointer],
    *,
    pinned: Mapping[int, int],
    base: int = 0,
) -> None:
    """Write directories at their places; `base`: where `out` will lie in its file, `pinned`: where values do."""
    for owner, tag, target in pointers:
        directories[owner][tag] = ExifEntry(LONG, struct.pack(f"{order}I", base + places[target]))
    for directory, place in zip(directories, places, strict=True):
        struct.pack_into(f"{order}H", out, place, len(directory))
        values_at = place + 6 + 12 * len(directory)
        for index, tag in enumerate(sorted(directory)):
            entry, at = directory[tag], place + 2 + 12 * index
            struct.pack_into(f"{order}HHI", out, at, tag, entry.kind, len(entry.data) // BYTES[entry.kind])
            if len(entry.data) <= 4:
                out[at + 8 : at + 8 + len(entry.data)] = entry.data
                continue
            struct.pack_into(f"{order}I", out, at + 8, pinned.get(tag, base + values_at))
            if tag not in pinned:
                out[values_at : values_at + len(entry.data)] = entry.data
                values_at += len(entry.data) + len(entry.data) % 2
