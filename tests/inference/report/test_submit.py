"""A submission: complete and right, or refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fusion.inference.command import Request, carry_out
from fusion.inference.options import Options
from fusion.inference.report import submission as submit
from imaging.command import DONE, REFUSED, run
from tests.inference.parts import ensemble_of, photo, pixels, save_photos


@pytest.fixture
def made(tmp_path: Path) -> Path:
    save_photos(tmp_path / "lr")
    assert carry_out(Request(tmp_path / "lr", tmp_path / "out", Options(), submission=True), ensemble_of()) == DONE
    return tmp_path


def call(folder: Path, *words: object) -> int:
    return run(submit.main, [str(folder / "out"), "-i", str(folder / "lr"), *map(str, words)])


def test_zip_is_flat_and_complete(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(made, "--cpu", "--description", "test", "--json") == DONE
    assert json.loads(capsys.readouterr().out)["images"] == 3
    with zipfile.ZipFile(made / "out" / "submission.zip") as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["image0.png", "image1.png", "image2.png", "readme.txt"]
        for name in archive.namelist()[:3]:
            with archive.open(name) as file:
                np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels(made / "out" / name))
        lines = archive.read("readme.txt").decode().splitlines()
    assert [line.split(" : ")[0] for line in lines] == [
        "runtime per image [s]",
        "CPU[1] / GPU[0]",
        "Extra Data [1] / No Extra Data [0]",
        "Other description",
    ]
    assert [line.split(" : ")[1] for line in lines[1:]] == ["1", "1", "test"]
    float(lines[0].split(" : ")[1])


def test_same_images_make_the_same_zip(made: Path) -> None:
    target = made / "one.zip"
    assert call(made, "--runtime", 1, "-o", target) == DONE
    before = target.read_bytes()
    assert call(made, "--runtime", 1, "-o", target) == DONE
    assert target.read_bytes() == before


def _wrong_size(out: Path) -> None:
    Image.fromarray(photo(9, 9)).save(out / "image0.png")


def _grey_alpha(out: Path) -> None:
    Image.fromarray(np.dstack([pixels(out / "image0.png"), np.zeros((96, 96), np.uint8)])).save(out / "image0.png")


def _truncated(out: Path) -> None:
    (out / "image0.png").write_bytes((out / "image0.png").read_bytes()[:-200])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda out: (out / "image1.png").unlink(), "lacks image1.png"),
        (lambda out: Image.fromarray(photo(4, 4)).save(out / "more.png"), "has surplus more.png"),
        (_wrong_size, "four times"),
        (_grey_alpha, "without transparency"),
        (_truncated, "truncated"),
        (lambda out: (out / "image0.png").rename(out / "image0.bmp"), "not a PNG"),
        (lambda out: (out / "image0.png.json").unlink(), "no recorded runtime"),
    ],
)
def test_invalid_outputs_are_refused(made: Path, spoil: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (made / "out" / "submission.zip").unlink()
    spoil(made / "out")
    assert call(made) == REFUSED
    assert message in capsys.readouterr().err
    assert not (made / "out" / "submission.zip").exists()


def test_names_that_collide_when_flat_are_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("lr", "out"):
        (made / folder / "deep").mkdir()
        Image.fromarray(photo(4, 4)).save(made / folder / "deep" / "image0.png")
    assert call(made) == REFUSED
    assert "flat zip" in capsys.readouterr().err


def test_that_extra_data_is_assumed_is_said_at_inference(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_photos(tmp_path / "lr", 1)
    caplog.set_level("INFO")
    assert carry_out(Request(tmp_path / "lr", tmp_path / "out", Options(), submission=True), ensemble_of()) == DONE
    assert "extra data: 1 (assumed" in caplog.text and "--no-extra-data" in caplog.text
