"""The tables of what native experts cost, what folding saves and how good they are: counted and scored by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from benchmarks.native import fold
from benchmarks.native.cost import CASES, KINDS, Case, as_json, as_markdown, bench, measure
from benchmarks.native.quality import VARIANTS, measure_quality, quality_markdown, record_of
from experts.__main__ import main
from experts.native.base import NativeNetwork
from experts.native.blocks.multi_branch import MultiBranchConv
from experts.open import open_experts
from imaging.degrade import DegradeSettings, degrade
from imaging.files import read_rgb
from imaging.refusal import Refusal
from tests.training.parts import write_pictures, write_tiny_expert


def test_every_case_can_be_built_and_no_two_are_the_same() -> None:
    for case in CASES:
        with torch.device("meta"):
            network = KINDS[case.network](**case.settings)
        assert case.deployed <= isinstance(network, NativeNetwork)
    assert len({(case.network, case.form) for case in CASES}) == len(CASES)


def test_what_is_counted() -> None:
    case = Case("window attention", "one layer", {"channels": 16}, channels=16)
    result = measure(case, 64, threads=torch.get_num_threads(), repeats=1)
    # Four 16x16 projections per pixel, and twice 64 pixels of a window times 16 channels.
    assert result.giga_multiply_adds == pytest.approx(64 * 64 * (4 * 16 * 16 + 2 * 64 * 16) / 1e9, abs=0.0006)
    assert result.parameters == 4 * (16 * 16 + 16) + 15 * 15
    assert result.seconds > 0
    table = as_markdown([result], threads=1, repeats=1)
    assert "| window attention | one layer | 64 | 1,313 |" in table
    assert as_json([result])[0]["parameters"] == 1313


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(Refusal, match="nothing"):
        bench([64], threads=1, repeats=1, only="nothing")
    with pytest.raises(Refusal, match="nothing"):
        fold.bench_fold(64, threads=1, pairs=1, only="nothing")


def test_folding_is_counted_by_hand_and_both_forms_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    real = MultiBranchConv.forward

    def seen(self, x_BCHW):
        order.append(self.branches is None)
        return real(self, x_BCHW)

    monkeypatch.setattr(MultiBranchConv, "forward", seen)
    result = fold.measure_fold("large kernel 9x9, 16 of 48", 64, torch.get_num_threads(), 4)
    # 9x9 + 3x3 + twice 9 taps, over 16 channels, against 9x9 alone.
    pixels = 64 * 64 * 16 * 16 / 1e9
    assert result.giga_multiply_adds == pytest.approx(pixels * (81 + 9 + 18), abs=0.0006)
    assert result.giga_multiply_adds_folded == pytest.approx(pixels * 81, abs=0.0006)
    assert 0 < result.largest_difference < 1e-5
    pairs = [order[index : index + 2] for index in range(2, 10, 2)]
    assert pairs == [[False, True], [True, False], [False, True], [True, False]]
    assert result.ratio_low <= result.ratio <= result.ratio_high and 0 <= result.faster <= result.pairs == 4
    assert "| large kernel 9x9, 16 of 48 |" in fold.fold_markdown([result], threads=1)


def test_every_fold_case_has_something_to_fold() -> None:
    for name, case in fold.FOLD_CASES.items():
        with torch.device("meta"):
            assert fold.fold_all(case.build()) > 0, name


def test_variants_do_what_their_names_say(tmp_path: Path) -> None:
    hr_BCHW = read_rgb(write_pictures(tmp_path, count=1, size=(96, 96)) / "img0.png")
    made = {name: degrade(hr_BCHW, record_of(variant, (96, 96), 0)) for name, variant in VARIANTS.items()}
    clean = made.pop("clean")
    assert all(lr.shape == (1, 3, 24, 24) and not torch.equal(lr, clean) for lr in made.values())

    def roughness(image: torch.Tensor) -> float:
        return float((image[..., 1:] - image[..., :-1]).abs().mean())

    assert roughness(made["blur 2"]) < roughness(made["blur 1"]) < roughness(clean) < roughness(made["noise 15"])
    assert float((made["noise 15"] - clean).std()) * 255 == pytest.approx(15, rel=0.1)
    off = [float((made[name] - clean).abs().mean()) for name in ("JPEG 80", "JPEG 40")]
    assert off[0] < off[1]
    kinds = [step.kind for step in record_of(VARIANTS["all three"], (96, 96), 0).steps]
    assert kinds == ["blur", "resize", "gaussian", "jpeg"]


def test_quality_is_the_mean_over_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.native.quality.find_trunk", refuse)
    folder = write_pictures(tmp_path / "hr", count=2, size=(48, 60))
    experts = open_experts([str(write_tiny_expert(tmp_path / "ann.safetensors", seed=0))])
    results = measure_quality(experts, {"two": folder}, mixed=DegradeSettings(kind="mixed", clean=0.0))
    assert {(one.variant, one.contender) for one in results} == {
        (variant, name) for variant in [*VARIANTS, "mixed"] for name in ("bicubic", "ann")
    }
    expected = []
    for index in range(2):
        hr_BCHW = read_rgb(folder / f"img{index}.png")
        lr_BCHW = degrade(hr_BCHW, record_of(VARIANTS["noise 5"], (48, 60), index))
        sr = experts[0].run(lr_BCHW).sr_BCHW.clamp(0, 1)
        expected.append(peak_signal_noise_ratio(grey(hr_BCHW), grey(sr), data_range=255))
    got = next(one for one in results if (one.variant, one.contender) == ("noise 5", "ann"))
    assert got.psnr_y == pytest.approx(np.mean(expected), abs=1e-6) and got.images == 2 and got.lpips is None
    table = quality_markdown(results)
    assert (
        "LPIPS is left out" in table
        and "| two | 2 | noise 5 | " in table
        and f"{got.psnr_y:.2f} / {got.ssim_y:.4f}" in table
    )
    with pytest.raises(Refusal, match="no images are named"):
        measure_quality(experts, {})


def refuse(*_: object) -> Path:
    raise Refusal("no trunk", where="test", cure="none")


def grey(image_BCHW: torch.Tensor) -> np.ndarray:
    """8-bit RGB -> luma on the 0..255 scale without the outer 4 pixels, by NumPy alone."""
    rgb = (image_BCHW[0, :, 4:-4, 4:-4] * 255).round().permute(1, 2, 0).double().numpy()
    return 16 + rgb @ np.array([65.481, 128.553, 24.966]) / 255


def test_one_command_writes_the_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_pictures(tmp_path / "hr", count=1)
    expert = str(write_tiny_expert(tmp_path / "ann.safetensors", seed=0))
    record = tmp_path / "native.md"
    words = [
        "bench-native",
        "--what",
        "quality",
        "--experts",
        expert,
        "--hr",
        f"one={folder}",
        "--record",
        str(record),
    ]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["quality"]) == 2 * len(VARIANTS) and "cost" not in document
    text = record.read_text()
    assert text.startswith("# Native experts: measured") and "--what quality" in text and "## Quality" in text
    with pytest.raises(Refusal, match="is not NAME=FOLDER"):
        main(["bench-native", "--what", "quality", "--experts", expert, "--hr", str(folder)])
