"""`--outscale`, `--width`, `--height`, `--max-side`: the written size, by antialiased bicubic after the enlargement."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fusion.inference.options import OutputSize
from fusion.inference.report.provenance import read_manifest, read_record
from imaging.command import DONE, REFUSED
from imaging.files import quantize_u8, read_rgb
from imaging.resize import resize_bands, resize_bicubic
from tests.experts.parts import small_network
from tests.inference.parts import alone, photo, pixels, save_photos

SIDES = st.integers(1, 70)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_rows_as_they_come_give_the_same_as_the_whole(
    height: int, width: int, new_height: int, new_width: int, heights: list[int]
) -> None:
    image_CHW = torch.rand(3, height, width, generator=torch.Generator().manual_seed(height))
    bands, top, turn = [], 0, 0
    while top < height:
        bands.append(image_CHW[:, top : top + heights[turn % len(heights)]])
        top, turn = top + heights[turn % len(heights)], turn + 1
    found = torch.cat(list(resize_bands(bands, (height, width), (new_height, new_width))), dim=-2)
    whole = resize_bicubic(image_CHW[None], size=(new_height, new_width))[0]
    assert torch.allclose(found, whole, atol=1e-5)


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 5000))
def test_sides_keep_the_shape_and_stay_inside(height: int, width: int, most_wide: int, most_high: int) -> None:
    new_height, new_width = OutputSize(width=most_wide, height=most_high).of(height, width)
    assert new_width == most_wide or new_height == most_high
    assert new_width <= most_wide and new_height <= most_high
    scale = min(most_wide / width, most_high / height)
    assert new_width == max(1, round(width * scale)) and new_height == max(1, round(height * scale))
    limited = OutputSize(max_side=most_wide).of(height, width)
    assert max(limited) == min(most_wide, 4 * max(height, width))
    assert OutputSize().of(height, width) == (4 * height, 4 * width)


def resized(path: Path, size: tuple[int, int]) -> np.ndarray:
    """The network's own image, made whole, resized whole, rounded once."""
    with torch.no_grad():
        sr_BCHW = small_network("EDSR", 0)(read_rgb(path)).clamp(0, 1)
    return quantize_u8(resize_bicubic(sr_BCHW, size=size))[0].permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (("--outscale", "2"), (48, 60)),
        (("-s", "3"), (72, 90)),
        (("-s", "6"), (144, 180)),
        (("--width", "50"), (40, 50)),
        (("--width", "50", "--height", "20"), (20, 25)),
        (("--max-side", "100"), (80, 100)),
        (("--max-side", "1000"), (96, 120)),
        (("-s", "2", "--max-side", "30", "-t", "16"), (24, 30)),
    ],
)
def test_the_file_has_that_size_and_its_record_says_so(
    tmp_path: Path,
    expert: Path,
    words: tuple[str, ...],
    size: tuple[int, int],
) -> None:
    path = tmp_path / "in.png"
    Image.fromarray(photo(24, 30)).save(path)
    assert alone(expert, "-i", path, "-o", tmp_path / "out.png", *words) == DONE
    found = pixels(tmp_path / "out.png").astype(int)
    assert found.shape[:2] == size
    assert np.abs(found - resized(path, size)).max() <= 1
    names = {"-s": "outscale"}
    asked = {
        names.get(one, one.strip("-").replace("-", "_")): float(two)
        for one, two in zip(words[::2], words[1::2], strict=True)
    }
    asked.pop("t", None)
    assert read_manifest(tmp_path / "out.png")["options"]["size"] == asked
    record = read_record(tmp_path / "out.png")
    assert record is not None
    assert record.get("size") == ([size[1], size[0]] if size != (96, 120) else None)
    again = ["-i", path, "-o", tmp_path / "out.png", *words]
    assert alone(expert, *again, "--verify", tmp_path / "out.png") == DONE


def test_transparency_and_depth_go_along(tmp_path: Path, expert: Path) -> None:
    rgba = np.dstack([photo(20, 24), np.tile(np.linspace(0, 255, 24, dtype=np.uint8), (20, 1))])
    Image.fromarray(rgba).save(tmp_path / "in.png")
    words = ["-i", tmp_path / "in.png", "-o", tmp_path / "out.png", "-s", "2"]
    assert alone(expert, *words) == DONE
    found = pixels(tmp_path / "out.png")
    assert found.shape == (40, 48, 4)
    assert np.all(np.diff(found[20, :, 3].astype(int)) >= 0)
    assert alone(expert, *words, "--depth", "16", "-o", tmp_path / "deep.png") == DONE
    assert (tmp_path / "deep.png").read_bytes()[24] == 16  # bit depth in the header


def test_sizes_that_make_no_sense_are_refused(tmp_path: Path, expert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = save_photos(tmp_path / "in", 1)
    for words, why in [
        (("-s", "0"), "--outscale 0"),
        (("-s", "nan"), "--outscale nan"),
        (("--width", "0"), "--width 0"),
        (("-s", "2", "--width", "10"), "given twice"),
        (("-s", "2", "--submission"), "a submission holds images of four times"),
    ]:
        assert alone(expert, "-i", path, "-o", tmp_path / "out", *words) == REFUSED
        assert why in capsys.readouterr().err
    assert alone(expert, "-i", path, "-o", tmp_path / "out", "-s", "2", "--dry-run", "--json") == DONE
    (image,) = json.loads(capsys.readouterr().out)["images"]
    assert (image["output_width"], image["output_height"]) == (48, 48)
