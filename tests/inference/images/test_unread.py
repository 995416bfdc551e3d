"""Files that are not read are counted and named; transparency that a format cannot hold is refused before the work."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

import infer
from cache_tools.__main__ import main as cache_command
from fusion.inference.command import Request, carry_out
from fusion.inference.options import Options, OutputSize
from fusion.inference.report.provenance import read_manifest
from imaging.command import DONE, FAILURES_LISTED, REFUSED, run
from imaging.refusal import Refusal
from tests.inference.images.parts import upscale
from tests.inference.parts import enlarge, ensemble_of, photo, pixels, save_photos, weights_file

if TYPE_CHECKING:
    from pathlib import Path


def save_gif(path: Path) -> None:
    frames = [Image.fromarray(photo(16, 16, seed=seed)) for seed in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def test_an_animation_in_a_folder_does_not_vanish(tmp_path: Path, capsys: Any, caplog: Any) -> None:
    save_photos(tmp_path / "in" / "deep", 2)
    save_gif(tmp_path / "in" / "deep" / "dance.gif")
    (tmp_path / "in" / "notes.txt").write_text("hello")
    (tmp_path / "in" / ".hidden.gif").write_text("hidden files are nobody's images")
    words = ["--model", str(weights_file(tmp_path)), "--device", "cpu", "-i", str(tmp_path / "in"), "-o"]
    for _ in range(2):  # records and report of the first run, within the input, are our own
        assert run(infer.command_line, [*words, str(tmp_path / "in" / "out"), "--json", "--report"]) == DONE
        document = json.loads(capsys.readouterr().out)
        assert document["unread"] == [str(tmp_path / "in" / name) for name in ("deep/dance.gif", "notes.txt")]
        assert "2 files not read" in caplog.text and "deep/dance.gif, notes.txt" in caplog.text
    caplog.clear()
    assert run(infer.command_line, [*words, str(tmp_path / "in"), "--suffix", "_x4", "--json"]) == DONE
    assert [name.rpartition("/")[2] for name in json.loads(capsys.readouterr().out)["unread"]] == [
        "dance.gif",
        "notes.txt",
        "report.html",
    ]


def test_extraction_names_them_too(tmp_path: Path, caplog: Any) -> None:
    save_photos(tmp_path / "hr", 1, side=64)
    save_gif(tmp_path / "hr" / "dance.gif")
    words = ["extract", "--hr", tmp_path / "hr", "--out", tmp_path / "cache", "--experts", weights_file(tmp_path)]
    assert run(cache_command, [str(word) for word in words]) == DONE
    assert "1 file not read" in caplog.text and "dance.gif" in caplog.text


@pytest.fixture
def transparent(tmp_path: Path) -> Path:
    """A red disc upon transparent green, and an opaque photograph."""
    y, x = np.mgrid[:40, :40]
    inner = (y - 20) ** 2 + (x - 20) ** 2 < 150
    image = np.zeros((40, 40, 4), np.uint8)
    image[..., 0], image[..., 1], image[..., 3] = 255 * inner, 255 * ~inner, 255 * inner
    image[20, 20, 3] = 128
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in" / "disc.png")
    Image.fromarray(photo(20, 24)).save(tmp_path / "in" / "photo.png")
    return tmp_path


def test_transparency_is_refused_before_the_work(transparent: Path) -> None:
    sizes: list[tuple[int, ...]] = []

    def watched(lr_BCHW: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(lr_BCHW.shape[-2:]))
        return enlarge(lr_BCHW)

    ensemble = ensemble_of(a=watched)
    request = Request(transparent / "in", transparent / "out", Options(tile=0, ext="jpg"))
    assert carry_out(request, ensemble) == FAILURES_LISTED
    assert sizes == [(20, 24)], "the disc was never computed"
    alone = Request(transparent / "in" / "disc.png", transparent / "out", Options(tile=0, ext="jpg"))
    with pytest.raises(Refusal, match="transparent.*--background"):
        carry_out(alone, ensemble)
    assert sizes == [(20, 24)]


@pytest.mark.parametrize("ext", ["png", "jpg"])
def test_it_is_laid_upon_a_colour_without_a_fringe_of_what_it_hid(transparent: Path, ext: str) -> None:
    background = (32, 160, 255)
    request = Request(transparent / "in", transparent / "out", Options(tile=0, ext=ext, background=background))
    assert carry_out(request, ensemble_of()) == DONE
    made = pixels(transparent / "out" / f"disc.{ext}").astype(int)
    image = np.asarray(Image.open(transparent / "in" / "disc.png")).astype(float)
    share = image[..., 3:] / 255
    expected = (share * image[..., :3] + (1 - share) * background).round().repeat(4, 0).repeat(4, 1)
    assert made.shape == (160, 160, 3)
    assert np.abs(made - expected).mean() < (0.01 if ext == "png" else 3)
    assert made[..., 1].max() <= 200, "nothing of the hidden green shows"
    record = read_manifest(transparent / "out" / f"disc.{ext}")
    assert record["options"]["background"] == "#20a0ff"


def test_grey_upon_grey_stays_grey_and_16_bits_stay_16(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    grey = np.stack([np.full((12, 12), 200, np.uint8), np.full((12, 12), 51, np.uint8)], -1)
    Image.fromarray(grey).save(tmp_path / "in" / "grey.png")
    for name, background, expected in (("white", (255,) * 3, 244), ("blue", (0, 0, 255), [40, 40, 244])):
        request = Request(tmp_path / "in", tmp_path / name, Options(tile=0, background=background))
        assert carry_out(request, ensemble_of()) == DONE
        np.testing.assert_array_equal(pixels(tmp_path / name / "grey.png")[5, 5], expected)


@pytest.mark.parametrize(("word", "code"), [("white", DONE), ("#20a0ff", DONE), ("#20a0ff80", REFUSED), ("w", REFUSED)])
def test_colours_are_names_or_numbers(tmp_path: Path, word: str, code: int, capsys: Any) -> None:
    save_photos(tmp_path / "in", 1)
    words = ["--model", str(weights_file(tmp_path)), "--device", "cpu", "-i", str(tmp_path / "in"), "-o"]
    assert run(infer.command_line, [*words, str(tmp_path / "out"), "--background", word]) == code
    assert ("no opaque colour" in capsys.readouterr().err) == (code == REFUSED)


def test_a_formats_limit_counts_for_the_size_that_is_written(tmp_path: Path) -> None:
    """WebP ends at 16,383 pixels a side: four times 4,200 are too many, twice are not."""
    (tmp_path / "in").mkdir()
    Image.fromarray(photo(8, 4200)).save(tmp_path / "in" / "wide.png")
    whole = Request(tmp_path / "in", tmp_path / "out", Options(tile=0, ext="webp"))
    assert carry_out(whole, ensemble_of()) == FAILURES_LISTED
    half = Request(tmp_path / "in", tmp_path / "out", Options(tile=0, ext="webp", size=OutputSize(outscale=2)))
    assert carry_out(half, ensemble_of()) == DONE


def test_moving_pictures_are_refused_with_what_to_do(tmp_path: Path, caplog: Any) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    (tmp_path / "in").mkdir()
    files = {}
    for name, kind in (("a.gif", "GIF"), ("b.webp", "WEBP"), ("c.png", "PNG"), ("d.avif", "AVIF")):
        frames[0].save(tmp_path / name, kind, save_all=True, append_images=frames[1:])
        files[name] = "animated" if kind != "GIF" else "is a GIF"
    boxes = {"e.mp4": b"\0\0\0\x18ftypisom", "f.mov": b"\0\0\0\x14ftypqt  ", "g.avi": b"RIFF\0\0\0\0AVI LIST"}
    boxes |= {"h.mkv": b"\x1a\x45\xdf\xa3", "i.mpg": b"\0\0\x01\xba"}
    for name, head in boxes.items():
        (tmp_path / name).write_bytes(head + bytes(64))
        files[name] = "is a video"
    for name, why in files.items():
        with pytest.raises(Refusal, match=f"{why}.*ffmpeg -i FILE"):
            upscale(tmp_path / name, tmp_path / "out")
    (tmp_path / "in" / "x.mp4").write_bytes(boxes["e.mp4"] + bytes(64))
    save_photos(tmp_path / "in", 1)
    upscale(tmp_path / "in", tmp_path / "out")
    assert "x.mp4; of an animation or video: take it apart by `ffmpeg" in caplog.text
