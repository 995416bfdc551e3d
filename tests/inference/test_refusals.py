"""What infer.py refuses and what it survives: bad images, full disks, interruptions, wrong words."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fusion.inference import pipeline
from fusion.inference.report.provenance import record_path
from imaging.command import DONE, FAILURES_LISTED, INTERRUPTED, REFUSED
from tests.inference.parts import alone, call, photo, pixels, reference, save_photos


def test_one_bad_image_among_many(tmp_path: Path, expert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = save_photos(tmp_path / "in", 4)
    inputs[0].write_bytes(b"")
    inputs[1].write_bytes(inputs[1].read_bytes()[:-30])
    (tmp_path / "in" / "text.png").write_text("no image")
    assert alone(expert, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json") == FAILURES_LISTED
    document = json.loads(capsys.readouterr().out)
    assert {Path(name).name for name in document["written"]} == {"image2.png", "image3.png"}
    assert {Path(name).name for name in document["failed"]} == {"image0.png", "image1.png", "text.png"}
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"image2.png", "image3.png"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no such file or folder"),
        (lambda folder: folder.mkdir(), "holds no images"),
        (lambda folder: folder.write_bytes(b""), "zero bytes"),
        (lambda folder: folder.write_text("no image"), "is not an image"),
    ],
)
def test_nothing_to_do_is_refused(tmp_path: Path, expert: Path, make: Any, message: str, capsys: Any) -> None:
    make(tmp_path / "in")
    assert alone(expert, "-i", tmp_path / "in", "-o", tmp_path / "out") == REFUSED
    error = capsys.readouterr().err.strip()
    assert message in error
    assert error.splitlines()[-1].startswith("refused: ")


def test_huge_image_is_refused_before_it_is_decoded(tmp_path: Path, expert: Path, capsys: Any) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    assert alone(expert, "-i", tmp_path / "huge.png", "-o", tmp_path / "out") == REFUSED
    assert "decompression bomb" in capsys.readouterr().err


def test_outputs_never_overwrite_inputs(tmp_path: Path, expert: Path, capsys: Any) -> None:
    (path,) = save_photos(tmp_path / "in", 1)
    before = path.read_bytes()
    for target in (tmp_path / "in", path):
        assert alone(expert, "-i", tmp_path / "in" if target.is_dir() else path, "-o", target) == REFUSED
        assert "overwrite" in capsys.readouterr().err
    assert path.read_bytes() == before
    Image.fromarray(photo(9, 9)).save(tmp_path / "in" / "image0.bmp")
    assert alone(expert, "-i", tmp_path / "in", "-o", tmp_path / "out", "--ext", "png") == REFUSED
    assert "both image0.png" in capsys.readouterr().err


def test_target_that_cannot_be_written(tmp_path: Path, expert: Path, capsys: Any) -> None:
    (path,) = save_photos(tmp_path / "in", 1)
    (tmp_path / "file").write_text("in the way")
    assert alone(expert, "-i", path, "-o", tmp_path / "file" / "out") == REFUSED
    assert "cannot be written to" in capsys.readouterr().err


def test_too_little_disk_is_refused_before_the_work(
    tmp_path: Path, expert: Path, monkeypatch: Any, capsys: Any
) -> None:
    save_photos(tmp_path / "in")
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    assert alone(expert, "-i", tmp_path / "in", "-o", tmp_path / "out") == REFUSED
    assert "are free" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_failing_write_leaves_nothing_and_the_rest_is_done(tmp_path: Path, expert: Path, capsys: Any) -> None:
    """The system's own limit on the size of a file, met in the middle of the first image."""
    save_photos(tmp_path / "in", 1, side=150)
    Image.fromarray(photo(9, 9)).save(tmp_path / "in" / "small.png")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        code = alone(expert, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == FAILURES_LISTED
    assert "cannot be written" in next(iter(json.loads(capsys.readouterr().out)["failed"].values()))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"small.png", "small.png.json"}


def test_interruption_removes_the_current_file_and_the_next_run_resumes(
    tmp_path: Path, expert: Path, monkeypatch: Any, capsys: Any
) -> None:
    save_photos(tmp_path / "in", 3, side=90)
    words = ["-i", tmp_path / "in", "-o", tmp_path / "out", "-t", "80", "--skip-existing", "--json"]
    seen: list[str] = []
    original = pipeline.run_tile

    def interrupted(ensemble: Any, lr_BCHW: Any, place: Any, **options: Any) -> torch.Tensor:
        seen.append(place.item)
        if seen.count("image1") == 3:
            raise KeyboardInterrupt
        return original(ensemble, lr_BCHW, place, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_tile", interrupted)
        assert alone(expert, *words) == INTERRUPTED
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"image0.png", "image0.png.json"}
    assert "interrupted: --skip-existing goes on from what was finished" in capsys.readouterr().err
    assert alone(expert, *words) == DONE
    document = json.loads(capsys.readouterr().out)
    assert len(document["skipped"]) == 1
    assert len(document["written"]) == 2


def test_out_of_memory_is_reported(tmp_path: Path, expert: Path, monkeypatch: Any, capsys: Any) -> None:
    path = tmp_path / "in.png"
    Image.fromarray(photo(170, 130)).save(path)
    original = pipeline.run_tile

    def limited(ensemble: Any, lr_BCHW: torch.Tensor, place: Any, **options: Any) -> torch.Tensor:
        if max(lr_BCHW.shape[-2:]) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(ensemble, lr_BCHW, place, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "run_tile", limited)
        assert alone(expert, "-i", path, "-o", tmp_path / "out", "-t", "0", "--json") == DONE
    assert "out of memory" in json.loads(capsys.readouterr().out)["events"][0]
    assert "out of memory" in json.loads(record_path(tmp_path / "out" / "in.png").read_text())["events"][0]
    assert np.abs(pixels(tmp_path / "out" / "in.png").astype(int) - reference(path)).max() <= 1


@pytest.mark.parametrize(
    "words",
    [
        ["-i", "x"],
        ["-i", "x", "-o", "y", "--tile", "many"],
        ["-i", "x", "-o", "y", "--hr", "z"],
        ["-i", "x", "-o", "y", "--budget", "0.5"],
        ["-i", "x", "-o", "y", "--budget", "1.5", "--budget-head", "z"],
        ["-i", "x", "-o", "y", "--experts", "no-such-expert", "--model", "none"],
        ["-i", "x", "-o", "y", "--model", "none"],
        ["-i", "x", "-o", "y", "--model", "edsr-s"],
        ["-i", "x", "-o", "y", "--device", "quantum"],
    ],
)
def test_wrong_words_are_refused_in_one_line(
    words: list[str], expert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = words if "--model" in words else ["--model", str(expert), *words]
    assert call(*named) == REFUSED
    assert capsys.readouterr().err.strip().count("\n") == 0


@pytest.mark.parametrize("option", ["-i", "-o"])
def test_an_address_is_no_folder(tmp_path: Path, expert: Path, option: str, capsys: Any, monkeypatch: Any) -> None:
    save_photos(tmp_path / "in", 1)
    monkeypatch.chdir(tmp_path)
    words = {"-i": tmp_path / "in", "-o": tmp_path / "out"} | {option: "s3://bucket/images"}
    assert alone(expert, *(word for pair in words.items() for word in pair)) == REFUSED
    assert "s3://bucket/images: is an address" in capsys.readouterr().err
    assert not (tmp_path / "s3:").exists()
