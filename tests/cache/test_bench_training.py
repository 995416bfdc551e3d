"""Cached against live training: the same command with tiny experts, and the full-size ones as published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import train
from benchmarks.cache import training as subject
from experts.catalog import Catalog, built_in_catalog
from imaging.command import DONE, REFUSED, run
from imaging.refusal import Refusal
from tests.training.parts import SMALL_FUSION, fusion_document, quiet_environment, write_config, write_tiny_expert


@pytest.mark.slow
def test_both_ways_are_timed_on_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in quiet_environment().items():
        monkeypatch.setenv(name, value)
    weights = [write_tiny_expert(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate(("ann", "bob"))]
    document = fusion_document(tmp_path, tmp_path / "run", network={"name": "fusion", "settings": SMALL_FUSION})
    del document["data"]
    config = write_config(tmp_path / "config.yaml", document)
    results = subject.bench_training(
        work=tmp_path / "work", images=4, patch=16, batch=2, steps=(4, 2), weights=weights, config=config
    )
    assert list((tmp_path / "work").iterdir()) == []
    assert set(results["experts"]) == {"ann", "bob"} and results["lr_size"] == 32
    for way, steps in (("cache", 4), ("live", 2)):
        pace = results[way]
        assert pace["steps"] == steps and 0 <= pace["wait_share"] < 1
        assert pace["samples_per_second"] == pytest.approx(2 * steps / pace["seconds"])
    ratio = results["cache"]["samples_per_second"] / results["live"]["samples_per_second"]
    assert results["ratio"] == pytest.approx(ratio)
    text = subject.in_markdown(results)
    assert f"**{ratio:.0f}x**" in text and "ann 0.0 M, bob 0.0 M" in text


def test_the_full_size_experts_are_the_published_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hyperparameter of the catalog reaches the network; its size is the published one (built without memory)."""
    built = {}
    monkeypatch.setattr(subject, "save_file", lambda tensors, path: built.update({path.stem: tensors}))
    for name in ("edsr-l", "grl-b"):
        with torch.device("meta") if name == "edsr-l" else torch.device("cpu"):
            subject.write_network(name, tmp_path)
        assert built[name]
    catalog = built_in_catalog()
    assert {catalog.get(name).architecture for name in subject.FULL_SIZE} == set(subject._ARCHITECTURES)
    assert catalog.get("hat-l").parameters == 40_846_575


def test_a_network_of_another_size_than_published_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = built_in_catalog().get("edsr-l").model_copy(update={"parameters": 7})
    monkeypatch.setattr(subject, "built_in_catalog", lambda: Catalog(experts=(spec,)))
    with pytest.raises(Refusal, match="published are 7"), torch.device("meta"):
        subject.write_network("edsr-l", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--pace", "3"], ["--pace", "3,1", "--cache", "CACHE"]])
def test_what_cannot_be_timed_is_refused(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    document = fusion_document(tmp_path / "cache", tmp_path / "run")
    del document["data"]["cache"]
    config = write_config(tmp_path / "config.yaml", document)
    words = [str(tmp_path) if word == "CACHE" else word for word in words]
    assert run(train.main, ["--config", str(config), *words]) == REFUSED
    assert "cannot tell what to measure" in capsys.readouterr().err


def test_the_pace_of_a_cache_alone_keeps_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.training.parts import make_cache

    document = fusion_document(make_cache(tmp_path), tmp_path / "run")
    config = write_config(tmp_path / "config.yaml", document)
    capsys.readouterr()
    assert run(train.main, ["--config", str(config), "--pace", "3"]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"cache"} and found["cache"]["samples_per_second"] > 0
    assert not (tmp_path / "run").exists()
