"""Logs beside TensorBoard: what W&B and trackio are told, resumed runs, and packages that are not there."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import pytest

from fusion.training.loop.checkpoint import list_checkpoints
from imaging.refusal import Refusal
from tests.training.loop.parts import run
from tests.training.parts import expert_settings, write_pictures


class StandIn(ModuleType):
    """The part of their common interface that is used, written down; it prints on stdout, as trackio does."""

    def __init__(self, name):
        super().__init__(name)
        self.began, self.logged, self.axes, self.finished = [], [], [], 0

    def init(self, **keywords):
        print("a greeting")
        self.began.append(keywords)

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, values, step=None):
        print("a remark")
        self.logged.append((values, step))

    def Image(self, image_HWC):
        return np.array(image_HWC)

    def finish(self):
        print("a farewell")
        self.finished += 1


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_resumed_run_goes_on_in_the_record_it_began(tmp_path, package, monkeypatch, capsys):
    client = StandIn(package)
    monkeypatch.setitem(sys.modules, package, client)
    log = {"to": [package], "every": 1, "images": 1}
    settings = expert_settings(write_pictures(tmp_path / "hr"), tmp_path / "run", log=log)
    run(settings)
    list_checkpoints(tmp_path / "run/checkpoints")[-1][1].unlink()
    run(settings, resume=True)
    assert capsys.readouterr().out == "", "stdout belongs to the command"
    first, second = client.began
    assert first == second and first["resume"] == "allow" and first["name"].startswith("run-")
    assert first["config"]["optimizer"]["lr"] == 1e-3
    assert client.finished == 2
    steps = [(step, values.get("step")) for values, step in client.logged if "loss/total" in values]
    expected = [1, 2, 3, 4, 5, 6, 5, 6]
    if package == "wandb":
        assert client.axes == [("*", "step")] * 2
        assert steps == [(None, step) for step in expected], "steps that a resumed run repeats would be dropped"
        assert first["id"] == first["name"] and first["dir"] == str(tmp_path / "run/log")
    else:
        assert steps == [(step, None) for step in expected]
    images = [value for values, _ in client.logged for value in values.values() if isinstance(value, np.ndarray)]
    assert len(images) == 3
    assert all(image.dtype == np.uint8 and image.shape == (48, 56, 3) and image.std() > 0 for image in images)
    for values, _ in client.logged:
        if "train/patches_per_second" in values:
            assert values["train/patches_per_second"] > 0


def test_two_runs_of_one_name_are_two_records(tmp_path, monkeypatch):
    client = StandIn("trackio")
    monkeypatch.setitem(sys.modules, "trackio", client)
    hr = write_pictures(tmp_path / "hr")
    for place in ("a", "b"):
        run(expert_settings(hr, tmp_path / place / "run", steps=1, log={"to": ["trackio"]}))
    assert client.began[0]["name"] != client.began[1]["name"]


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_package_that_is_not_there_is_refused_before_anything_begins(tmp_path, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Refusal, match=f"pip install {package}, or set log.to"):
        run(expert_settings(tmp_path / "nowhere", tmp_path / "run", log={"to": ["tensorboard", package]}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_the_real_package_offline(tmp_path, package, monkeypatch):
    """Run where it is installed; both are extras. trackio looks at its folder's name when it is first imported."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    log = {"to": [package], "every": 1, "images": 1}
    settings = expert_settings(write_pictures(tmp_path / "hr"), tmp_path / "run", steps=2, log=log)
    run(settings)
    place, kept = (tmp_path / "trackio", "*.db") if package == "trackio" else (tmp_path / "run/log/wandb", "*.wandb")
    assert any(place.rglob(kept)) and any(place.rglob("*.png"))
