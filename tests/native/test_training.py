"""The presets in the real loop: train.py knows them, the balance is fed, the exported file is an expert."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from experts.open import open_experts
from fusion.training.loop.loop import train
from fusion.training.settings import NetworkSettings, TrainSettings
from fusion.training.tasks.expert import ExpertTask
from fusion.training.tasks.networks import build_network
from imaging.settings import load_settings
from tests.experts.parts import image
from tests.native.parts import KINDS, SMALL
from tests.training.parts import expert_settings, write_pictures
from train import NETWORKS

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", KINDS)
def test_a_run_ends_in_an_expert(name: str, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "hr", count=4)
    settings = expert_settings(
        folder,
        tmp_path / "run",
        steps=4,
        network={"name": name, "settings": {**SMALL[name], "top_k": 1}},
        stages=[{"until": 1.0, "losses": {"l1": 1.0, "balance": 0.01}}],
    )
    summary = train(settings, lambda rank, world: ExpertTask(settings, NETWORKS, rank, world))
    path = tmp_path / "run" / summary["model"]
    with safe_open(path, framework="pt") as stream:
        header = stream.metadata()
    assert header["architecture"] == KINDS[name].__name__
    assert json.loads(header["hyperparameters"])["top_k"] == 1
    (expert,) = open_experts([str(path)])
    assert expert.identity.architecture == KINDS[name].__name__
    assert expert.network.hyperparameters["top_k"] == 1  # pyright: ignore[reportAttributeAccessIssue]
    assert bool(torch.isfinite(expert.run(image(9, 11)).sr_BCHW).all())


@pytest.mark.parametrize("name", KINDS)
def test_the_shipped_config_builds(name: str) -> None:
    settings = load_settings(TrainSettings, CONFIGS / f"expert_{name}.yaml")
    with torch.device("meta"):
        network = build_network(NETWORKS, settings.network, seed=0)
    assert type(network).__name__ == NETWORKS[name].architecture == KINDS[name].__name__
    assert any(stage.losses.get("balance", 0) > 0 for stage in settings.stages)
    assert settings.data.patch % network.padding.multiple == 0, "padding would be trained on"  # pyright: ignore[reportAttributeAccessIssue]


def test_every_ablation_is_a_word_on_the_command_line() -> None:
    network = build_network(NETWORKS, NetworkSettings(name="freqnet", settings={**SMALL["freqnet"], "high": False}), 0)
    assert network.hyperparameters["high"] is False  # pyright: ignore[reportAttributeAccessIssue]
