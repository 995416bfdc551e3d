"""Image files in: every kind of pixel against Pillow, OpenCV and tifffile."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from imaging.files import image_size, read_picture, read_rgb
from imaging.refusal import Refusal
from tests.imaging.parts import as_levels, exif, levels, pillow_bytes, png_chunk, png_of, raw_png, rgb_profile, save


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour_type", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_every_kind(tmp_path: Path, depth: int, colour_type: int, samples: int) -> None:
    stored = levels(5, 7, samples, depth=depth)
    picture = read_picture(save(tmp_path / "a.png", png_of(stored, colour_type)))
    colours = 1 if samples < 3 else 3
    assert (picture.depth, picture.grey, picture.size) == (depth, colours == 1, (5, 7))
    assert (as_levels(picture.rgb_CHW, depth) == stored[..., :colours]).all()
    if samples in (2, 4):
        assert picture.alpha_HW is not None
        assert (as_levels(picture.alpha_HW, depth) == stored[..., -1]).all()
    else:
        assert picture.alpha_HW is None
    assert picture.rgb_CHW.dtype == torch.float32
    assert picture.rgb_CHW.is_contiguous()


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (1, {"photometric": "minisblack"}),
        (3, {"photometric": "rgb"}),
        (3, {"photometric": "rgb", "planarconfig": "separate"}),
        (4, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (2, {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"}),
        (1, {"photometric": "miniswhite"}),
    ],
)
def test_tiff_of_every_kind(
    tmp_path: Path, compression: str | None, depth: int, samples: int, options: dict[str, object]
) -> None:
    stored = levels(5, 7, samples, depth=depth)
    planar = options.get("planarconfig") == "separate"
    written = np.moveaxis(stored, -1, 0) if planar else stored[..., 0] if samples == 1 else stored
    tifffile.imwrite(tmp_path / "a.tif", written, compression=compression, metadata=None, **options)  # pyright: ignore
    picture = read_picture(tmp_path / "a.tif")
    colours = 1 if samples < 3 else 3
    expected = stored[..., :colours].astype(np.int64)
    if options["photometric"] == "miniswhite":
        expected = (1 << depth) - 1 - expected
    assert (picture.depth, picture.grey) == (depth, colours == 1)
    assert (as_levels(picture.rgb_CHW, depth) == expected).all()
    if samples in (2, 4):
        assert picture.alpha_HW is not None
        assert (as_levels(picture.alpha_HW, depth) == stored[..., -1]).all()


@pytest.mark.parametrize("samples", [1, 3, 4])
def test_16_bit_lzw_tiff(tmp_path: Path, samples: int) -> None:
    stored = levels(6, 9, samples, depth=16)
    order = [2, 1, 0, 3][:samples] if samples > 1 else [0]
    assert cv2.imwrite(str(tmp_path / "a.tif"), stored[..., order], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    picture = read_picture(tmp_path / "a.tif")
    assert picture.depth == 16
    assert (as_levels(picture.rgb_CHW, 16) == stored[..., : 3 if samples > 1 else 1]).all()


def test_premultiplied_alpha_is_made_straight(tmp_path: Path) -> None:
    straight = levels(6, 9, 3, depth=16).astype(np.float64)
    alpha = levels(6, 9, depth=16, seed=1) // 2 + 30000
    premultiplied = np.rint(straight * alpha[..., None] / 65535)
    stored = np.dstack([premultiplied, alpha]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    picture = read_picture(tmp_path / "a.tif")
    assert np.abs(as_levels(picture.rgb_CHW, 16) - straight).max() <= 2


def test_grey_with_few_bits_and_a_transparent_level(tmp_path: Path) -> None:
    """Pillow leaves the transparent level in the file's own scale while it stretches the pixels."""
    for bits in (1, 2, 4, 8):
        values = np.arange(8) % (1 << bits)
        packed = np.packbits(((values[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).ravel()).tobytes()
        data = raw_png([packed], 8, bits, 0, before=png_chunk(b"tRNS", b"\0\1"))
        picture = read_picture(save(tmp_path / "a.png", data))
        assert picture.grey
        assert picture.alpha_HW is not None
        np.testing.assert_allclose(picture.rgb_CHW[0, 0], values / ((1 << bits) - 1), atol=1e-7)
        assert (picture.alpha_HW[0].numpy() == (values != 1)).all()


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour_type", "samples"), [(0, 1), (2, 3)])
def test_a_transparent_colour(tmp_path: Path, depth: int, colour_type: int, samples: int) -> None:
    stored = levels(5, 7, samples, depth=depth)
    stored[2, 3] = stored[0, 0]
    key = stored[0, 0].astype(">u2").tobytes()
    picture = read_picture(save(tmp_path / "a.png", png_of(stored, colour_type, before=png_chunk(b"tRNS", key))))
    assert picture.alpha_HW is not None
    assert (picture.alpha_HW.numpy() == (stored != stored[0, 0]).any(axis=-1)).all()
    assert (as_levels(picture.rgb_CHW, depth) == stored).all()


def test_palettes(tmp_path: Path) -> None:
    colours = levels(4, 3)
    image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
    image.putpalette(colours.tobytes())
    plain = read_picture(save(tmp_path / "p.png", pillow_bytes(image, "PNG")))
    assert (as_levels(plain.rgb_CHW, 8)[0] == colours).all()
    assert plain.alpha_HW is None
    assert not plain.grey
    clear = read_picture(save(tmp_path / "t.png", pillow_bytes(image, "PNG", transparency=bytes([255, 0, 128, 255]))))
    assert clear.alpha_HW is not None
    assert (as_levels(clear.alpha_HW, 8)[0] == [255, 0, 128, 255]).all()
    assert (as_levels(clear.rgb_CHW, 8)[0] == colours).all()
    for kind, name in (("BMP", "p.bmp"), ("TIFF", "p.tif")):
        assert (
            as_levels(read_picture(save(tmp_path / name, pillow_bytes(image, kind))).rgb_CHW, 8)[0] == colours
        ).all()


@pytest.mark.parametrize(("kind", "mode"), [(k, m) for k in ("PNG", "TIFF", "BMP") for m in ("1", "L", "RGB")])
def test_plain_modes_equal_pillow(tmp_path: Path, kind: str, mode: str) -> None:
    image = Image.fromarray(levels(9, 11, 3)).convert(mode)
    picture = read_picture(save(tmp_path / "a", pillow_bytes(image, kind)))
    assert (as_levels(picture.rgb_CHW, 8) == np.asarray(image.convert("RGB"))).all()
    assert picture.grey == (mode != "RGB")


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_equals_pillow(tmp_path: Path, mode: str) -> None:
    data = pillow_bytes(Image.fromarray(levels(16, 24, 3)).convert(mode), "JPEG")
    picture = read_picture(save(tmp_path / "a.jpg", data))
    assert (as_levels(picture.rgb_CHW, 8) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()
    assert picture.grey == (mode == "L")


def test_a_cmyk_profile_that_does_not_work_is_said_and_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.fromarray(levels(8, 8, 4), "CMYK")
    data = pillow_bytes(image, "TIFF", icc_profile=rgb_profile())
    with caplog.at_level(logging.WARNING):
        picture = read_picture(save(tmp_path / "a.tif", data))
    assert picture.icc is None
    assert "CMYK profile does not work" in caplog.text
    assert (as_levels(picture.rgb_CHW, 8) == np.asarray(image.convert("RGB"))).all()


def test_the_suffix_does_not_matter_for_reading(tmp_path: Path) -> None:
    data = pillow_bytes(Image.fromarray(levels(8, 8, 3)), "WEBP", lossless=True)
    assert (as_levels(read_rgb(save(tmp_path / "a.png", data))[0], 8) == levels(8, 8, 3)).all()


# orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_everywhere(tmp_path: Path, orientation: int) -> None:
    stored = levels(4, 6, 3)
    reference = Image.open(io.BytesIO(pillow_bytes(Image.fromarray(stored), "PNG", exif=exif(orientation))))
    upright = np.asarray(ImageOps.exif_transpose(reference)).astype(np.int64)
    record = png_chunk(b"eXIf", exif(orientation).removeprefix(b"Exif\0\0"))
    deep = stored.astype(np.uint16) * 257
    tag = [(274, 3, 1, orientation, True)]
    files = {
        "before.png": png_of(stored, 2, before=record),
        "after.png": png_of(stored, 2, after=record),
        "deep.png": png_of(deep, 2, before=record),
        "a.webp": pillow_bytes(Image.fromarray(stored), "WEBP", lossless=True, exif=exif(orientation)),
    }
    for name, data in files.items():
        save(tmp_path / name, data)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extratags=tag)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb", extratags=tag)
    for path in sorted(tmp_path.iterdir()):
        picture = read_picture(path)
        scale = 257 if picture.depth == 16 else 1
        assert (as_levels(picture.rgb_CHW, picture.depth) == upright * scale).all(), path.name
        assert image_size(path) == picture.size == upright.shape[:2], path.name
    jpeg = save(tmp_path / "a.jpg", pillow_bytes(Image.fromarray(stored), "JPEG", exif=exif(orientation)))
    turned = ImageOps.exif_transpose(Image.open(jpeg))
    assert (as_levels(read_picture(jpeg).rgb_CHW, 8) == np.asarray(turned)).all()


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_a_senseless_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    data = pillow_bytes(Image.fromarray(levels(4, 6, 3)), "PNG", exif=exif(orientation))
    assert read_picture(save(tmp_path / "a.png", data)).size == (4, 6)


def test_image_size_reads_the_header_only(tmp_path: Path) -> None:
    whole = pillow_bytes(Image.fromarray(levels(300, 400, 3)), "JPEG")
    assert image_size(save(tmp_path / "cut.jpg", whole[:700])) == (300, 400)
    with pytest.raises(Refusal):
        read_picture(tmp_path / "cut.jpg")
