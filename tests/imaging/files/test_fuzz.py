"""Bad image files: nothing but a one-line Refusal ever leaves the readers, and truncation is never missed."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from imaging.files import MAX_PIXELS, image_size, read_picture
from imaging.refusal import Refusal
from tests.imaging.parts import exif, levels, pillow_bytes, png_chunk, png_of, rgb_profile

MUTANTS_PER_SEED_FILE = 350
SIDE = 12


def tiff_bytes(samples: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, metadata=None, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def seed_files() -> dict[str, bytes]:
    """One small intact file of each kind that takes another way through the readers."""
    rgb, rgb16 = levels(SIDE, SIDE, 3), levels(SIDE, SIDE, 3, depth=16)
    smooth = Image.fromarray(np.linspace(0, 255, SIDE * SIDE * 3).reshape(SIDE, SIDE, 3).astype(np.uint8))
    orientation = png_chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0"))
    return {
        "rgb.png": png_of(rgb, 2, before=orientation),
        "palette.png": pillow_bytes(smooth.quantize(8), "PNG", transparency=b"\0\x80"),
        "deep.png": png_of(rgb16, 2),
        "deep_alpha.png": png_of(levels(SIDE, SIDE, 2, depth=16), 4),
        "rgb.tif": tiff_bytes(rgb, photometric="rgb", compression="zlib"),
        "lzw.tif": pillow_bytes(smooth, "TIFF", compression="tiff_lzw"),
        "deep.tif": tiff_bytes(rgb16, photometric="rgb"),
        "deep_zip.tif": tiff_bytes(
            rgb16, photometric="rgb", compression="zlib", predictor=True, iccprofile=rgb_profile()
        ),
        "cmyk.jpg": pillow_bytes(smooth.convert("CMYK"), "JPEG"),
        "rgb.jpg": pillow_bytes(smooth, "JPEG", exif=exif(6)),
        "progressive.jpg": pillow_bytes(smooth, "JPEG", progressive=True),
        "lossy.webp": pillow_bytes(smooth, "WEBP", exif=exif(3)),
        "lossless.webp": pillow_bytes(smooth.convert("RGBA"), "WEBP", lossless=True),
        "rgb.bmp": pillow_bytes(smooth, "BMP"),
        "palette.bmp": pillow_bytes(smooth.quantize(8), "BMP"),
    }


def mutants(whole: bytes, seed: int) -> Iterator[bytes]:
    """Damaged copies: flipped bits, wild bytes, wild numbers in the header, cuts, doublings, swapped pieces."""
    random = np.random.default_rng(seed)
    extremes = [0, 1, 0x7F, 0x80, 0xFF]
    for turn in range(MUTANTS_PER_SEED_FILE):
        data = bytearray(whole)
        reach = len(data) if turn % 2 else min(len(data), 120)  # half of them hit the header
        for _ in range(int(random.integers(1, 4))):
            at = int(random.integers(0, reach))
            match int(random.integers(0, 6)):
                case 0:
                    data[at % len(data)] ^= 1 << int(random.integers(0, 8))
                case 1:
                    data[at % len(data)] = int(random.choice(extremes))
                case 2:
                    number = int(
                        random.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, int(random.integers(0, 1 << 20))])
                    )
                    data[at : at + 4] = struct.pack(random.choice(["<I", ">I"]), number)
                case 3:
                    del data[max(at, 1) :]
                case 4:
                    del data[at : at + int(random.integers(1, 9))]
                case _:
                    data[at:at] = random.bytes(int(random.integers(1, 9)))
            if not data:
                break
        yield bytes(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(seed_files()))
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    refused = 0
    for data in mutants(seed_files()[name], seed=len(name)):
        path.write_bytes(data)
        try:
            picture = read_picture(path, max_pixels=1 << 20)
        except Refusal as refusal:
            assert str(refusal).startswith(f"{path}: ")
            assert len(str(refusal).splitlines()) == 1
            refused += 1
        else:
            assert picture.rgb_CHW.shape[0] == 3
            assert 0 <= picture.rgb_CHW.min() <= picture.rgb_CHW.max() <= 1
            assert image_size(path) == picture.size
        with suppress(Refusal):
            image_size(path)
    assert refused > MUTANTS_PER_SEED_FILE / 10


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(seed_files()))
def test_a_cut_file_is_refused_or_had_lost_no_pixel(tmp_path: Path, name: str) -> None:
    whole = seed_files()[name]
    (tmp_path / name).write_bytes(whole)
    intact = read_picture(tmp_path / name)
    for length in sorted({*range(0, len(whole), 11), *range(max(0, len(whole) - 24), len(whole))}):
        (tmp_path / name).write_bytes(whole[:length])
        try:
            cut = read_picture(tmp_path / name)
        except Refusal:
            continue
        assert torch.equal(cut.rgb_CHW, intact.rgb_CHW), length
        assert length > 0.9 * len(whole)


def test_a_flipped_bit_in_png_pixels_is_noticed(tmp_path: Path) -> None:
    for whole in (seed_files()["rgb.png"], seed_files()["deep.png"]):
        start = whole.index(b"IDAT") + 4
        for at in range(start, len(whole) - 16, 5):
            data = bytearray(whole)
            data[at] ^= 4
            (tmp_path / "a.png").write_bytes(data)
            with pytest.raises(Refusal):
                read_picture(tmp_path / "a.png")


def test_pixels_under_a_wrong_checksum_are_not_trusted(tmp_path: Path) -> None:
    """Sound zlib data that is not what was written: only the chunk's checksum can tell."""
    for depth in (8, 16):
        whole, foreign = (png_of(levels(6, 6, 3, depth=depth, seed=seed), 2) for seed in (0, 1))
        spoilt = foreign[:-16] + whole[-16:-12] + foreign[-12:]
        (tmp_path / "a.png").write_bytes(spoilt)
        with pytest.raises(Refusal, match="checksum of chunk IDAT"):
            read_picture(tmp_path / "a.png")


def test_a_tiff_whose_pixels_lie_beyond_its_end_is_called_truncated(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(seed_files()["deep.tif"][:-1])
    for read in (read_picture, image_size):
        with pytest.raises(Refusal, match="truncated TIFF"):
            read(tmp_path / "a.tif")


BAD = {
    "empty.png": (b"", "zero bytes"),
    "text.png": (b"hello, this is not an image at all", "is not an image"),
    "a.gif": (pillow_bytes(Image.new("P", (3, 3)), "GIF"), "is a GIF file"),
    "a.heic": (b"\0\0\0\x18ftypheic" + b"\0" * 40, "HEIC"),
    "float.tif": (tiff_bytes(np.ones((4, 4), np.float32)), "floating-point"),
    "signed.tif": (tiff_bytes(np.ones((4, 4), np.int16)), "signed"),
    "wide.tif": (tiff_bytes(np.ones((4, 4), np.uint32)), "32-bit"),
    "pages.tif": (tiff_bytes(np.ones((3, 8, 8), np.uint8), photometric="minisblack"), "3 pages"),
    "cmyk16.tif": (tiff_bytes(np.ones((4, 4, 4), np.uint16), photometric="separated"), "16-bit TIFF of the kind SEP"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_each_bad_kind_says_why(tmp_path: Path, name: str) -> None:
    data, reason = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Refusal, match=reason) as caught:
        read_picture(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)
    assert caught.value.cure


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(levels(6, 6, 3, seed=seed)) for seed in range(3)]
    return pillow_bytes(frames[0], kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").write_bytes(animation(kind))
    for read in (read_picture, image_size):
        with pytest.raises(Refusal, match="is animated"):
            read(tmp_path / "a")


def header_claiming(width: int, height: int) -> bytes:
    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", ihdr) + png_chunk(b"IDAT", bytes(1_200_000)) + png_chunk(b"IEND", b"")
    )


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(header_claiming(20_000, 20_000))
    for read in (read_picture, image_size):
        with pytest.raises(Refusal, match=f"more than the limit of {MAX_PIXELS:,}"):
            read(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png", max_pixels=10**9) == (20_000, 20_000)


def test_the_limit_can_be_moved_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of(levels(10, 10, 3), 2))
    with pytest.raises(Refusal, match="decompression bomb"):
        read_picture(path, max_pixels=99)
    assert read_picture(path, max_pixels=100).size == (10, 10)
    # Pillow's own, process-wide limit neither warns nor refuses below ours.
    Image.new("1", (16_000, 6_000)).save(tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(tmp_path / "large.png") == (6_000, 16_000)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for read in (read_picture, image_size):
        with pytest.raises(Refusal, match="no such file"):
            read(tmp_path / "absent.png")
        with pytest.raises(Refusal, match="cannot be read"):
            read(tmp_path)
