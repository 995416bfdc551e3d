"""python -m imaging, as a user runs it, on the sample photographs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from imaging import command
from imaging.__main__ import main
from imaging.files import read_rgb
from imaging.metrics import luma
from imaging.resize import downscale_8bit


def run(*words: str | Path) -> int:
    return command.run(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    assert run("samples", root / "HR") == 0
    assert run("downscale", root / "HR", root / "LR") == 0
    return root


def test_a_mistyped_option_is_one_line_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pack", "a", "--to", "b", "--limit", "5") == command.REFUSED  # not an abbreviation of --limit-mib
    line = "refused: python -m imaging pack: unrecognized arguments: --limit 5; did you mean --limit-mib?\n"
    assert capsys.readouterr().err == line
    assert run("downscale", "a", "b", "--limit", "5") == command.REFUSED  # --limit-mib belongs to another command
    assert "; `python -m imaging downscale --help` lists what there is" in capsys.readouterr().err
    assert run("downscale", "pack", "b", "--limit", "5") == command.REFUSED  # and a folder's name is no command
    assert "did you mean" not in capsys.readouterr().err
    assert run("smaples", "x") == command.REFUSED
    assert "did you mean samples?" in capsys.readouterr().err
    assert run("pack") == command.REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert "required: FOLDER, --to; `python -m imaging pack --help`" in line


def test_samples_are_scikit_images_photographs(photographs: Path) -> None:
    with Image.open(photographs / "HR" / "astronaut.png") as picture:
        assert np.array_equal(np.asarray(picture), skimage.data.astronaut())
    with Image.open(photographs / "HR" / "chelsea.png") as picture:
        assert picture.size == (448, 300)


def test_downscale_writes_what_the_function_makes(photographs: Path) -> None:
    hr_BCHW = read_rgb(photographs / "HR" / "coffee.png")
    np.testing.assert_array_equal(read_rgb(photographs / "LR" / "coffee.png"), downscale_8bit(hr_BCHW))


def test_compare_gives_the_figures_and_draws_the_picture(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sr = photographs / "SR"
    sr.mkdir()
    hr = np.asarray(Image.open(photographs / "HR" / "astronaut.png")).astype(int)
    noisy = np.clip(hr + np.random.default_rng(0).integers(-9, 10, hr.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(sr / "astronautx4.png")
    folders = ("--lr", photographs / "LR", "--sr", sr, "--hr", photographs / "HR")
    capsys.readouterr()
    assert run("compare", *folders, "--json") == 0
    (figures,) = json.loads(capsys.readouterr().out)
    luma_of = [255 * luma(read_rgb(path))[0, 0, 4:-4, 4:-4].double().numpy() for path in sorted(sr.iterdir())]
    truth = 255 * luma(read_rgb(photographs / "HR" / "astronaut.png"))[0, 0, 4:-4, 4:-4].double().numpy()
    reference = peak_signal_noise_ratio(truth, luma_of[0], data_range=255)
    assert figures["psnr"] == pytest.approx(reference, abs=0.01)
    assert figures["bicubic_psnr"] < figures["psnr"]
    assert run("compare", *folders, "--out", photographs / "picture.png") == 0
    assert "| mean |" in capsys.readouterr().out
    with Image.open(photographs / "picture.png") as picture:
        assert picture.size == (3 * 320 + 2 * 8, 320 + 24 + 8)


def test_compare_refuses_what_does_not_pair(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = photographs / "other"
    other.mkdir()
    Image.new("RGB", (8, 8)).save(other / "stranger.png")
    assert run("compare", "--lr", photographs / "LR", "--sr", other, "--hr", photographs / "HR") == 2
    assert "no partner" in capsys.readouterr().err
