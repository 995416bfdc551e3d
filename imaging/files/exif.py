"""An EXIF block, or a TIFF's own tags -> the EXIF of an image of another size -> a block, or tags in a TIFF.

Pillow's writer guesses types anew and moves the maker note, whose own offsets then point elsewhere; here values stay as
they are. What described the old pixels does not go along: sizes, strips, the thumbnail, places in the picture.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from imaging.files.directories import (
    BYTE,
    LAYOUTS,
    LONG,
    SHORT,
    DamagedExifError,
    Directory,
    ExifEntry,
    Order,
    Pointer,
    places_of,
    put,
    read_directory,
    read_first,
    read_pointer,
    size_of,
)

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = b"Exif\0\0"  # in front of the block in a JPEG, and by some writers elsewhere
ORIENTATION, XMP = 0x0112, 700
_MAKER_NOTE = 0x927C
_PHOTO, _GPS, _INTEROP = 0x8769, 0x8825, 0xA005  # entries that lead to directories of their own
_WIDTH, _HEIGHT = 0xA002, 0xA003
# Of the first directory, which in a TIFF says how its pixels lie, what describes the photograph.
_DESCRIPTIVE = frozenset({270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246, 18249, 33432, *range(40091, 40096)})
# Compressed bits per pixel; places, and sizes of pixels, in the old picture.
_STALE = frozenset({0x9102, 0x9214, 0xA20E, 0xA20F, 0xA210, 0xA214})
_NEAREST_NOTE, _FARTHEST_NOTE = 8, 1 << 16  # in a TIFF it may lie gigabytes away: then it is kept, but elsewhere
_LARGEST_OFFSET = 0xFFFFFFFF


@dataclass(frozen=True)
class Exif:
    """What is said of the image (make, date), of the photograph (exposure), of the place; interoperability."""

    order: Order
    image: Directory
    photo: Directory = field(default_factory=Directory)
    gps: Directory = field(default_factory=Directory)
    interop: Directory = field(default_factory=Directory)
    damaged: int = 0  # entries that could not be read

    def fitted(self, height: int, width: int, orientation: int) -> Exif:
        """Of an image of this size, turned so."""
        image = {tag: entry for tag, entry in self.image.items() if tag in _DESCRIPTIVE}
        if ORIENTATION in self.image:
            image[ORIENTATION] = ExifEntry(SHORT, struct.pack(f"{self.order}H", orientation))
        photo = {tag: entry for tag, entry in self.photo.items() if tag not in _STALE}
        for tag, side in ((_WIDTH, width), (_HEIGHT, height)):
            if tag in photo:
                photo[tag] = ExifEntry(LONG, struct.pack(f"{self.order}I", side))
        return replace(self, image=image, photo=photo)

    def without_orientation(self) -> Exif:
        """As it is if nothing is said of it: upright."""
        return replace(self, image={tag: entry for tag, entry in self.image.items() if tag != ORIENTATION})

    def without_note(self) -> Exif:
        """The maker note is what makes a block large."""
        return replace(self, photo={tag: entry for tag, entry in self.photo.items() if tag != _MAKER_NOTE})

    def block(self) -> bytes:
        """As formats embed it, without the prefix; empty if there is nothing to say."""
        if not (self.image or self.photo or self.gps or self.interop):
            return b""
        directories, pointers = _chained(self)
        note = self.photo.get(_MAKER_NOTE)
        stays = note is not None and len(note.data) > 4 and _NEAREST_NOTE <= note.at < _FARTHEST_NOTE
        gap, pinned = ((note.at, len(note.data)), {_MAKER_NOTE: note.at}) if note and stays else ((0, 0), {})
        sizes = [size_of(one, pinned) for one in directories]
        places = places_of(sizes, gap)
        out = bytearray(max(places[-1] + sizes[-1], sum(gap)))
        struct.pack_into(f"{self.order}2sHI", out, 0, b"II" if self.order == "<" else b"MM", 42, places[0])
        put(out, self.order, directories, places, pointers, pinned=pinned)
        if note and stays:
            out[gap[0] : sum(gap)] = note.data
        return bytes(out)

    def in_order(self, order: Order) -> Exif:
        """In the byte order of another file."""
        if order == self.order:
            return self
        parts = ({tag: entry.turned() for tag, entry in one.items()} for one in self._directories)
        return Exif(order, *parts, damaged=self.damaged)

    @property
    def _directories(self) -> tuple[Directory, Directory, Directory, Directory]:
        return self.image, self.photo, self.gps, self.interop


def parse_exif(data: bytes | mmap.mmap) -> Exif:
    """A block, with or without its prefix, or a whole TIFF; what cannot be read of it is counted and left out."""
    block = data[len(PREFIX) :] if data[: len(PREFIX)] == PREFIX else data
    layout = LAYOUTS.get(block[:4])
    if layout is None:
        raise DamagedExifError("it has no header")
    image, damaged = read_first(block, layout)
    found = {0: image, _PHOTO: Directory(), _GPS: Directory(), _INTEROP: Directory()}
    for owner, tag in ((0, _PHOTO), (0, _GPS), (_PHOTO, _INTEROP)):
        pointer = found[owner].pop(tag, None)
        if pointer is None:
            continue
        try:
            found[tag], bad = read_directory(block, layout, read_pointer(pointer, layout.order))
        except DamagedExifError:
            bad = 1
        damaged += bad
    return Exif(layout.order, *found.values(), damaged=damaged)


def _chained(exif: Exif) -> tuple[list[Directory], list[Pointer]]:
    """All directories that hold something, the image's first, and which entries lead to the others."""
    image, photo, gps, interop = (dict(one) for one in (exif.image, exif.photo, exif.gps, exif.interop))
    directories, pointers = [image], list[Pointer]()

    def lead(owner: int, tag: int, directory: Directory) -> int:
        directories[owner][tag] = ExifEntry(LONG, bytes(4))  # takes its room, and its value once places are known
        directories.append(directory)
        pointers.append((owner, tag, len(directories) - 1))
        return len(directories) - 1

    if photo or interop:
        at = lead(0, _PHOTO, photo)
        if interop:
            lead(at, _INTEROP, interop)
    if gps:
        lead(0, _GPS, gps)
    return directories, pointers


def add_to_tiff(path: Path, exif: Exif | None, xmp: bytes | None) -> bool:
    """Give a finished TIFF these as tags of its own; False where it is, or would become, larger than 4 GB."""
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            layout = LAYOUTS[data[:4]]
            if layout.is_big:
                return False
            own, _ = read_first(data, layout)
        added = (exif or Exif(layout.order, {})).in_order(layout.order)
        image = {**own, **added.image, **({} if xmp is None else {XMP: ExifEntry(BYTE, xmp)})}
        directories, pointers = _chained(replace(added, image=image))
        sizes = [size_of(one, {}) for one in directories]
        base = file.seek(0, 2)
        base += base % 2
        places = [at - places_of(sizes)[0] for at in places_of(sizes)]
        out = bytearray(sum(sizes))
        if base + len(out) > _LARGEST_OFFSET:
            return False
        put(out, layout.order, directories, places, pointers, pinned={}, base=base)
        file.seek(base)
        file.write(out)
        file.seek(4)
        file.write(struct.pack(f"{layout.order}I", base))
    return True
