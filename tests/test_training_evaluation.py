"""Headroom, oracles, scores of folders and the ablation, against independent computations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fusion.__main__ import main
from fusion.evaluation.ablate import VARIANTS, merged
from fusion.evaluation.headroom import BACK_PROJECTED, BY_BAND, LEAST_SQUARES, ORACLES, PER_BAND, analyze
from fusion.evaluation.oracle import best_mix_per_window, best_per_pixel, best_per_window, convex_weights
from imaging.refusal import Refusal
from tests.training_parts import SMALL_FUSION, fusion_document, make_striped_cache, write_config, write_pictures


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_striped_cache(tmp_path_factory.mktemp("striped"), 12)


def stack(seed=0, experts=3, size=20):
    generator = torch.Generator().manual_seed(seed)
    hr = torch.rand(3, size, size + 4, generator=generator)
    return hr + 0.1 * torch.randn(experts, *hr.shape, generator=generator), hr


def test_oracles_against_plain_loops():
    sr, hr = stack()
    pixel, window = best_per_pixel(sr, hr), best_per_window(sr, hr, 8)
    error = (sr - hr).square().sum(1)
    for y in range(hr.shape[1]):
        for x in range(hr.shape[2]):
            assert torch.equal(pixel[:, y, x], sr[error[:, y, x].argmin(), :, y, x])
            rows, columns = slice(y // 8 * 8, y // 8 * 8 + 8), slice(x // 8 * 8, x // 8 * 8 + 8)
            best = error[:, rows, columns].flatten(1).sum(1).argmin()
            assert torch.equal(window[:, y, x], sr[best, :, y, x])


def test_convex_weights_against_scipy():
    rng = np.random.default_rng(1)
    for _ in range(5):
        errors = rng.normal(size=(4, 30)) + rng.normal(size=30) * 2
        gram = errors @ errors.T
        simplex = {"type": "eq", "fun": lambda w: w.sum() - 1}
        reference = minimize(lambda w, g=gram: w @ g @ w, np.full(4, 0.25), bounds=[(0, 1)] * 4, constraints=simplex)
        ours = convex_weights(torch.tensor(gram)[None])[0].numpy()
        assert ours.min() >= 0 and ours.sum() == pytest.approx(1)
        assert ours @ gram @ ours <= reference.fun * (1 + 1e-4)


def test_a_mix_per_window_is_no_worse_than_any_expert():
    sr, hr = stack(2)
    mixed = (best_mix_per_window(sr, hr, 8) - hr).square().sum()
    assert float(mixed) <= float((best_per_window(sr, hr, 8) - hr).square().sum()) + 1e-6


def test_analyze_measures_what_numpy_measures(cache):
    found = analyze(cache)
    assert set(found.table.rows) == {"one", "two", "mean", LEAST_SQUARES, PER_BAND, BACK_PROJECTED, *ORACLES}
    folder = cache.parent
    truths = sorted((folder / "hr").iterdir())
    expected = np.mean([psnr_y(np.asarray(Image.open(folder / "one" / path.name)), path) for path in truths])
    assert found.table.mean("one")[0] == pytest.approx(expected, abs=1e-4)
    errors = [
        np.concatenate(
            [
                (np.asarray(Image.open(folder / name / path.name)).astype(float) - np.asarray(Image.open(path)))[
                    16:-16, 16:-16
                ].ravel()
                for path in truths
            ]
        )
        for name in ("one", "two")
    ]
    together = errors[0] @ errors[1] / np.sqrt((errors[0] @ errors[0]) * (errors[1] @ errors[1]))
    assert found.correlation[0][1] == pytest.approx(together, abs=1e-3)
    difference = errors[0] - errors[1]
    weight = -(errors[1] @ difference) / (difference @ difference)  # minimises |w a + (1 - w) b|
    assert found.weights[LEAST_SQUARES][0] == pytest.approx(weight, abs=1e-3)
    assert len(found.weights[PER_BAND]) == 2 * len(BY_BAND.split("|"))
    assert "Fusion" in found.sentence


def psnr_y(image, truth):
    ours, theirs = (rgb2ycbcr(one)[4:-4, 4:-4, 0] for one in (image, np.asarray(Image.open(truth))))
    return peak_signal_noise_ratio(theirs, ours, data_range=255)


def test_evaluate_equals_scikit_image_on_real_photographs(shared_data, tmp_path, capsys):
    sr, hr = shared_data / "real_experts/Set5/eagle", shared_data / "bench/Set5/HR"
    assert main(["evaluate", "--sr", str(sr), "--hr", str(hr), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["images"]) == 5
    for name, scores in found["images"].items():
        ours = np.asarray(Image.open(next(sr.glob(f"{name}x4.*"))).convert("RGB"))
        truth = next(Path(hr).glob(f"{name}.*"))
        y_ours, y_truth = (
            rgb2ycbcr(one)[4:-4, 4:-4, 0] for one in (ours, np.asarray(Image.open(truth).convert("RGB")))
        )
        structure = structural_similarity(
            y_truth, y_ours, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert scores["psnr_y"] == pytest.approx(peak_signal_noise_ratio(y_truth, y_ours, data_range=255), abs=1e-4)
        assert scores["ssim_y"] == pytest.approx(structure, abs=1e-4)


def test_what_does_not_pair_is_listed_and_makes_the_exit_code_1(tmp_path, capsys):
    hr = write_pictures(tmp_path / "hr", 3)
    sr = write_pictures(tmp_path / "sr", 3)
    (sr / "img2.png").rename(sr / "other.png")
    (sr / "img1.png").rename(sr / "img1x4.png")
    assert main(["evaluate", "--sr", str(sr), "--hr", str(hr), "--space", "rgb"]) == 1
    printed = capsys.readouterr()
    assert "img2: no result" in printed.err and "other: no truth" in printed.err
    assert "img1" in printed.out and "inf" in printed.out


def test_the_ntire_score_without_pyiqa_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyiqa", None)
    folder = write_pictures(tmp_path / "hr", 1)
    with pytest.raises(Refusal, match="needs pyiqa"):
        main(["evaluate", "--sr", str(folder), "--hr", str(folder), "--ntire"])


def test_ablate_trains_the_variants_and_reads_finished_ones_back(cache, tmp_path, capsys):
    document = fusion_document(cache, tmp_path / "run", steps=2, validation={"every": 2}, checkpoint={"every": 2})
    config = write_config(tmp_path / "config.yaml", document)
    words = ["ablate", "--config", str(config), "--cache", str(cache), "--only", "full,no refine"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "base only" in first and "no refine" in first
    rows = json.loads((tmp_path / "run/ablation.json").read_text())
    assert set(rows) == {"full", "no refine"} and rows["full"]["base_psnr_y"] == rows["no refine"]["base_psnr_y"]
    assert main(words) == 0 and capsys.readouterr().out.endswith(first.splitlines()[-1] + "\n")
    with pytest.raises(Refusal, match="did you mean 'no refine'"):
        main([*words[:-1], "no refin"])


def test_every_variant_changes_what_it_names():
    for name, change in VARIANTS.items():
        settings = merged(SMALL_FUSION, change)
        for key, value in change.items():
            assert settings[key]["enabled"] is False if isinstance(value, dict) else settings[key] == value, name
    assert merged(SMALL_FUSION, VARIANTS["no refine"])["refine"] == {"width": 16, "enabled": False}
