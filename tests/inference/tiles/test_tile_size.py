"""What becomes of a requested tile is said and recorded; the forecast times what will run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

import infer
from championship_sr import upscale
from experts.open import open_experts
from fusion.inference import forecast
from fusion.inference.ensemble import Ensemble
from fusion.inference.jobs import ImageJob, Sized
from fusion.inference.memory import effective_tile
from fusion.inference.options import OutputSize
from fusion.inference.report.provenance import read_manifest, read_record
from fusion.inference.upscale import Grid
from imaging.command import DONE, run
from imaging.tiling import effective_feathered_tile, effective_kept_tile, plan_kept_spans
from tests.inference.parts import enlarge, ensemble_of, photo, weights_file

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("margin", "multiple"), [(0, 1), (4, 1), (32, 8), (20, 16)])
@pytest.mark.parametrize("tile", [0, 1, 16, 100, 333])
def test_the_effective_tile_is_what_the_grid_makes_of_it(tile: int, margin: int, multiple: int) -> None:
    effective = effective_feathered_tile(tile, margin, multiple)
    assert Grid.of(700, 900, tile, margin, multiple) == Grid.of(700, 900, effective, margin, multiple)
    largest = max(span.stop - span.start for span in Grid.of(2000, 2000, tile, margin, multiple).rows)
    # The last tile begins where windows do and may reach a little further.
    assert (effective <= largest < effective + multiple) if tile else largest == 2000
    assert effective_feathered_tile(effective, margin, multiple) == effective
    kept = effective_kept_tile(max(tile, 1), margin, multiple)
    assert plan_kept_spans(2000, max(tile, 1), margin, multiple) == plan_kept_spans(2000, kept, margin, multiple)
    assert max(span.stop - span.start for span in plan_kept_spans(2000, kept, margin, multiple)) == kept


@pytest.mark.parametrize("requested", [16, 200])
def test_a_tile_that_grows_is_said_in_one_line_and_recorded(
    tmp_path: Path, requested: int, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    expert = weights_file(tmp_path)
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(photo(100, 140)).save(tmp_path / "in" / f"{name}.png")
    words = ["--model", str(expert), "-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--json"]
    assert run(infer.command_line, [*words, "--device", "cpu", "-t", str(requested)]) == DONE
    document = json.loads(capsys.readouterr().out)
    least = effective_feathered_tile(1, document["margin"], document["multiple"])
    effective = max(requested, least)
    assert document["tile"] == effective
    lines = [record.message for record in caplog.records if "instead of" in record.message]
    assert len(lines) == (requested < least)
    if lines:
        assert f"tiles of {effective} LR pixels instead of {requested}" in lines[0]
        assert f"{document['margin']} pixels of surroundings" in lines[0]
    record = read_record(tmp_path / "out" / "a.png")
    assert record is not None and record["tile"] == effective
    assert record["tiles"] == len(Grid.of(100, 140, effective, document["margin"], document["multiple"]))
    assert read_manifest(tmp_path / "out" / "a.png")["options"]["tile"] == effective


def test_python_and_the_experts_commands_say_it_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expert = weights_file(tmp_path)
    upscale(Image.fromarray(photo(20, 20)), model=str(expert), device="cpu", tile=16)
    assert sum("instead of 16" in record.message for record in caplog.records) == 1
    caplog.clear()
    open_experts([str(expert)], tile=16)
    assert "tiles of 33 LR pixels instead of 16" in caplog.text
    caplog.clear()
    open_experts([str(expert)], tile=64)
    assert effective_tile(0, ensemble_of()) == 0
    assert "instead of" not in caplog.text


def sized(tmp_path: Path, *sides: tuple[int, int]) -> list[Sized]:
    return [Sized(ImageJob(tmp_path / "x.png", tmp_path / "y.png", "x"), *one) for one in sides]


def test_the_forecast_times_tiles_of_the_size_that_will_run_and_gives_a_range(tmp_path: Path) -> None:
    seen: list[int] = []

    def watched(lr_BCHW: torch.Tensor) -> torch.Tensor:
        seen.append(lr_BCHW.shape[-1])
        return enlarge(lr_BCHW)

    images = sized(tmp_path, (400, 300), (50, 60))
    document = forecast.forecast(images, ensemble_of(a=watched), 100, 1, None, OutputSize())
    assert seen.count(100) >= 2
    assert 0 < document["seconds_low"] <= document["seconds"] <= document["seconds_high"]
    assert document["seconds"] == pytest.approx(sum(one["seconds"] for one in document["images"]), abs=1e-3)
    assert " to " in forecast.as_text(document)
    seen.clear()
    forecast.forecast(sized(tmp_path, (50, 72)), ensemble_of(a=watched), 100, 1, None, OutputSize())
    assert max(seen) == 64, "no more than the probe that memory is measured by: the image is smaller than the tile"
    assert seen.count(60) >= 2


def test_a_run_that_cannot_be_timed_is_not_said_to_take_no_time(tmp_path: Path) -> None:
    plain = ensemble_of()
    folder = Ensemble(plain.experts, plain.fuse, 0, 1, plain.identity, plain.device, can_probe=False)
    document = forecast.forecast(sized(tmp_path, (400, 300)), folder, 100, 1, None, OutputSize())
    assert document["seconds"] is None and "time unknown" in forecast.as_text(document)
