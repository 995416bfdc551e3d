"""Training all within a time budget: plans fit it, subprocesses end in time, runs resume where they stopped."""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import train
from cache_tools.__main__ import main as cache_command
from cache_tools.read.reader import CacheReader
from experts.open import open_experts
from fusion.__main__ import main as fusion_command
from fusion.network.network import load_model
from fusion.refinement.native.open import open_native
from fusion.train_all import session, train_all
from fusion.train_all.collect import Run
from fusion.train_all.subprocess_pool import Ended, run_subprocesses
from fusion.train_all.time_budget import LEAST_STEPS, SPARE, VALIDATIONS, plan_steps
from fusion.training.dry_run import Probe
from fusion.training.loop import loop
from imaging.metrics.perceptual import TRUNK_FILE
from imaging.paths import ENVIRONMENT
from imaging.refusal import Refusal
from tests.imaging.test_metrics import save_trunk
from tests.training.parts import SMALL_FUSION, TINY, write_config, write_pictures, write_tiny_expert

STARTED = "ann"
MODULES = {"cache_tools": cache_command, "fusion": fusion_command}


@given(st.floats(60, 3600), st.floats(0.001, 1), st.floats(0, 3), st.floats(0, 10), st.integers(1, 3))
def test_planned_runs_fit_into_their_time(seconds, step, validation, begin, calls):
    probe = Probe(step=step, validation=validation, steps=10, counted=1.0)
    try:
        plan = plan_steps(seconds, probe, begin=begin, calls=calls)
    except Refusal:
        assert seconds * (1 - SPARE) < calls * begin + (VALIDATIONS + 1) * validation + LEAST_STEPS * step
        return
    validations = -(-plan.steps // plan.validate_every) + 1
    assert plan.steps * step + validations * validation + calls * begin <= seconds
    assert plan.steps * step + (VALIDATIONS + 1) * validation + calls * begin > 0.9 * seconds - step
    assert 1 <= plan.save_every <= plan.steps and plan.save_every * step <= max(20, step)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_subprocesses_end_by_themselves_or_at_the_deadline(tmp_path):
    commands = {
        "done": python("print(7)"),
        "bad": python("import sys; sys.exit('refused: no such thing')"),
        "slow": python("import time; time.sleep(60)"),
        "never": python("print(8)"),
    }
    begun = time.monotonic()
    ended = run_subprocesses(commands, folder=tmp_path, at_once=3, deadline=begun + 3)
    assert time.monotonic() - begun < 30, "the slow one was waited for"
    assert (ended["done"].code, ended["done"].output) == (0, "7\n")
    assert (ended["bad"].code, ended["bad"].trouble) == (1, "refused: no such thing")
    assert ended["slow"].code is None and not ended["slow"].trouble
    one_by_one = run_subprocesses(
        {"a": commands["slow"], "b": commands["done"]}, folder=tmp_path, at_once=1, deadline=0
    )
    assert one_by_one == {"a": Ended(None, 0.0), "b": Ended(None, 0.0)}


def here(commands, *, folder, at_once, deadline):
    """As `run_subprocesses`, in this process: starting Python takes longer than what these runs do."""
    ended = {}
    for name, (_, *words) in commands.items():
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                code = MODULES[words[1]](words[2:]) if words[0] == "-m" else train.main(words[1:])
        except Refusal as refusal:
            ended[name] = Ended(2, 1.0, trouble=str(refusal))
        except PowerCut:
            ended[name] = Ended(None, 1.0)
        else:
            ended[name] = Ended(code, 1.0, output.getvalue())
    return ended


class PowerCut(Exception):  # noqa: N818
    pass


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, two tiny experts' configs, one of them with a file to start from, and a fusion's."""
    folder = tmp_path_factory.mktemp("all")
    write_pictures(folder / "one/HR", count=7)
    write_pictures(folder / "two/HR", count=7, size=(40, 44))
    (folder / "start").mkdir()
    write_tiny_expert(folder / f"start/{STARTED}.safetensors", seed=3)
    short = {"device": "cpu", "ema": 0.0, "log": {"images": 0}, "optimizer": {"lr": 1e-6}}
    for name in (STARTED, "bob"):
        expert = {
            "task": "expert",
            "run": "elsewhere",
            "steps": 1,
            "network": {"name": "edsr", "settings": TINY},
            "stages": [{"losses": {"l1": 1.0}}],
            "data": {"patch": 8, "batch": 2, "hold_out": 2},
            "export": {"name": name},
        }
        write_config(folder / f"{name}.yaml", {**short, **expert})
    fusion = {
        "task": "fusion",
        "run": "elsewhere",
        "steps": 1,
        "network": {"name": "fusion", "settings": SMALL_FUSION},
        "stages": [{"losses": {"l1": 1.0}}],
        "data": {"patch": 8, "batch": 2, "hold_out": 4},
    }
    write_config(folder / "fusion.yaml", {**short, **fusion})
    return folder


def words(parts: Path, work: Path, *more: str) -> list[str]:
    configs = [str(parts / f"{name}.yaml") for name in (STARTED, "bob")]
    return [
        *("--hr", str(parts / "one/HR"), "--hr", str(parts / "two"), "--minutes", "60", "--probe", "0.02"),
        *("--work", str(work), "--out", str(work / "out"), "--start", str(parts / "start"), "--most-steps", "12"),
        *("--configs", *configs, *more),
    ]


def test_all_experts_and_their_fusion_in_one_command(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "run_subprocesses", here)
    command = words(parts, tmp_path, "--fusion", str(parts / "fusion.yaml"), "--least-fusion", "0")
    assert train_all.main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report.keys() == {STARTED, "bob", "fusion"} and all(one["over"] for one in report.values())
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "ann.safetensors",
        "bob.safetensors",
        "fusion.safetensors",
        "report.json",
    }
    experts = open_experts([str(out / f"{name}.safetensors") for name in (STARTED, "bob")])
    assert [expert.identity.architecture for expert in experts] == ["EDSR", "EDSR"]
    model = load_model(out / "fusion.safetensors")
    assert model.settings.names == (STARTED, "bob")
    assert [slot.sha256 for slot in model.settings.experts] == [expert.identity.weights_sha256 for expert in experts]
    # Steps of a millionth leave the weights where they started: one from its file, the other from its random ones.
    given, trained, other = (
        load_file(path) for path in (parts / "start/ann.safetensors", out / "ann.safetensors", out / "bob.safetensors")
    )
    assert all(torch.allclose(given[key], trained[key], atol=1e-4) for key in given)
    assert not all(torch.allclose(given[key], other[key], atol=1e-4) for key in given)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert {run["steps"] for run in plan["runs"].values()} == {12} and plan["used"] > 0

    monkeypatch.setattr(
        session, "run_subprocesses", lambda commands, **_: {} if not commands else pytest.fail(str(commands))
    )
    assert train_all.main(command) == 0, "all is over: nothing may run again"
    with pytest.raises(Refusal, match="planned with other settings"):
        train_all.main([*command[:-2], "--scratch"])


@pytest.mark.slow
def test_a_refiner_learns_from_the_fusions_images(parts, tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers")
    monkeypatch.setattr(session, "run_subprocesses", here)
    trunk = tmp_path / "pretrained/metrics" / Path(TRUNK_FILE).with_suffix(".safetensors").name
    trunk.parent.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in save_trunk(tmp_path / "trunk.pt", seed=3).items()}, trunk)
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "pretrained"))
    refiner = {
        "task": "refiner",
        "run": "elsewhere",
        "steps": 1,
        "device": "cpu",
        "network": {"name": "refiner", "settings": {"widths": [8, 16]}},
        "data": {"patch": 16, "batch": 2, "hold_out": 2},
        "stages": [{"losses": {"texture": 1.0, "mean": 100.0}}],
        "export": {"name": "refiner"},
        "log": {"images": 0},
    }
    write_config(tmp_path / "refiner.yaml", refiner)
    more = ("--fusion", str(parts / "fusion.yaml"), "--least-fusion", "0", "--refiner", str(tmp_path / "refiner.yaml"))
    write_pictures(tmp_path / "large", count=10, size=(96, 112))  # LPIPS needs more than the other tests' pictures
    command = ["--hr", str(tmp_path / "large"), *words(parts, tmp_path / "work", *more)[4:]]
    assert train_all.main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == [STARTED, "bob", "fusion", "refiner"] and all(one["over"] for one in report.values())
    (teacher,) = CacheReader(tmp_path / "work/fused", features=False).recipe.experts
    assert teacher.architecture == f"ensemble of {STARTED}, bob"
    assert open_native(str(tmp_path / "work/out/refiner.safetensors"), torch.device("cpu")).preset
    with pytest.raises(Refusal, match="planned with other settings"):
        train_all.main(command[:-2])


def test_the_fusion_learns_from_every_flip_and_rotation(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "run_subprocesses", here)
    command = words(parts, tmp_path, "--fusion", str(parts / "fusion.yaml"), "--least-fusion", "0", "--dihedral")
    assert train_all.main(command) == 0
    assert json.loads(capsys.readouterr().out)["fusion"]["over"]
    entries = CacheReader(tmp_path / "cache", features=False).entries
    assert len(entries) == 8 * sum(entry.dihedral == 0 for entry in entries) > 0
    with pytest.raises(Refusal, match="planned with other settings"):
        train_all.main(command[:-1])


def test_what_was_stopped_is_resumed_and_its_best_so_far_is_collected(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "run_subprocesses", here)
    assert train_all.main(words(parts, tmp_path / "whole")) == 0
    real = loop.take_step

    def until_step_seven(state, *rest):
        if state.step == 7:
            raise PowerCut
        return real(state, *rest)

    monkeypatch.setattr(loop, "take_step", until_step_seven)
    capsys.readouterr()
    assert train_all.main(words(parts, tmp_path / "cut")) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["bob"]["over"] and report["bob"]["psnr_y"] > 5 and report["bob"]["trouble"] is None
    (expert,) = open_experts([str(tmp_path / "cut/out/bob.safetensors")])
    assert expert.identity.architecture == "EDSR"
    monkeypatch.setattr(loop, "take_step", real)
    assert train_all.main(words(parts, tmp_path / "cut")) == 0
    whole, cut = (load_file(tmp_path / name / "out/bob.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_the_best_so_far_is_the_best_by_what_the_task_judges_by(tmp_path):
    (tmp_path / "best").mkdir()
    for step, scores in (
        (1, {"psnr_y": 30.0, "merit": -0.3}),
        (2, {"psnr_y": 28.0, "merit": -0.1}),
        (3, {"psnr_y": 29.0, "merit": -0.2}),
    ):
        save_file({"a": torch.zeros(1)}, tmp_path / f"best/step_{step}.safetensors", {"provenance": json.dumps(scores)})
    assert Run("refiner", (), tmp_path, "refiner").best == (tmp_path / "best/step_2.safetensors", 28.0)


def test_one_that_fails_is_named_and_does_not_stop_the_other(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "run_subprocesses", here)
    (tmp_path / "start").mkdir()
    write_tiny_expert(tmp_path / "start/bob.safetensors", seed=0)
    wide = parts / "bob.yaml"
    write_config(
        tmp_path / "bob.yaml",
        {
            **yaml.safe_load(wide.read_text()),
            "network": {"name": "edsr", "settings": {"num_feat": 8, "num_block": 1}},
        },
    )
    command = words(parts, tmp_path, "--fusion", str(parts / "fusion.yaml"), "--least-fusion", "0")
    command[command.index(str(wide))] = str(tmp_path / "bob.yaml")
    command[command.index(str(parts / "start"))] = str(tmp_path / "start")
    assert train_all.main(command) == 1
    report = json.loads(capsys.readouterr().out)
    assert report[STARTED]["over"] and "fusion" not in report
    assert "does not fit the network" in report["bob"]["trouble"] and report["bob"]["file"] is None


@pytest.mark.slow
def test_it_works_with_real_processes(parts, tmp_path, capsys):
    command = words(parts, tmp_path)
    command.remove(str(parts / f"{STARTED}.yaml"))
    assert train_all.main(command) == 0
    assert json.loads(capsys.readouterr().out)["bob"]["over"]
    assert "step" in (tmp_path / "bob.log").read_text() and (tmp_path / "bob.probe.log").is_file()
