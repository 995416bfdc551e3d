"""Image kinds through the whole pipeline, with an expert that repeats pixels: NumPy and Pillow tell what must come."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from fusion.inference.jobs import RunResult, make_jobs, measure_jobs
from fusion.inference.options import Options
from fusion.inference.pipeline import Pipeline
from fusion.inference.source import read_source
from imaging.files import read_picture, write_picture
from imaging.resize import resize_bicubic
from tests.inference.parts import ensemble_of, photo, pixels


def upscale(source: Path, target: Path, tile: int = 24, **options: Any) -> RunResult:
    """One run with the repeating expert, in small tiles."""
    chosen = Options(tile=tile, **options)
    jobs = make_jobs(source, target, chosen.ext, chosen.suffix)
    return Pipeline(ensemble_of(margin=2), chosen, tile).run(*measure_jobs(jobs))


def repeated(levels: np.ndarray) -> np.ndarray:
    return levels.repeat(4, 0).repeat(4, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".tif"])
def test_8_bit_formats_are_kept(tmp_path: Path, suffix: str, channels: int) -> None:
    levels = photo(61, 75, channels)
    path = tmp_path / f"in{suffix}"
    Image.fromarray(levels).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    outcome = upscale(path, tmp_path / "out")
    assert outcome.written == [tmp_path / "out" / f"in{suffix}"]
    found = pixels(outcome.written[0])
    expected = repeated(levels)
    if channels == 1 and suffix == ".webp":  # the format knows no grey
        expected = np.stack([expected] * 3, -1)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_png_is_kept(tmp_path: Path, channels: int) -> None:
    levels = photo(40, 53, channels, depth=16)
    cv2.imwrite(str(tmp_path / "in.png"), levels)
    outcome = upscale(tmp_path / "in.png", tmp_path / "out")
    found = cv2.imread(str(outcome.written[0]), cv2.IMREAD_UNCHANGED)
    assert found is not None
    assert found.dtype == np.uint16
    colours = slice(0, 3) if channels == 4 else slice(None)
    expected = repeated(levels)
    np.testing.assert_array_equal(found[..., colours], expected[..., colours])


def test_16_bit_tiff_is_kept_unless_8_bits_are_requested(tmp_path: Path) -> None:
    levels = photo(30, 44, 3, depth=16)
    tifffile.imwrite(tmp_path / "in.tif", levels, photometric="rgb")
    (kept,) = upscale(tmp_path / "in.tif", tmp_path / "a").written
    np.testing.assert_array_equal(tifffile.imread(kept), repeated(levels))
    eight = upscale(tmp_path / "in.tif", tmp_path / "b", depth=8, ext="png").written[0]
    assert eight.name == "in.png"
    assert np.abs(pixels(eight).astype(float) - repeated(levels) / 257).max() <= 0.5


def test_transparency_is_enlarged_by_bicubic_apart_from_the_colours(tmp_path: Path) -> None:
    levels = photo(70, 50, 4)
    Image.fromarray(levels).save(tmp_path / "in.png")
    found = pixels(upscale(tmp_path / "in.png", tmp_path / "out").written[0])
    np.testing.assert_array_equal(found[..., :3], repeated(levels)[..., :3])
    reference = cv2.resize(levels[..., 3].astype(np.float32), (200, 280), interpolation=cv2.INTER_CUBIC)
    pillow = np.asarray(Image.fromarray(levels[..., 3].astype(np.float32)).resize((200, 280), Image.Resampling.BICUBIC))
    inner = (slice(12, -12), slice(12, -12))  # beyond the edge each library goes on in its own way
    assert np.abs(found[..., 3][inner] - pillow[inner].clip(0, 255)).max() <= 0.51
    assert np.abs(found[..., 3].astype(float) - reference).max() < 40  # nothing shifted: another kernel, same places


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(photo(30, 30, 3)).quantize(16)
    image.info["transparency"] = 3
    image.save(tmp_path / "in.png", transparency=3)
    expected = np.asarray(Image.open(tmp_path / "in.png").convert("RGBA"))
    found = pixels(upscale(tmp_path / "in.png", tmp_path / "out").written[0])
    np.testing.assert_array_equal(found[..., :3], repeated(expected)[..., :3])
    assert found.shape[-1] == 4


def test_orientation_is_applied_and_profile_kept(tmp_path: Path) -> None:
    levels = photo(30, 42, 3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(levels).save(tmp_path / "in.png", exif=exif, icc_profile=profile)
    with Image.open(upscale(tmp_path / "in.png", tmp_path / "out").written[0]) as image:
        assert image.info["icc_profile"] == profile
        assert image.getexif().get(0x0112, 1) == 1
        np.testing.assert_array_equal(np.asarray(image), repeated(np.rot90(levels, -1)))


def test_jpeg_stays_jpeg(tmp_path: Path) -> None:
    Image.fromarray(photo(40, 40)).save(tmp_path / "in.jpg", quality=95)
    decoded = pixels(tmp_path / "in.jpg")
    (written,) = upscale(tmp_path / "in.jpg", tmp_path / "out").written
    with Image.open(written) as image:
        assert image.format == "JPEG"
        assert np.abs(np.asarray(image).astype(float) - repeated(decoded)).mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 3), (4, 200)])
def test_smallest_images(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.fromarray(photo(*size)).save(tmp_path / "in.png")
    found = pixels(upscale(tmp_path / "in.png", tmp_path / "out").written[0])
    np.testing.assert_array_equal(found, repeated(photo(*size)))


@pytest.mark.parametrize(("grey", "depth"), [(False, 8), (True, 8), (False, 16), (True, 16)])
def test_streamed_rows_are_the_bytes_of_writing_at_once(tmp_path: Path, grey: bool, depth: int) -> None:
    """Values beyond [0, 1] and between levels: streaming clamps and rounds as imaging.write_picture does."""
    cv2.imwrite(str(tmp_path / "in.png"), photo(50, 60, 1 if grey else 3, depth=depth))
    wild = ensemble_of(margin=0, wild=lambda lr_BCHW: resize_bicubic(lr_BCHW * 3 - 1, scale=4))
    sized, _ = measure_jobs(make_jobs(tmp_path / "in.png", tmp_path / "out"))
    (written,) = Pipeline(wild, Options(tile=0), 0).run(sized).written
    picture = read_picture(sized[0].job.input)
    whole = resize_bicubic(picture.rgb_CHW[None] * 3 - 1, scale=4)
    write_picture(tmp_path / "whole.png", whole, like=picture)
    found, expected = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (written, tmp_path / "whole.png"))
    assert found is not None and expected is not None
    np.testing.assert_array_equal(found, expected)


def test_windows_are_what_read_picture_gives(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "in.png"), photo(20, 30, 3, depth=16))
    window = read_source(tmp_path / "in.png").window(3, 17, 5, 30)
    assert torch.equal(window[0], read_picture(tmp_path / "in.png").rgb_CHW[:, 3:17, 5:30])


def test_structure_and_names_are_kept(tmp_path: Path) -> None:
    for name in ("a.png", "deep/er/b.png", "deep/c d.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(9, 9)).save(tmp_path / "in" / name)
    outcome = upscale(tmp_path / "in", tmp_path / "out", suffix="_x4")
    relative = {path.relative_to(tmp_path / "out").as_posix() for path in outcome.written}
    assert relative == {"a_x4.png", "deep/er/b_x4.png", "deep/c d_x4.png"}
    assert not [path for path in (tmp_path / "out").rglob("*") if ".tmp." in path.name]


def test_outputs_inside_the_input_folder_are_no_inputs(tmp_path: Path) -> None:
    Image.fromarray(photo(9, 9)).save(tmp_path / "a.png")
    for _ in range(2):
        assert len(upscale(tmp_path, tmp_path / "out").written) == 1
    assert len(measure_jobs(make_jobs(tmp_path, tmp_path / "out"))[0]) == 1


def test_record_is_in_the_png_for_any_reader(tmp_path: Path) -> None:
    Image.fromarray(photo(9, 9)).save(tmp_path / "a.png")
    (written,) = upscale(tmp_path / "a.png", tmp_path / "out").written
    with Image.open(io.BytesIO(written.read_bytes())) as image:
        assert isinstance(image, Image.Image)
        image.load()
        assert '"weights_sha256": "repeat"' in image.info["championship-sr"]
