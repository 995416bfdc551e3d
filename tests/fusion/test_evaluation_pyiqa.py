"""The NTIRE perceptual score with pyiqa's real networks; only their weights, which cannot ship here, are random.

Runs where pyiqa is installed (`pip install 'championship-sr[iqa]'`, in an environment of its own).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from fusion.__main__ import main
from fusion.evaluation import ntire
from fusion.evaluation.folders import evaluate
from imaging.refusal import Refusal
from tests.training.test_evaluation import toolkit_score

pyiqa = pytest.importorskip("pyiqa")
NAMES = ("lpips", "dists", "clipiqa", "maniqa", "musiq", "niqe")


@pytest.fixture
def random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every door through which pyiqa fetches weights leads to random ones of the same shapes; the models made."""
    import timm
    from pyiqa.archs.clip_model import CLIP, build_model
    from torchvision import models

    torch.manual_seed(0)
    trunks = {"alexnet": models.alexnet, "vgg16": models.vgg16}

    def trunk(url: str, *_: object, **__: object) -> dict[str, torch.Tensor]:
        return trunks[Path(url).name.split("-")[0]]().state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", trunk)
    for arch in ("lpips", "dists", "maniqa", "musiq"):
        monkeypatch.setattr(f"pyiqa.archs.{arch}_arch.load_pretrained_network", lambda *_, **__: print("loaded"))
    real = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **more: real(name, **more))
    resnet50 = CLIP(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)
    monkeypatch.setattr("pyiqa.archs.clipiqa_arch.load", lambda *_: build_model(resnet50.state_dict()).float())
    rng = np.random.default_rng(0)
    root = rng.normal(size=(36, 36))
    savemat(tmp_path / "niqe.mat", {"mu_prisparam": rng.normal(size=(1, 36)), "cov_prisparam": root @ root.T})
    monkeypatch.setattr("pyiqa.archs.niqe_arch.load_file_from_url", lambda *_: str(tmp_path / "niqe.mat"))
    made: dict[str, Any] = {}
    create = pyiqa.create_metric

    def create_once(name: str, device: object = None) -> Any:
        """One crop in place of twenty: a vision transformer on two cores."""
        if name not in made:
            made[name] = create(name, device=device)
            if name == "maniqa":
                made[name].net.test_sample = 1
        return made[name]

    monkeypatch.setattr(pyiqa, "create_metric", create_once)
    return made


def pictures(folder: Path, seed: int, side: int = 224) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(2):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def test_the_real_networks_give_the_toolkits_score(
    random_weights: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against pyiqa called as the toolkit calls it: six numbers from two images, their averages, the formula."""
    sr, hr = pictures(tmp_path / "sr", 1), pictures(tmp_path / "hr", 2)
    assert main(["evaluate", "--sr", str(sr), "--hr", str(hr), "--ntire", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["mean"]
    averages = dict.fromkeys((name.upper() for name in NAMES), 0.0)
    for path in sorted(sr.iterdir()):
        result, truth = (
            torch.tensor(np.array(Image.open(one))).permute(2, 0, 1)[None] / 255 for one in (path, hr / path.name)
        )
        for name, metric in random_weights.items():
            score = metric(result, truth) if name in ("lpips", "dists") else metric(result)
            averages[name.upper()] += float(score) / 2
    for name in NAMES:
        assert found[f"iqa_{name}"] == pytest.approx(averages[name.upper()], rel=1e-4), name
    assert found["ntire"] == pytest.approx(toolkit_score(averages), abs=1e-4)


def test_weights_that_cannot_be_had_are_refused_by_name(
    random_weights: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(url: str, *_: object) -> str:
        raise OSError(f"cannot reach {url}")

    monkeypatch.setattr("pyiqa.archs.niqe_arch.load_file_from_url", offline)
    folder = pictures(tmp_path / "sr", 1)
    with pytest.raises(Refusal, match=r"niqe.*cannot reach .*niqe") as caught:
        evaluate(folder, folder, space="y", border=4, lpips=False, ntire=True)
    assert "create_metric" in caught.value.cure


def test_an_image_too_small_for_a_measure_is_named_with_it(random_weights: dict[str, Any], tmp_path: Path) -> None:
    folder = pictures(tmp_path / "sr", 1, side=60)
    with pytest.raises(Refusal, match="no image could be scored; 0: niqe"):
        evaluate(folder, folder, space="y", border=4, lpips=False, ntire=True)


def test_the_names_are_pyiqas() -> None:
    assert set(NAMES) == set(ntire.SHARES) <= set(pyiqa.list_models())
    assert "pyiqa" in sys.modules
