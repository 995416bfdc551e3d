"""`python -m fusion`: doctor and bench print what they promise, and the tenfold saving is counted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from benchmarks.fusion import measure
from benchmarks.fusion.original_layout import original_of_size
from benchmarks.fusion.step_cost import as_markdown
from fusion.__main__ import COMMANDS, main
from fusion.evaluation.doctor import examine
from fusion.network.save import save_model
from imaging.command import run
from tests.fusion.parts import small_model, stir

if TYPE_CHECKING:
    from pathlib import Path


def test_doctor_on_the_default_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["doctor", "--model", "default", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == sum(report["parameters_per_phase"].values())
    assert 1_000_000 <= report["parameters"] <= 1_200_000
    assert all(check["passed"] for check in report["checks"])


def test_doctor_on_a_file_and_on_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(stir(small_model()), tmp_path / "model.safetensors")
    assert run(main, ["doctor", "--model", str(tmp_path)]) == 1  # moved, yet 'untrained': not the base any more
    assert "FAILED" in capsys.readouterr().out
    assert run(main, ["doctor", "--model", str(tmp_path / "none.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_doctor_finds_what_is_broken() -> None:
    model = small_model()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    failed = [check["check"] for check in examine(model.eval(), "broken")["checks"] if not check["passed"]]
    assert "every weight is finite" in failed


def test_unknown_commands_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["doktor"]) == 2
    assert "did you mean 'doctor'?" in capsys.readouterr().err
    assert run(main, []) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in COMMANDS)


def test_multiply_adds_are_counted_right_for_grouped_convolutions_too() -> None:
    x = torch.randn(2, 8, 10, 10, requires_grad=True)
    for groups in (1, 2, 8):
        layer = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        forward = 2 * 100 * 8 * (8 // groups) * 9
        assert measure.multiply_adds(lambda layer=layer: layer(x).sum().backward()) == 3 * forward
        assert measure.multiply_adds(lambda layer=layer: layer(x.detach()).sum().backward()) == 2 * forward


def test_the_original_layout_is_of_our_size() -> None:
    kinds: tuple[measure.Kind, ...] = ("every phase", "original")
    ours, original = (sum(p.numel() for p in measure.build_network(each).parameters()) for each in kinds)
    assert original == pytest.approx(ours, rel=0.01)


def test_the_original_layout_trains() -> None:
    original = original_of_size([4, 6], 900_000)
    lr, sr = torch.rand(1, 3, 8, 8), torch.rand(1, 2, 3, 32, 32)
    image = original(lr, sr, [torch.randn(1, 4, 8, 8), torch.randn(1, 6, 8, 8)])
    image.square().mean().backward()
    assert image.shape == (1, 3, 32, 32)
    # Its enhanced bands feed the routing, which feeds the image: nothing is left out of the count.
    assert all(p.grad is not None for p in original.parameters())


@pytest.mark.slow
def test_the_bench_finds_a_step_ten_times_cheaper_than_the_original_layout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cost.md"
    assert run(main, ["bench", "--batch", "1", "--lr-size", "16", "--repeats", "1", "--json", "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert all(report["ratios"][kind]["multiply_adds"] >= 10 for kind in ("default", "every phase"))
    assert "The bottleneck is" in out.read_text()
    assert as_markdown(report, "x").count("| cross_band.attention |") == 1
