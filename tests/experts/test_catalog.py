"""The catalog's figures, checked against the real networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experts.catalog import built_in_catalog, load_catalog
from experts.spec import ExpertSpec
from experts.tap import find_layer
from imaging.refusal import Refusal
from tests.experts.parts import CLASSES

REFERENCE = [spec for spec in built_in_catalog().experts if spec.architecture in CLASSES and spec.parameters]


def test_the_four_reference_experts_are_there() -> None:
    assert {"hat-l", "drct-l", "grl-b", "edsr-l"} <= set(built_in_catalog().names)


@pytest.mark.parametrize("spec", REFERENCE, ids=lambda spec: spec.name)
def test_hyperparameters_give_the_published_size_and_the_tap_its_channels(spec: ExpertSpec) -> None:
    assert spec.architecture is not None
    assert spec.tap is not None
    network = CLASSES[spec.architecture](**spec.hyperparameters)
    assert sum(p.numel() for p in network.parameters()) == spec.parameters
    layer = find_layer(network, spec.tap.module)
    assert isinstance(layer, torch.nn.Conv2d)
    assert layer.out_channels == spec.tap.channels


def test_published_sizes() -> None:
    catalog = built_in_catalog()
    sizes = {name: catalog.get(name).parameters for name in ("hat-l", "drct-l", "grl-b", "edsr-l")}
    assert sizes == {"hat-l": 40_846_575, "drct-l": 27_580_719, "grl-b": 20_201_299, "edsr-l": 43_089_923}


def test_a_mistyped_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(Refusal, match="did you mean 'hat-l'"):
        built_in_catalog().get("hat_l")


def test_a_few_lines_of_yaml_add_an_expert(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("experts:\n  - name: mine\n    weights: [{file: mine.safetensors}]\n")
    catalog = load_catalog(tmp_path / "mine.yaml")
    assert catalog.get("mine").weights[0].file == "mine.safetensors"
    assert "hat-l" in catalog.names


def test_a_taken_name_and_a_mistyped_key_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("experts:\n  - name: hat-l\n    weights: [{file: a.pth}]\n")
    with pytest.raises(Refusal, match="'hat-l' is taken"):
        load_catalog(path)
    path.write_text("experts:\n  - name: mine\n    weigths: [{file: a.pth}]\n")
    with pytest.raises(Refusal, match="did you mean 'experts.0.weights'"):
        load_catalog(path)
