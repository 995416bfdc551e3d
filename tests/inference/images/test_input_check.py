"""Inputs that do not look like clean downscales are warned about; clean ones never are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from skimage.data import astronaut

from fusion.inference.input_check import central_luma, judge, measures, noise_level, warn_about
from imaging.files import list_images, read_raster
from tests.inference.parts import photo


@pytest.fixture(scope="module")
def clean() -> Image.Image:
    """A photograph, reduced as Pillow does."""
    return Image.fromarray(astronaut()).resize((128, 128), Image.Resampling.BICUBIC)


def kinds(image: Image.Image) -> list[str]:
    luma_HW = central_luma(np.asarray(image).reshape(image.height, image.width, -1))
    assert luma_HW is not None
    return judge([measures(luma_HW)])


def jpeg(image: Image.Image, folder: Path) -> Image.Image:
    image.save(folder / "small.jpg", quality=30)
    return Image.open(folder / "small.jpg")


def noisy(image: Image.Image, _folder: Path) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 25, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def blurred(image: Image.Image, _folder: Path) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(1.5))


def enlarged(image: Image.Image, _folder: Path) -> Image.Image:
    return image.resize((256, 256), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(("damage", "kind"), [(jpeg, "jpeg"), (noisy, "noise"), (blurred, "blur"), (enlarged, "blur")])
def test_damage_is_warned_about_and_the_clean_image_is_not(
    clean: Image.Image, damage: Callable[[Image.Image, Path], Image.Image], kind: str, tmp_path: Path
) -> None:
    assert kinds(clean) == []
    assert kind in kinds(damage(clean, tmp_path))


def test_no_clean_benchmark_image_is_warned_about(shared_data: Path) -> None:
    images = [
        path for name in ("Set5", "Set14", "BSD100") for path in list_images(shared_data / "bench" / name / "LRx4")
    ]
    found = []
    for path in images[::2]:
        luma_HW = central_luma(read_raster(path)[0].levels_HWC)
        if luma_HW is not None:
            found.append(measures(luma_HW))
            assert judge(found[-1:]) == [], path
    assert judge(found) == []


def test_noise_level_follows_the_truth_on_a_flat_image() -> None:
    rng = np.random.default_rng(0)
    levels = [noise_level(128 + rng.normal(0, sigma, (256, 256))) for sigma in (2.0, 8.0)]
    assert levels[1] / levels[0] == pytest.approx(4, rel=0.1)
    assert 0.4 < levels[0] / 2 < 1  # the flattest blocks, not the mean


@pytest.mark.parametrize("levels", [np.zeros((100, 100, 3), np.uint8), photo(20, 200), photo(1, 1)])
def test_what_cannot_be_judged_is_not(levels: np.ndarray) -> None:
    assert central_luma(levels) is None


def test_the_warning_names_damage_image_and_cure(
    clean: Image.Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clean.save(tmp_path / "a.png")
    noisy(clean, tmp_path).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"")  # the pipeline lists it
    with caplog.at_level(logging.WARNING):
        assert warn_about(list_images(tmp_path)) == ["noise"]
    assert "b.png" in caplog.text
    assert "denoise" in caplog.text
