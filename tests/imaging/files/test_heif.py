"""AVIF by Pillow, HEIC by pillow-heif: real files of both, and what is said where they cannot be read or written."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from fusion.inference.command import Request, carry_out
from fusion.inference.options import Options
from imaging.command import DONE
from imaging.files import image_size, list_images, read_metadata, read_picture, read_raster, write_picture
from imaging.files.heif import avif_depth, has_avif
from imaging.refusal import Refusal
from tests.imaging.files.photographs import DATE, XMP, tags
from tests.imaging.parts import rgb_profile
from tests.inference.parts import ensemble_of, photo

needs_avif = pytest.mark.skipif(not has_avif(), reason="this Pillow has no AVIF")
avif_data = pytest.mark.parametrize("channels", [1, 3, 4])


@pytest.fixture
def heif() -> Any:
    return pytest.importorskip("pillow_heif", reason="pillow-heif (the extra `heif`) is not installed")


@needs_avif
@avif_data
def test_avif_is_read_and_written(tmp_path: Path, channels: int) -> None:
    picture = Image.fromarray(photo(24, 30, channels))
    icc, chroma = (None, "4:0:0") if channels == 1 else (rgb_profile(), "4:4:4")
    picture.save(tmp_path / "in.avif", quality=100, subsampling=chroma, icc_profile=icc)
    assert image_size(tmp_path / "in.avif") == (24, 30)
    read = read_picture(tmp_path / "in.avif")
    assert (read.grey, read.depth, read.alpha_HW is not None) == (channels == 1, 8, channels == 4)
    assert read.icc == icc
    expected = np.asarray(picture).reshape(24, 30, -1)[..., :3] / 255
    found = read.rgb_CHW.permute(1, 2, 0).numpy()[..., : expected.shape[-1]]
    assert np.abs(found - expected).mean() < 0.01
    write_picture(tmp_path / "out.avif", read.rgb_CHW, like=read)
    with Image.open(tmp_path / "out.avif") as image:
        assert image.format == "AVIF"
        assert np.abs(np.asarray(image.convert("RGB")) / 255 - expected).mean() < 0.02


@needs_avif
def test_avif_is_turned_by_its_own_boxes(tmp_path: Path) -> None:
    Image.fromarray(photo(20, 28)).save(tmp_path / "in.avif", quality=100, subsampling="4:4:4", exif=tags(6))
    assert image_size(tmp_path / "in.avif") == (28, 20)
    levels_HWC = read_raster(tmp_path / "in.avif")[0].levels_HWC
    assert np.abs(levels_HWC.astype(int) - np.rot90(photo(20, 28), -1)).mean() < 4


@needs_avif
def test_the_depth_of_an_avif(tmp_path: Path, caplog: Any) -> None:
    """Pillow writes 8 bits only: of 10 and 12 it is the header alone that is made here."""
    Image.fromarray(photo(20, 28)).save(tmp_path / "in.avif")
    data = (tmp_path / "in.avif").read_bytes()
    at = data.index(b"av1C") + 6
    depths = [avif_depth(data[:at] + bytes([data[at] | flags]) + data[at + 1 :]) for flags in (0, 0x40, 0x60)]
    assert depths == [8, 10, 12]
    assert avif_depth(data[:at]) == avif_depth(b"") == 8
    read_raster(tmp_path / "in.avif")
    assert "bits" not in caplog.text


def test_a_pillow_without_avif_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.avif").write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(80))
    monkeypatch.delitem(features.modules, "avif", raising=False)
    with pytest.raises(Refusal, match="does not read; pip install --upgrade 'pillow"):
        image_size(tmp_path / "in.avif")
    with pytest.raises(Refusal, match="does not write AVIF; pip install --upgrade 'pillow"):
        write_picture(tmp_path / "out.avif", read_picture(save_png(tmp_path)).rgb_CHW)
    assert not (tmp_path / "out.avif").exists()


def save_png(folder: Path) -> Path:
    Image.fromarray(photo(8, 8)).save(folder / "a.png")
    return folder / "a.png"


def test_heic_without_its_package_is_refused_with_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    (tmp_path / "in.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(80))
    assert list_images(tmp_path) == [tmp_path / "in.heic"]
    with pytest.raises(Refusal, match=r"pip install 'championship-sr\[heif\]'"):
        image_size(tmp_path / "in.heic")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_heic_is_read(tmp_path: Path, heif: Any, channels: int) -> None:
    picture = Image.fromarray(photo(24, 32, channels))
    heif.from_pillow(picture).save(tmp_path / "in.heic", quality=-1, chroma=444)
    assert image_size(tmp_path / "in.heic") == (24, 32)
    read = read_picture(tmp_path / "in.heic")
    assert (read.grey, read.depth, read.alpha_HW is not None) == (channels == 1, 8, channels == 4)
    expected = np.asarray(picture).reshape(24, 32, -1)[..., :3] / 255
    assert np.abs(read.rgb_CHW.permute(1, 2, 0).numpy()[..., : expected.shape[-1]] - expected).mean() < 0.01


def test_heic_becomes_a_png_with_all_that_it_said(tmp_path: Path, heif: Any) -> None:
    (tmp_path / "in").mkdir()
    picture = Image.fromarray(photo(20, 28))
    picture.info["icc_profile"] = rgb_profile()
    picture.info["exif"], picture.info["xmp"] = tags(1).tobytes(), XMP
    heif.from_pillow(picture).save(tmp_path / "in" / "a.HEIC")
    assert carry_out(Request(tmp_path / "in", tmp_path / "out", Options(tile=0)), ensemble_of()) == DONE
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.size == (112, 80)
        assert image.getexif()[306] == DATE
        assert image.info["icc_profile"] == rgb_profile()
    assert read_metadata(tmp_path / "out" / "a.png").xmp is not None


def test_ten_bits_of_a_heic_become_sixteen(tmp_path: Path, heif: Any) -> None:
    levels_HWC = photo(24, 32, depth=16)
    levels_HWC[0], levels_HWC[1] = 0, 65535
    heif.from_bytes("RGB;16", (32, 24), levels_HWC.tobytes()).save(tmp_path / "in.heic", quality=-1, chroma=444)
    found_HWC = read_raster(tmp_path / "in.heic")[0].levels_HWC
    assert found_HWC.dtype == np.uint16
    assert found_HWC.max() == 65535 and found_HWC.min() == 0
    assert np.abs(found_HWC.astype(int) - levels_HWC).mean() < 200


def test_heic_files_that_are_none_are_refused(tmp_path: Path, heif: Any) -> None:
    buffer = io.BytesIO()
    heif.from_pillow(Image.fromarray(photo(24, 32))).save(buffer)
    data = buffer.getvalue()
    for index, part in enumerate((data[:60], data[: len(data) // 2], data[:40] + bytes(len(data) - 40))):
        (tmp_path / f"{index}.heic").write_bytes(part)
        with pytest.raises(Refusal):
            read_raster(tmp_path / f"{index}.heic")
    two = heif.from_pillow(Image.fromarray(photo(24, 32)))
    two.add_from_pillow(Image.fromarray(photo(24, 32, seed=1)))
    two.save(tmp_path / "two.heic")
    with pytest.raises(Refusal, match="holds 2 images"):
        image_size(tmp_path / "two.heic")


def test_heic_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="is not a format that can be written"):
        carry_out(Request(save_png(tmp_path), tmp_path / "out.heic", Options(tile=0)), ensemble_of())
