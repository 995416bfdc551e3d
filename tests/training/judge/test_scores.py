"""An image of one colour is equal to its truth by any method: it is left out of every mean, and that is said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage.metrics import peak_signal_noise_ratio

import train
from cache_tools.__main__ import main as cache_main
from fusion.__main__ import main as fusion_main
from fusion.training.judge.gate import paired_bootstrap
from fusion.training.judge.scores import ScoreTable
from imaging import command
from imaging.metrics import is_of_one_colour, luma
from imaging.refusal import Refusal
from tests.training.parts import expert_document, write_config

BLACK, SIZE = "black", 96


def photo(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (SIZE // 8, SIZE // 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Truths, and the images of two closed models: black is black in all of them."""
    for folder in ("hr", "one", "two"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (SIZE, SIZE)).save(tmp_path / folder / f"{BLACK}.png")
    for seed in range(3):
        photo(seed).save(tmp_path / "hr" / f"{seed}.png")
        for folder, radius in (("one", 1), ("two", 2)):
            photo(seed).filter(ImageFilter.GaussianBlur(radius)).save(tmp_path / folder / f"{seed}.png")
    return tmp_path


def extract(folders: Path, out: str = "cache") -> Path:
    experts = f"images:{folders / 'one'},images:{folders / 'two'}"
    words = ["extract", "--hr", folders / "hr", "--experts", experts, "--out", folders / out, "--device", "cpu"]
    assert command.run(cache_main, [str(word) for word in words]) == 0
    return folders / out


def expected(folders: Path, name: str) -> float:
    """By scikit-image on our luma."""
    scores: list[float] = []
    for seed in range(3):
        pair = [torch.tensor(np.array(Image.open(folders / one / f"{seed}.png"))) for one in ("hr", name)]
        truth, image = ((255 * luma(one.permute(2, 0, 1)[None] / 255))[0, 0, 4:-4, 4:-4].numpy() for one in pair)
        scores.append(float(peak_signal_noise_ratio(truth, image, data_range=255)))
    return sum(scores) / 3


def test_every_command_gives_the_mean_of_the_others(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = extract(folders)
    one, two = expected(folders, "one"), expected(folders, "two")
    assert command.run(fusion_main, ["fit-base", str(cache), "--out", str(folders / "base.safetensors")]) == 0
    capsys.readouterr()
    found: dict[str, Any] = {}
    table = "left out: 1 item of one colour or equal to HR"
    for name, main, words, says in (
        ("info", cache_main, ["info", cache], "over 3 items, 1 of one colour or equal to HR left out"),
        ("analyze", fusion_main, ["analyze", cache], table),
        ("judge", fusion_main, ["judge", folders / "base.safetensors", cache], table),
        ("evaluate", fusion_main, ["evaluate", "--sr", folders / "one", "--hr", folders / "hr"], "1 image equal to"),
    ):
        assert command.run(main, [*map(str, words), "--json"]) == 0
        text = capsys.readouterr().out
        assert "NaN" not in text
        assert "Infinity" not in text
        found[name] = json.loads(text)
        assert command.run(main, list(map(str, words))) == 0
        text = capsys.readouterr().out
        assert says in text
        assert "nan" not in text
    scores = found["info"]["psnr_y"]
    assert (scores["items_scored"], scores["items_left_out"]) == (3, 1)
    assert [scores["one"], scores["two"]] == pytest.approx([one, two], abs=2e-3)
    for table in (found["analyze"]["scores"], found["judge"]["cache"]["scores"]):
        assert [table["one"]["psnr_y"], table["two"]["psnr_y"]] == pytest.approx([one, two], abs=1e-3)
    for (item,) in (found["judge"]["cache"]["left_out"], found["analyze"]["left_out"]):
        assert item.startswith(BLACK)
    assert math.isfinite(found["judge"]["cache"]["fused_against"]["one"]["gain_db"])
    assert found["judge"]["cache"]["fused_against"]["one"]["images"] == 3
    assert found["evaluate"]["mean"]["psnr_y"] == pytest.approx(one, abs=1e-3)
    assert found["evaluate"]["images"][BLACK]["psnr_y"] is None
    assert found["evaluate"]["equal_to_truth"] == [BLACK]


def test_the_curve_of_a_budget_is_that_of_the_others(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_black = str(extract(folders))
    (folders / "hr" / f"{BLACK}.png").unlink()
    without = str(extract(folders, "without"))
    words = [
        "fit-budget",
        without,
        "--seconds",
        "one=2,two=1",
        "--out",
        str(folders / "budget.json"),
        "--json",
        "--check",
    ]
    curves: list[Any] = []
    for cache in (with_black, without):
        capsys.readouterr()
        assert command.run(fusion_main, [*words, cache]) == 0
        curves.append(list(json.loads(capsys.readouterr().out)["curves"].values()))
    assert curves[0] == curves[1]


def test_nothing_but_black_is_refused(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = extract(folders)
    assert command.run(fusion_main, ["fit-base", str(full), "--out", str(folders / "base.safetensors")]) == 0
    for seed in range(3):
        (folders / "hr" / f"{seed}.png").unlink()
    dark = str(extract(folders, "dark"))
    for words, says in (
        (["judge", str(folders / "base.safetensors"), dark], "nothing to score: 1 item of one colour"),
        (["analyze", dark], "there is nothing to fit"),
        (["analyze", dark, "--fit", str(full)], "nothing to score: 1 item of one colour"),
    ):
        capsys.readouterr()
        assert command.run(fusion_main, words) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("refused")
        assert says in error


def test_the_gate_takes_two_truths_for_a_draw_and_counts_no_single_one() -> None:
    options: dict[str, Any] = {"confidence": 0.9, "resamples": 100, "seed": 0}
    items = {name: name for name in "abcdefgh"}
    base = dict.fromkeys(items, 30.0) | {"a": math.inf}
    better = dict.fromkeys(items, 31.0) | {"a": math.inf}
    assert paired_bootstrap(better, base, items, **options).gain_db == pytest.approx(7 / 8)
    single = paired_bootstrap(better, base | {"a": 30.0}, items, **options)
    assert (single.gain_db, single.images) == (pytest.approx(1), 7)
    none = paired_bootstrap({"a": math.inf}, {"a": 30.0}, items, **options)
    assert (none.images, none.passed) == (0, False)
    assert none.reason.startswith("0 held-out images prove nothing")


def test_what_one_contender_has_exactly_counts_for_none() -> None:
    truths = [torch.tensor(np.array(photo(seed))).permute(2, 0, 1)[None] / 255 for seed in range(2)]
    grey_BCHW = torch.full_like(truths[0], 100 / 255)
    table = ScoreTable()
    for item, truth_BCHW in enumerate(truths):
        table.add("exact once", str(item), truth_BCHW if item == 0 else truth_BCHW * 0.9, truth_BCHW)
        table.add("never", str(item), truth_BCHW * 0.8, truth_BCHW)
    for name in ("exact once", "never"):
        table.add(name, "grey", grey_BCHW + 1 / 255, grey_BCHW)  # a level off: finite, and yet of one colour
    assert table.left_out == {"0", "grey"}
    assert table.mean("never")[0] == table.rows["never"]["1"][0]
    assert table.mean("exact once")[0] == table.rows["exact once"]["1"][0]
    assert "left out: 2 items" in table.text("never")
    table.require_scores()


def test_where_nothing_counts_a_training_still_ends(folders: Path) -> None:
    truth_BCHW = torch.tensor(np.array(photo(0))).permute(2, 0, 1)[None] / 255
    table = ScoreTable()
    for name in ("truth", "its copy"):
        table.add(name, "a", truth_BCHW, truth_BCHW)
    assert "nan" not in table.text("truth")
    assert math.isinf(table.mean("its copy")[0])
    assert table.as_dict()["truth"]["psnr_y"] is None
    with pytest.raises(Refusal, match="nothing to score: 1 item"):
        table.require_scores()

    # All of it black: nothing can be judged, and the run ends with a model and with JSON that can be read.
    for seed in range(6):
        Image.new("RGB", (56, 48)).save(folders / "hr" / f"{seed}.png")
    document = expert_document(folders / "hr", folders / "run")
    assert train.main(["--config", str(write_config(folders / "c.yaml", document))]) == command.DONE
    summary = json.loads((folders / "run" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert summary["left_out"]
    assert list((folders / "run").glob("*.safetensors"))


def test_what_is_of_one_colour() -> None:
    image_BCHW = torch.full((1, 3, 24, 24), 0.4)
    image_BCHW[:, 1] = 0.7
    assert is_of_one_colour(image_BCHW)
    image_BCHW[..., :4, :] = 0  # in the border that nothing measures
    assert is_of_one_colour(image_BCHW)
    image_BCHW[0, 2, 12, 12] += 1 / 255
    assert not is_of_one_colour(image_BCHW)
