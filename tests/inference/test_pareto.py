"""`fusion bench-pareto`: the front, the picture, and points that go on where they were."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.inference.pareto import Way, fingerprint, main
from benchmarks.inference.pareto_picture import Measured, draw, front
from imaging.command import DONE
from tests.inference.parts import photo

NUMBERS = st.floats(0.01, 1000, allow_nan=False)


def point(seconds: float, psnr: float, name: str = "x") -> Measured:
    return Measured(name=name, kind="expert", fingerprint="", seconds=seconds, psnr=psnr)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12))
def test_the_front_holds_what_nothing_dominates(values: list[tuple[float, float]]) -> None:
    points = [point(*one) for one in values]
    best = front(points)
    for one in points:
        beaten = any(
            other.seconds <= one.seconds
            and other.psnr >= one.psnr
            and (other.seconds, other.psnr) != (one.seconds, one.psnr)
            for other in points
        )
        assert beaten != (one in best)
    assert [one.seconds for one in best] == sorted(one.seconds for one in best)


def test_the_picture_shows_every_point_where_it_belongs() -> None:
    points = [point(0.5, 28.0, "fast <1>"), point(2.0, 29.0, "good"), point(2.0, 28.5, "worse")]
    root = ElementTree.fromstring(draw(points, front(points), "Set14"))
    circles = [one for one in root.iter() if one.tag.endswith("circle")]
    places = [(float(one.get("cx", "")), float(one.get("cy", ""))) for one in circles]
    assert places[0][0] < places[1][0] == places[2][0]
    assert places[0][1] > places[2][1] > places[1][1]
    assert {"fast <1>", "good", "worse"} <= {one.text for one in root.iter() if one.text}


def test_other_images_words_or_weights_are_other_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAMPIONSHIP_SR_PRETRAINED", str(tmp_path))
    for name in ("LR", "HR"):
        (tmp_path / name).mkdir()
        Image.fromarray(photo(16, 16)).save(tmp_path / name / "a.png")
    (tmp_path / "one.yaml").write_text("experts: [edsr-s]\nfusion: one.safetensors\n")
    seen = set()
    for step in range(6):
        words = ("--model", "one", "--budget", "0.5") if step == 1 else ("--model", "one")
        if step == 2:
            (tmp_path / "one.safetensors").write_bytes(b"weights")
        if step == 3:
            (tmp_path / "budget.json").write_text("{}")
        if step == 4:
            (tmp_path / "edsr_s.safetensors").write_bytes(b"expert")
        if step == 5:
            Image.fromarray(photo(16, 20)).save(tmp_path / "LR" / "a.png")
        seen.add(fingerprint(Way("one", "preset", words), tmp_path / "LR", tmp_path / "HR"))
    assert len(seen) == 6


@pytest.mark.slow
def test_an_expert_is_measured_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, side in (("LR", 32), ("HR", 128)):
        (tmp_path / name).mkdir()
        Image.fromarray(photo(side, side)).save(tmp_path / name / "a.png")
    words = ["--lr", tmp_path / "LR", "--hr", tmp_path / "HR", "--experts", "edsr-s", "--presets", "--out", tmp_path]
    assert main([str(word) for word in words]) == DONE
    first = (tmp_path / "points.json").read_text()
    (found,) = json.loads(first)
    assert found["name"] == "edsr-s"
    assert found["psnr"] > 0
    assert main([str(word) for word in words]) == DONE
    assert (tmp_path / "points.json").read_text() == first
    assert "**edsr-s**" in (tmp_path / "pareto.md").read_text()
    ElementTree.fromstring((tmp_path / "pareto.svg").read_text())
    capsys.readouterr()
