"""Headroom, oracles, scores of folders and the ablation, against independent computations."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.optimize import minimize
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from cache_tools.read.reader import CacheReader
from fusion.__main__ import main
from fusion.evaluation.ablate import CONFIGURED, merged, variants_of
from fusion.evaluation.headroom import BACK_PROJECTED, BY_BAND, LEAST_SQUARES, ORACLES, PER_BAND, analyze
from fusion.evaluation.oracle import best_mix_per_window, best_per_pixel, best_per_window, convex_weights
from fusion.network import ExpertSlot, FusionSettings, FusionSR
from fusion.network.base.fit import fit_base
from fusion.network.save import save_model
from imaging.refusal import Refusal
from tests.training.parts import (
    SMALL_FUSION,
    fusion_document,
    make_cache,
    make_striped_cache,
    write_config,
    write_pictures,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_striped_cache(tmp_path_factory.mktemp("striped"), 12)


def stack(seed=0, experts=3, size=20):
    generator = torch.Generator().manual_seed(seed)
    hr = torch.rand(3, size, size + 4, generator=generator)
    return hr + 0.1 * torch.randn(experts, *hr.shape, generator=generator), hr


def test_flipped_items_of_a_cache_are_not_measured_again(tmp_path):
    """Eight turns of an image are one image: table, weights and sentence are those of the cache without them."""
    upright, turned = make_cache(tmp_path / "upright", 3), make_cache(tmp_path / "turned", 3, "--dihedral")
    assert len(CacheReader(turned)) == 8 * len(CacheReader(upright)) == 24
    found, expected = analyze(turned), analyze(upright)
    assert found.table.as_dict() == expected.table.as_dict()
    assert replace(found, table=expected.table, fitted_on=expected.fitted_on) == expected


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


def toolkit_score(averages):
    """The formula of the toolkit's README, on averages."""
    perceptual = (1 - averages["LPIPS"]) + (1 - averages["DISTS"]) + averages["CLIPIQA"] + averages["MANIQA"]
    return perceptual + averages["MUSIQ"] / 100 + max(0, (10 - averages["NIQE"]) / 10)


def test_the_ntire_score_is_made_of_averages_of_whole_colour_images(tmp_path, monkeypatch, capsys):
    """Against the toolkit's formula with stand-ins for pyiqa's networks; NIQE above 10 for one image is not cut."""
    asked = []

    def create_metric(name, device=None):
        def metric(*images):
            asked.append((name, len(images), tuple(images[0].shape), float(images[0].max()) <= 1))
            value = float(images[0].mean())
            if name == "niqe":
                return torch.tensor([40 * value - 10])
            return torch.tensor([100 * value if name == "musiq" else value])

        return metric

    module = type(sys)("pyiqa")
    monkeypatch.setattr(module, "create_metric", create_metric, raising=False)
    monkeypatch.setitem(sys.modules, "pyiqa", module)
    hr = write_pictures(tmp_path / "hr", 2)
    levels = []
    for number, path in enumerate(sorted(hr.iterdir())):
        Image.fromarray(np.full((48, 56, 3), 90 + 60 * number, np.uint8)).save(path)
        levels.append((90 + 60 * number) / 255)
    assert main(["evaluate", "--sr", str(hr), "--hr", str(hr), "--ntire", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    averages = dict.fromkeys(("LPIPS", "DISTS", "CLIPIQA", "MANIQA"), np.mean(levels))
    averages |= {"MUSIQ": 100 * np.mean(levels), "NIQE": np.mean([40 * level - 10 for level in levels])}
    assert 40 * levels[1] - 10 > 10 > averages["NIQE"], "the case must tell averaging from cutting each image"
    assert found["mean"]["psnr_y"] is None, "identical images: infinity, which JSON does not have"
    assert found["mean"]["ntire"] == pytest.approx(toolkit_score(averages), abs=1e-5)
    assert set(asked) == {
        (name, 2 if name in ("lpips", "dists") else 1, (1, 3, 48, 56), True)
        for name in ("lpips", "dists", "clipiqa", "maniqa", "musiq", "niqe")
    }
    assert main(["evaluate", "--sr", str(hr), "--hr", str(hr), "--ntire"]) == 0
    *_, head, one, two, mean = capsys.readouterr().out.splitlines()
    assert head.split()[-1] == "ntire" and len(mean.split()) == len(one.split()) + 1 == len(two.split()) + 1


def test_the_ntire_score_without_pyiqa_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    folder = write_pictures(tmp_path / "hr", 1)
    with pytest.raises(Refusal, match="needs pyiqa"):
        main(["evaluate", "--sr", str(folder), "--hr", str(folder), "--ntire"])


def test_ablate_trains_the_variants_and_reads_finished_ones_back(cache, tmp_path, capsys):
    document = fusion_document(cache, tmp_path / "run", steps=2, validation={"every": 2}, checkpoint={"every": 2})
    config = write_config(tmp_path / "config.yaml", document)
    words = ["ablate", "--config", str(config), "--cache", str(cache), "--seeds", "3,4"]
    words += ["--only", "as configured,no refine"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "base only" in first and "no refine" in first
    rows = json.loads((tmp_path / "run/ablation.json").read_text())
    assert set(rows) == {CONFIGURED, "no refine"}
    # The same images are held out whatever the seed, so every run has the same base.
    assert len({run["base_psnr_y"] for row in rows.values() for run in row["runs"]}) == 1
    assert len({path.read_text() for path in (tmp_path / "run").rglob("base.json")}) == 1
    gains = [run["gain_db"] for run in rows[CONFIGURED]["runs"]]
    assert gains[0] != gains[1]
    assert rows[CONFIGURED]["gain_db"] == pytest.approx(np.mean(gains))
    assert rows[CONFIGURED]["spread_db"] == pytest.approx(np.std(gains, ddof=1))
    assert main(words) == 0 and capsys.readouterr().out.endswith(first.splitlines()[-1] + "\n")
    with pytest.raises(Refusal, match="did you mean 'no refine'"):
        main([*words[:-1], "no refin"])
    with pytest.raises(Refusal, match="twice"):
        main([*words, "--seeds", "1,1"])


def test_every_variant_turns_one_thing():
    variants = variants_of({**SMALL_FUSION, "edges": {"enabled": False}})
    assert variants["with edges"] == {"edges": {"enabled": True}}
    assert variants["no refine"] == {"refine": {"enabled": False}}
    assert merged(SMALL_FUSION, variants["no refine"])["refine"] == {"width": 16, "enabled": False}
    assert "no features" not in variants_of({**SMALL_FUSION, "features": "none"})


def test_judge_compares_with_every_rival(cache, tmp_path, capsys):
    model = FusionSR(FusionSettings(experts=(ExpertSlot(name="one", channels=0), ExpertSlot(name="two", channels=0))))
    reader = CacheReader(cache, features=False)
    items = ((b.sr_BECHW[0], b.hr_BCHW[0], b.lr_BCHW[0]) for b in reader)
    model.set_base(fit_base(items, ("one", "two")))
    save_model(model, tmp_path / "model.safetensors")
    assert main(["judge", str(tmp_path / "model.safetensors"), str(cache), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[cache.name]
    headroom = analyze(cache).table.as_dict()
    for row in ("one", "two", "mean", LEAST_SQUARES):
        assert found["scores"][row] == headroom[row]
    assert found["scores"]["fused"] == found["scores"]["base"]  # untrained
    assert found["fused_against"]["base"]["gain_db"] == 0
    gain = headroom[LEAST_SQUARES]["psnr_y"] - headroom["mean"]["psnr_y"]
    assert found["fused_against"]["mean"]["gain_db"] >= gain - 1e-3
    assert main(["judge", str(tmp_path / "model.safetensors"), str(cache)]) == 0
    assert "fused against mean: " in capsys.readouterr().out
