"""Files that state their size twice: limits are checked by the size that is decoded, or the file is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imaging.files import image_size, read_picture
from imaging.refusal import Refusal
from tests.imaging.parts import exif, levels, pillow_bytes, png_chunk, png_of

HEIGHT, WIDTH = 40, 48
Tags = list[tuple[int, int, int]]  # (tag, type: 3 short or 4 long, value)
STRIP: Tags = [
    (256, 3, WIDTH),
    (257, 3, HEIGHT),
    (258, 3, 8),
    (259, 3, 1),
    (262, 3, 1),
    (273, 4, 8),
    (277, 3, 1),
    (278, 3, HEIGHT),
    (279, 4, WIDTH * HEIGHT),
]
LARGE: Tags = [(256, 3, 4096), (257, 3, 4096)]


def tiff(tags: Tags, pixels: int = WIDTH * HEIGHT) -> bytes:
    """A TIFF of one directory with exactly these tags, after the pixels."""
    data = np.random.default_rng(0).bytes(pixels)
    entries = b"".join(struct.pack("<HHII", code, kind, 1, value) for code, kind, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + pixels) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def changed(tags: Tags, **values: int) -> Tags:
    names = {"width": 256, "height": 257, "bits": 258, "samples": 277, "rows": 278, "bytes": 279}
    new = {names[name]: value for name, value in values.items()}
    return [(code, kind, new.get(code, value)) for code, kind, value in tags]


def tiled(side: int) -> Tags:
    kept = [tag for tag in STRIP if tag[0] not in (273, 278, 279)]
    return [*kept, (322, 4, side), (323, 4, side), (324, 4, 8), (325, 4, WIDTH * HEIGHT)]


def framed(side: int, *, twice: bool) -> bytes:
    """A JPEG whose frame header says another size, after the true one or in its place."""
    whole = pillow_bytes(Image.fromarray(levels(HEIGHT, WIDTH, 3)), "JPEG")
    at = whole.index(b"\xff\xc0")
    length = struct.unpack(">H", whole[at + 2 : at + 4])[0]
    frame = whole[at : at + 2 + length]
    other = frame[:5] + struct.pack(">HH", side, side) + frame[9:]
    return whole[:at] + frame * twice + other + whole[at + 2 + length :]


def bitmap(side: int) -> bytes:
    whole = pillow_bytes(Image.fromarray(levels(HEIGHT, WIDTH, 3)), "BMP")
    return whole[:18] + struct.pack("<ii", side, side) + whole[26:]


def short_png() -> bytes:
    """Four thousand pixels a side from a kilobyte."""
    header = struct.pack(">IIBBBBB", 4000, 4000, 16, 6, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", bytes(1000)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def twice_headed(depth: int) -> bytes:
    whole = png_of(levels(HEIGHT, WIDTH, 3, depth=depth), 2)
    small = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, depth, 2, 0, 0, 0))
    return whole[:8] + small + whole[8:]


def canvas(side: int) -> bytes:
    """A WebP whose canvas is not its picture's size."""
    whole = bytearray(pillow_bytes(Image.fromarray(levels(HEIGHT, WIDTH, 3)), "WEBP", exif=exif(1)))
    at = whole.index(b"VP8X") + 12
    whole[at : at + 6] = (side - 1).to_bytes(3, "little") * 2
    return bytes(whole)


DEEP = changed(STRIP, bits=16, height=HEIGHT // 2)
CONTRADICTORY = {
    "large_second.tif": (tiff(STRIP + LARGE), "is there 2 times"),
    "large_first.tif": (tiff(LARGE + STRIP), "is there 2 times"),
    "deep_large_second.tif": (tiff(DEEP + LARGE), "is there 2 times"),
    "few_strips.tif": (tiff(changed(STRIP, rows=10)), "takes 4 strips or tiles, it lists 1"),
    "short_strip.tif": (tiff(changed(STRIP, height=HEIGHT + 1, rows=HEIGHT + 1)), "pixels take 1968 bytes"),
    "large_tiles.tif": (tiff(tiled(60_000)), "its tiles are 60000x60000"),
    "layers.tif": (tiff([*DEEP, (32997, 3, 100)]), "depth of 100 layers"),
    "samples.tif": (tiff(changed(STRIP, samples=65_535)), "pixels take"),
    "two_headers.png": (twice_headed(8), "its header is not the one first chunk"),
    "two_deep_headers.png": (twice_headed(16), "its header is not the one first chunk"),
    "two_frames.jpg": (framed(8, twice=True), "it has 2 frame headers"),
    "large_frame.jpg": (framed(4096, twice=False), "4096x4096 pixels take at least 32768 bytes"),
    "large.bmp": (bitmap(8000), "8000x8000 pixels take at least"),
    "short.png": (short_png(), "4000x4000 pixels take at least 124031 bytes"),
    "large_canvas.webp": (canvas(4000), "its header says 4000x4000 pixels, its content 48x40"),
    "small_canvas.webp": (canvas(8), "its header says 8x8 pixels, its content 48x40"),
}


def test_the_builder_makes_a_sound_tiff(tmp_path: Path) -> None:
    for tags, size in ((STRIP, (HEIGHT, WIDTH)), (DEEP, (HEIGHT // 2, WIDTH))):
        (tmp_path / "a.tif").write_bytes(tiff(tags))
        assert image_size(tmp_path / "a.tif") == read_picture(tmp_path / "a.tif").size == size


@pytest.mark.parametrize("name", sorted(CONTRADICTORY))
def test_a_size_stated_twice_is_refused_by_the_header_reader_too(tmp_path: Path, name: str) -> None:
    data, reason = CONTRADICTORY[name]
    (tmp_path / name).write_bytes(data)
    for read in (image_size, read_picture):
        with pytest.raises(Refusal, match=reason):
            read(tmp_path / name)


def test_a_bomb_is_refused_before_a_decoder_takes_its_canvas(tmp_path: Path) -> None:
    (tmp_path / "a.webp").write_bytes(canvas(16_000))
    for read in (image_size, read_picture):
        with pytest.raises(Refusal, match="16000x16000"):
            read(tmp_path / "a.webp")


def test_a_chunk_longer_than_its_file_takes_no_memory(tmp_path: Path) -> None:
    """Before, four gigabytes were asked for, to find fewer bytes."""
    whole = png_of(levels(4, 4, 3), 2)
    at = len(whole) - 12
    (tmp_path / "a.png").write_bytes(whole[:at] + struct.pack(">I4s", 0xFFFFFFF0, b"tEXt") + whole[at:])
    with pytest.raises(Refusal, match="truncated PNG"):
        image_size(tmp_path / "a.png")


def test_many_samples_count_as_pixels_do(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(changed(STRIP, samples=400, height=4, width=1, rows=4, bytes=1600), 1600))
    with pytest.raises(Refusal, match="more than the limit"):
        read_picture(tmp_path / "a.tif", max_pixels=100)
