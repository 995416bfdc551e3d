"""Every command that writes: a place that cannot be written to is refused before the inputs are so much as opened."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

import train
from imaging.command import REFUSED, run
from imaging.paths import ROOT

NOWHERE = "no-such-input"
COMMANDS = (
    ("fusion", "fit-base", NOWHERE, "--out", "{}/m.safetensors"),
    ("fusion", "fit-budget", NOWHERE, "--seconds", "a=1,b=2", "--out", "{}/m.json"),
    ("fusion", "fit-budget", NOWHERE, "--seconds", "a=1,b=2", "--out", "m.json", "--record", "{}/m.md"),
    ("fusion", "export", "{}/m.onnx", "--model", NOWHERE),
    ("fusion", "distil", "--hr", NOWHERE, "--out", "{}/m.safetensors"),
    ("fusion", "distil", "--out", "m.safetensors", "--work", "{}/work"),
    ("fusion", "render", "--hr", NOWHERE, "--out", "{}/cache"),
    ("cache_tools", "extract", "--hr", NOWHERE, "--experts", NOWHERE, "--out", "{}/cache"),
    ("cache_tools", "plan", "--hr", NOWHERE, "--experts", NOWHERE, "--out", "{}/cache"),
    ("cache_tools", "merge", NOWHERE, "--out", "{}/cache"),
    ("cache_tools", "repack", NOWHERE, "--out", "{}/cache"),
    ("cache_tools", "import-pt", NOWHERE, "--out", "{}/cache"),
    ("cache_tools", "pull", "s3://no/where", "{}/cache"),
    ("fusion", "submit", NOWHERE, "-i", NOWHERE, "-o", "{}/s.zip"),
    ("fusion", "train-all", "--hr", NOWHERE, "--minutes", "1", "--out", "{}/models"),
    ("experts", "export", NOWHERE, "--to", "onnx", "{}/m.onnx"),
    ("experts", "deploy", NOWHERE, "{}/m.safetensors"),
    ("experts", "run", NOWHERE, "-i", NOWHERE, "-o", "{}"),
    ("imaging", "samples", "{}"),
    ("imaging", "downscale", NOWHERE, "{}"),
    ("imaging", "compare", "--lr", NOWHERE, "--sr", NOWHERE, "--hr", NOWHERE, "--out", "{}/picture.png"),
    ("cache_tools", "bench", "--out", "{}/bench.md"),
)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_it_is_refused_before_the_work(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    room, *rest = (word.format(tmp_path / "file" / "folder") for word in words)
    assert run(import_module(f"{room}.__main__").main, rest) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    place = str(tmp_path / "file" / "folder")
    assert line.startswith(f"refused: {place}")
    assert f": cannot be written to: {tmp_path / 'file'} is a file, not a folder; choose another place" in line
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_run_of_training_is_refused_before_its_images_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    words = ["--config", str(ROOT / "configs" / "expert_edsr_s.yaml"), f"data.hr=[{tmp_path / NOWHERE}]"]
    assert run(train.main, [*words, f"run={tmp_path / 'file' / 'run'}"]) == REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert f"cannot be written to: {tmp_path / 'file'} is a file" in line


def test_what_stands_there_already_must_be_of_its_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = import_module("experts.__main__").main
    assert run(main, ["deploy", NOWHERE, str(tmp_path)]) == REFUSED
    assert f"{tmp_path}: is a folder; name a file in it" in capsys.readouterr().err
    assert run(import_module("cache_tools.__main__").main, ["info", "x" * 256]) == REFUSED
    assert "a name of more than 255 bytes" in capsys.readouterr().err
    for name in ("x" * 256, f"{'x' * 256}/y"):
        assert run(main, ["deploy", NOWHERE, str(tmp_path / name)]) == REFUSED
        assert capsys.readouterr().err.startswith(f"refused: {tmp_path / ('x' * 256)}: ")
