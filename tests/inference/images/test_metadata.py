"""EXIF and XMP of an input in its output, and `--strip-metadata`: by what Pillow and tifffile find there."""

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image

import championship_sr
import infer
from fusion.inference.report.provenance import read_manifest
from fusion.inference.report.submission import Facts, check_set, pack
from imaging.command import DONE
from imaging.files import read_metadata
from imaging.refusal import Refusal
from tests.imaging.files.photographs import DATE, HEIGHT, LATITUDE, MAKE, NOTE, WIDTH, XMP, save_photograph, tags
from tests.imaging.parts import rgb_profile
from tests.inference.images.parts import upscale
from tests.inference.parts import alone

if TYPE_CHECKING:
    from pathlib import Path

SUFFIXES = (".png", ".jpg", ".webp", ".tif", ".avif")
LARGE = (4 * WIDTH, 4 * HEIGHT)  # (height, width): the picture was turned upright
TIFF, EXIF, XAP, PANO = (
    "{http://ns.adobe.com/tiff/1.0/}",
    "{http://ns.adobe.com/exif/1.0/}",
    "{http://ns.adobe.com/xap/1.0/}",
    "{http://ns.google.com/photos/1.0/panorama/}",
)


def check_exif(path: Path, size: tuple[int, int] = LARGE) -> None:
    with Image.open(path) as image:
        assert image.size == size[::-1]
        exif = image.getexif()
        photo, gps = exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)
        assert not exif.get_ifd(ExifTags.IFD.IFD1)
    assert (exif[ExifTags.Base.Make], exif[ExifTags.Base.DateTime]) == (MAKE, DATE)
    assert exif.get(ExifTags.Base.Orientation, 1) == 1
    if path.suffix != ".tif":
        assert ExifTags.Base.ImageWidth not in exif
    assert photo[ExifTags.Base.DateTimeOriginal] == DATE
    assert float(photo[ExifTags.Base.ExposureTime]) == pytest.approx(1 / 125)
    assert (photo[ExifTags.Base.ExifImageHeight], photo[ExifTags.Base.ExifImageWidth]) == size
    assert photo[ExifTags.Base.MakerNote] == NOTE
    assert ExifTags.Base.SubjectLocation not in photo
    assert gps[ExifTags.GPS.GPSLatitude] == LATITUDE
    assert b"THUMBNAIL" not in path.read_bytes()


def check_xmp(path: Path, size: tuple[int, int] = LARGE) -> None:
    packet = read_metadata(path).xmp
    assert packet is not None
    (described,) = list(ET.fromstring(packet)[0])
    assert described.attrib[f"{TIFF}Orientation"] == "1"
    assert described.attrib[f"{EXIF}PixelXDimension"] == str(size[1])
    assert described.findtext(f"{EXIF}PixelYDimension") == str(size[0])
    assert described.attrib[f"{XAP}Rating"] == "5"
    assert int(described.attrib[f"{PANO}FullPanoWidthPixels"]) == round(40 * size[1] / HEIGHT)
    assert described.find(f"{XAP}Thumbnails") is None
    assert "hdr-gain-map/1.0/}Version" not in "".join(described.attrib)
    assert "Grüße & mehr" in "".join(described.itertext())


@pytest.mark.parametrize("before", SUFFIXES)
@pytest.mark.parametrize("after", SUFFIXES)
def test_every_format_to_every_format(tmp_path: Path, before: str, after: str, caplog: Any) -> None:
    source = save_photograph(tmp_path / f"in{before}")
    target = upscale(source, tmp_path / f"out{after}")
    check_exif(target)
    check_xmp(target)
    assert "left out" not in caplog.text
    again = upscale(target, tmp_path / "again.png", strip_metadata=True)  # it is upright for our own reader as well
    with Image.open(again) as image:
        assert image.size == (16 * HEIGHT, 16 * WIDTH)
        assert not image.getexif()
        assert "XML:com.adobe.xmp" not in image.info


def test_16_bits_and_big_endian_tiff(tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (8, 9, 3)).astype(np.uint16)
    plain = tmp_path / "plain.tif"
    tifffile.imwrite(
        plain, levels, photometric="rgb", byteorder=">", metadata=None, extratags=[(271, 2, 4, "ABC", True)]
    )
    target = upscale(plain, tmp_path / "out.tif")
    with tifffile.TiffFile(target) as tiff:
        page = tiff.pages.first
        assert page.tags[271].value == "ABC"
        np.testing.assert_array_equal(page.asarray(), levels.repeat(4, 0).repeat(4, 1))
    assert upscale(plain, tmp_path / "out.png").is_file()
    with Image.open(tmp_path / "out.png") as image:
        assert image.getexif()[271] == "ABC"


def test_the_maker_note_stays_at_its_place(tmp_path: Path) -> None:
    """Cameras write offsets into it that count from the start of the block."""
    source = save_photograph(tmp_path / "in.jpg")
    before = source.read_bytes()
    for name in ("out.jpg", "out.webp", "out.png", "out.avif"):
        after = upscale(source, tmp_path / name).read_bytes()
        places = [data.index(NOTE) - data.index(b"MM\0*") for data in (before, after)]
        assert places[0] == places[1]


def test_an_output_of_another_size_says_that_size(tmp_path: Path, expert: Path) -> None:
    source = save_photograph(tmp_path / "in.jpg")
    assert alone(expert, "-i", source, "-o", tmp_path / "out.jpg", "-s", "2") == DONE
    check_exif(tmp_path / "out.jpg", (2 * WIDTH, 2 * HEIGHT))
    check_xmp(tmp_path / "out.jpg", (2 * WIDTH, 2 * HEIGHT))


def test_strip_metadata_leaves_nothing_and_is_in_the_claim(tmp_path: Path, expert: Path) -> None:
    (tmp_path / "in").mkdir()
    source = save_photograph(tmp_path / "in" / "a.jpg")
    words = ["-i", source.parent, "-o", tmp_path / "out", "--skip-existing"]
    assert alone(expert, *words) == DONE
    check_exif(tmp_path / "out" / "a.jpg")
    assert "strip_metadata" not in read_manifest(tmp_path / "out" / "a.jpg")["options"]
    assert alone(expert, *words, "--strip-metadata") == DONE, "made again: the option is part of the claim"
    data = (tmp_path / "out" / "a.jpg").read_bytes()
    assert MAKE.encode() not in data and b"xmpmeta" not in data
    assert read_manifest(tmp_path / "out" / "a.jpg")["options"]["strip_metadata"] is True
    assert alone(expert, "-i", source, "-o", tmp_path / "out", "--verify", tmp_path / "out" / "a.jpg") == DONE


def test_profiles_are_kept_with_and_without_metadata(tmp_path: Path) -> None:
    source = save_photograph(tmp_path / "plain.jpg")
    with Image.open(source) as image:
        image.save(tmp_path / "in.jpg", exif=tags(), icc_profile=rgb_profile())
    for suffix in SUFFIXES:
        for strip in (False, True):
            target = upscale(tmp_path / "in.jpg", tmp_path / f"{strip}{suffix}", strip_metadata=strip)
            with Image.open(target) as image:
                assert image.info["icc_profile"] == rgb_profile()


DAMAGED = {
    "no header": (b"garbage", XMP, "its EXIF is damaged"),
    "directory beyond the end": (struct.pack("<2sHI", b"II", 42, 9999), XMP, "its EXIF is damaged"),
    "too many entries": (struct.pack("<2sHIH", b"II", 42, 8, 60000), XMP, "its EXIF is damaged"),
    "value beyond the end": (
        struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 271, 2, 4_000_000_000, 8, 0),
        XMP,
        "1 damaged entries of its EXIF",
    ),
    "directories in a circle": (
        struct.pack("<2sHIHHHIII", b"II", 42, 8, 1, 0x8769, 4, 1, 8, 0),
        XMP,
        None,
    ),
    "no XML": (None, b"<x:xmpmeta", "its XMP is damaged"),
    "entities": (None, b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "its XMP is damaged"),
    "another encoding": (None, XMP.decode().encode("utf-16"), "its XMP is damaged"),
    "deep": (None, b"<a>" * 5000 + b"</a>" * 5000, "its XMP is damaged (it is nested too deeply)"),
    "huge": (None, b"<a>" + bytes(17 << 20).replace(b"\0", b"x") + b"</a>", "its XMP has more than"),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")
def test_damaged_blocks_are_left_out_with_a_line(tmp_path: Path, name: str, caplog: Any) -> None:
    exif, xmp, line = DAMAGED[name]
    source = save_photograph(tmp_path / ("in.png" if exif is None else "in.jpg"), exif=exif, xmp=xmp)
    target = upscale(source, tmp_path / "out.png")
    with Image.open(target) as image:
        image.load()
    assert (line in caplog.text) if line else "damaged" not in caplog.text
    kept = read_metadata(target)
    assert (kept.xmp is None) == ("XMP" in (line or ""))


def test_a_png_whose_exif_has_no_header_is_refused(tmp_path: Path) -> None:
    """As by everything that reads it: nobody can tell how it is turned."""
    with pytest.raises(Refusal, match="not a TIFF file"):
        upscale(save_photograph(tmp_path / "in.png", exif=b"garbage"), tmp_path / "out.png")


def test_what_a_jpeg_cannot_hold_is_said(tmp_path: Path, caplog: Any) -> None:
    exif = tags()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.MakerNote] = bytes(70_000)
    xmp = XMP.replace(b"mehr", b"m" * 70_000)
    source = save_photograph(tmp_path / "in.png", exif=exif.tobytes().removeprefix(b"Exif\0\0"), xmp=xmp)
    target = upscale(source, tmp_path / "out.jpg")
    assert "the camera's own notes in its EXIF are left out" in caplog.text
    assert "its XMP is left out: .jpg holds 65,504 bytes" in caplog.text
    with Image.open(target) as image:
        photo = image.getexif().get_ifd(ExifTags.IFD.Exif)
        assert photo[ExifTags.Base.DateTimeOriginal] == DATE
        assert ExifTags.Base.MakerNote not in photo
    caplog.clear()
    assert read_metadata(upscale(source, tmp_path / "out.webp")).xmp is not None
    assert not caplog.text.count("left out")
    upscale(source, tmp_path / "out.bmp")
    assert "BMP cannot hold EXIF and XMP" in caplog.text


def test_submissions_and_the_toolkits_entry_carry_none(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save_photograph(tmp_path / "in" / "a.png", orientation=1)
    target = upscale(tmp_path / "in", tmp_path / "out", ext="png")
    archive = pack(check_set(target, tmp_path / "in"), tmp_path / "s.zip", Facts(1.0, False, True, "words"))
    (tmp_path / "unpacked").mkdir()
    with zipfile.ZipFile(archive) as packed:
        packed.extract("a.png", tmp_path / "unpacked")
    with Image.open(tmp_path / "unpacked" / "a.png") as image, Image.open(target / "a.png") as made:
        assert made.getexif() and not image.getexif()
        np.testing.assert_array_equal(np.asarray(image), np.asarray(made))
    assert b"xmpmeta" not in (tmp_path / "unpacked" / "a.png").read_bytes()
    assert infer.main(None, tmp_path / "in", tmp_path / "ntire", "cpu") == DONE
    data = (tmp_path / "ntire" / "a.png").read_bytes()
    assert MAKE.encode() not in data and b"xmpmeta" not in data


def test_from_python(tmp_path: Path) -> None:
    source = save_photograph(tmp_path / "in.jpg")
    one = {"model": "none", "experts": ["edsr-s"], "device": "cpu"}
    large = championship_sr.upscale(source, **one)
    large.save(tmp_path / "out.jpg", exif=large.info["exif"], xmp=large.info["xmp"])
    check_exif(tmp_path / "out.jpg")
    check_xmp(tmp_path / "out.jpg")
    with Image.open(source) as image:  # whose pixels lie on their side, as they are given back
        turned = championship_sr.upscale(image, **one)
    turned.save(tmp_path / "turned.jpg", exif=turned.info["exif"])
    with Image.open(tmp_path / "turned.jpg") as image:
        assert image.size == (4 * WIDTH, 4 * HEIGHT)
        assert image.getexif()[ExifTags.Base.Orientation] == 6
        assert image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] == 4 * WIDTH
