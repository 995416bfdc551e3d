"""EXIF and XMP of any bytes: read, fitted and written again, or left out; never an error of another kind."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import pytest

from imaging.files import read_metadata
from imaging.files.directories import DamagedExifError
from imaging.files.exif import parse_exif
from imaging.files.metadata import MAX_BYTES
from imaging.files.xmp import DamagedXmpError, fitted_xmp
from imaging.refusal import Refusal
from tests.imaging.files.photographs import XMP, save_photograph, tags, with_thumbnail

BLOCK = with_thumbnail(tags().tobytes().removeprefix(b"Exif\0\0"))


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, at random, or the end cut off."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        changed[chance.randrange(len(changed))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
    return bytes(changed[: chance.randrange(1, len(changed))]) if chance.random() < 0.2 else bytes(changed)


def test_what_is_read_of_a_block_is_what_its_writing_says() -> None:
    chance, read = random.Random(0), 0
    for _ in range(3000):
        try:
            exif = parse_exif(mutated(BLOCK, chance)).fitted(10, 20, 1)
        except DamagedExifError:
            continue
        read += 1
        block = exif.block()
        if not block:
            continue
        again = parse_exif(block)
        assert again.damaged == 0
        for part in ("image", "photo", "gps", "interop"):
            before, after = getattr(exif, part), getattr(again, part)
            assert {tag: (one.kind, one.data) for tag, one in before.items()} == {
                tag: (one.kind, one.data) for tag, one in after.items()
            }
        swapped = exif.in_order("<" if exif.order == ">" else ">")
        assert swapped.in_order(exif.order).photo.keys() == exif.photo.keys()
        assert parse_exif(swapped.block()).damaged == 0
    assert read > 1000


def test_packets_are_fitted_or_damaged() -> None:
    chance, fitted = random.Random(1), 0
    for _ in range(1500):
        at, letter = chance.randrange(len(XMP)), bytes([chance.randrange(32, 127)])
        changed = mutated(XMP, chance) if chance.random() < 0.3 else XMP[:at] + letter + XMP[at + 1 :]
        try:
            packet = fitted_xmp(changed, (20, 28), (80, 112), 1)
        except DamagedXmpError:
            continue
        fitted += 1
        assert fitted_xmp(packet, (80, 112), (80, 112), 1) == packet
    assert fitted > 100


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".avif"])
def test_files_with_flipped_bytes(tmp_path: Path, suffix: str) -> None:
    logging.disable(logging.WARNING)
    data, chance, path = save_photograph(tmp_path / f"a{suffix}").read_bytes(), random.Random(2), tmp_path / "b"
    for _ in range(300):
        path.write_bytes(mutated(data, chance))
        try:
            metadata = read_metadata(path)
        except Refusal:
            continue
        finally:
            logging.disable(logging.NOTSET)
        fitted = metadata.fitted((20, 28), (80, 112))
        assert len(fitted.exif.block() if fitted.exif else b"") + len(fitted.xmp or b"") < MAX_BYTES
