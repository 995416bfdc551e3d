"""The loop on a tiny EDSR: it learns, resumes bit for bit, skips and stops at bad batches, refuses wrong settings."""

from __future__ import annotations

import json
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fusion.training.loop import loop
from fusion.training.loop.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from fusion.training.loop.estimate import in_words
from fusion.training.loop.optimizers import learning_rate
from fusion.training.settings import CheckpointSettings
from fusion.training.tasks.expert import ExpertTask
from imaging.refusal import Refusal
from tests.training.parts import (
    KINDS,
    TINY,
    expert_document,
    expert_settings,
    quiet_environment,
    write_config,
    write_pictures,
)

ROOT = Path(__file__).parents[2]


def run(settings, *, resume=False):
    return loop.train(settings, lambda rank, world: ExpertTask(settings, KINDS, rank, world), resume=resume)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("hr"))


def last_state(folder):
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1][1])


def assert_same(one, other):
    """Equal tensors, bit for bit, in nested containers."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif torch.is_tensor(one):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_a_run_leaves_everything_it_promises(pictures, tmp_path):
    settings = expert_settings(pictures, tmp_path / "run", export={"name": "tiny", "dtype": "fp16", "note": "n"})
    summary = run(settings)
    folder = tmp_path / "run"
    assert json.loads((folder / "summary.json").read_text())["best_step"] == summary["best_step"]
    assert {"fingerprint", "git", "torch"} <= json.loads((folder / "origin.json").read_text()).keys()
    assert [step for step, _ in list_checkpoints(folder / "checkpoints")] == [2, 4, 6]
    assert any((folder / "log").iterdir())
    with safe_open(folder / "tiny.safetensors", "pt") as file:
        header = file.metadata()
        assert all(file.get_tensor(key).dtype == torch.float16 for key in file.keys())  # noqa: SIM118
    assert header["architecture"] == "EDSR" and json.loads(header["hyperparameters"]) == TINY
    provenance = json.loads(header["provenance"])
    assert provenance["settings"]["data"]["fingerprint"] and str(tmp_path) not in json.dumps(provenance)


def test_training_lowers_the_error_it_trains(pictures, tmp_path):
    settings = expert_settings(
        pictures, tmp_path / "run", steps=60, validation={"every": 10}, checkpoint={"every": 60}, optimizer={"lr": 3e-3}
    )
    summary = run(settings)
    untrained = ExpertTask(settings, KINDS)
    torch.manual_seed(0)
    before = untrained.validate(untrained.network.eval()).mean("model")[0]
    assert summary["scores"]["model"]["psnr_y"] > before + 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(pictures, tmp_path, workers, monkeypatch):
    data = {"hr": [str(pictures)], "patch": 8, "batch": 4, "hold_out": 2}
    run(expert_settings(pictures, tmp_path / "whole", data=data, augment={"cutblur": 0.5, "jitter": 0.5}))
    data["workers"] = workers
    settings = expert_settings(pictures, tmp_path / "cut", data=data, augment={"cutblur": 0.5, "jitter": 0.5})

    real, count = loop.take_step, 0

    def stop_after_three(*arguments):
        nonlocal count
        count += 1
        if count == 4:
            raise RuntimeError("power cut")
        return real(*arguments)

    monkeypatch.setattr(loop, "take_step", stop_after_three)
    with pytest.raises(RuntimeError, match="power cut"):
        run(settings)
    monkeypatch.undo()
    assert last_state(tmp_path / "cut")["step"] == 2
    run(settings, resume=True)
    assert_same(last_state(tmp_path / "cut"), last_state(tmp_path / "whole"))
    assert_same(load_file(tmp_path / "cut/model.safetensors"), load_file(tmp_path / "whole/model.safetensors"))


@pytest.mark.slow
def test_killed_and_resumed_from_the_command_line_it_ends_with_the_same_bits(pictures, tmp_path):
    def command(run_folder):
        document = expert_document(pictures, run_folder, steps=40, checkpoint={"every": 3}, validation={"every": 10})
        config = write_config(tmp_path / f"{run_folder.name}.yaml", document)
        return [sys.executable, "train.py", "--config", str(config), "--resume", "auto"]

    def start(run_folder):
        return subprocess.Popen(command(run_folder), cwd=ROOT, env=quiet_environment(), stderr=subprocess.DEVNULL)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole).wait() == 0
    process = start(cut)
    while process.poll() is None and len(list_checkpoints(cut / "checkpoints")) < 3:
        time.sleep(0.01)
    assert process.poll() is None, "it was over before it could be killed"
    process.kill()
    process.wait()
    assert start(cut).wait() == 0
    assert_same(last_state(cut), last_state(whole))
    assert_same(load_file(cut / "model.safetensors"), load_file(whole / "model.safetensors"))


def test_accumulated_parts_give_the_gradient_of_the_whole(pictures, tmp_path):
    run(expert_settings(pictures, tmp_path / "one", steps=1, ema=0.0))
    run(expert_settings(pictures, tmp_path / "two", steps=1, ema=0.0, optimizer={"lr": 1e-3, "accumulate": 2}))
    one, two = (last_state(tmp_path / name)["optimizer"]["state"] for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(one[key]["exp_avg"], two[key]["exp_avg"], rtol=1e-4, atol=1e-9)


def test_bad_batches_are_skipped_counted_and_then_named(pictures, tmp_path, monkeypatch):
    settings = expert_settings(pictures, tmp_path / "run", bad_batches=3, steps=9)
    real = ExpertTask.predict

    def poisoned(self, network, batch, step):
        predicted = real(self, network, batch, step)
        if step in {2, 4, 5}:
            predicted.image_BCHW.data[0, 0, 0, 0] = float("nan")
        return predicted

    monkeypatch.setattr(ExpertTask, "predict", poisoned)
    with pytest.raises(Refusal, match=r"3 batches gave no finite loss .*items img\d") as caught:
        run(settings)
    assert caught.value.where == "step 5"
    assert last_state(tmp_path / "run")["skipped"] == 1
    assert all(tensor.isfinite().all() for tensor in last_state(tmp_path / "run")["network"].values())


def test_half_precision_scales_its_loss_and_resumes_with_the_scale(pictures, tmp_path, monkeypatch):
    """On the CPU: one overflowing gradient halves the scale and moves nothing; the scale is part of what resumes."""
    real = ExpertTask.predict

    def overflowing(self, network, batch, step):
        predicted = real(self, network, batch, step)
        assert predicted.image_BCHW.grad_fn is not None
        if step == 1:  # a fair loss whose gradient float32 cannot hold
            predicted.image_BCHW.register_hook(lambda gradient: gradient * 1e36)
        return predicted

    monkeypatch.setattr(ExpertTask, "predict", overflowing)
    run(expert_settings(pictures, tmp_path / "whole", precision="fp16"))
    states = [load_checkpoint(path) for _, path in list_checkpoints(tmp_path / "whole/checkpoints")]
    assert [state["scaler"]["scale"] for state in states] == [2.0**15] * 3
    assert [state["scaler"]["_growth_tracker"] for state in states] == [0, 2, 4]
    assert states[-1]["skipped"] == 0
    assert int(states[0]["average"]["n_averaged"]) == 1, "the average followed a step that was not taken"
    moved = {float(moment["step"]) for moment in states[-1]["optimizer"]["state"].values()}
    assert moved == {5.0}
    for _, path in list_checkpoints(tmp_path / "whole/checkpoints")[1:]:
        path.unlink()
    run(expert_settings(pictures, tmp_path / "whole", precision="fp16"), resume=True)
    assert_same(last_state(tmp_path / "whole"), states[-1])


def test_gradients_that_no_scale_can_hold_stop_the_run(pictures, tmp_path, monkeypatch):
    real = ExpertTask.predict

    def hopeless(self, network, batch, step):
        predicted = real(self, network, batch, step)
        predicted.image_BCHW.register_hook(lambda gradient: gradient * float("inf"))
        return predicted

    monkeypatch.setattr(ExpertTask, "predict", hopeless)
    with pytest.raises(Refusal, match="2 batches gave no finite loss"):
        run(expert_settings(pictures, tmp_path / "run", precision="fp16", steps=40, bad_batches=2))


def test_the_adversary_learns_resumes_and_is_refused_for_fusion(pictures, tmp_path):
    play = {"weight": 0.1, "start": 0.34, "features": 4}
    settings = expert_settings(pictures, tmp_path / "a", adversarial=play)
    run(settings)
    state = last_state(tmp_path / "a")["adversary"]
    assert state["optimizer"]["state"], "the discriminator never stepped"
    list_checkpoints(tmp_path / "a/checkpoints")[-1][1].unlink()
    run(settings, resume=True)
    assert_same(last_state(tmp_path / "a")["adversary"], state)
    with pytest.raises(Refusal, match="native experts only"):
        run(expert_settings(pictures, tmp_path / "b", adversarial=play, task="fusion"))


def test_what_a_run_refuses(pictures, tmp_path):
    settings = expert_settings(pictures, tmp_path / "run", steps=2)
    run(settings)
    with pytest.raises(Refusal, match="has begun already"):
        run(settings)
    with pytest.raises(Refusal, match="'optimizer' was"):
        run(expert_settings(pictures, tmp_path / "run", steps=2, optimizer={"lr": 2e-3}), resume=True)
    with pytest.raises(Refusal, match="processes"):
        run(expert_settings(pictures, tmp_path / "x", processes=2))
    with pytest.raises(Refusal, match="cannot be cut into 3 parts"):
        run(expert_settings(pictures, tmp_path / "x", optimizer={"lr": 1e-3, "accumulate": 3}))
    with pytest.raises(Refusal, match="did you mean 'num_feat'|cannot be built"):
        run(expert_settings(pictures, tmp_path / "x", network={"name": "edsr", "settings": {"num_feats": 4}}))
    assert not (tmp_path / "x" / "config.yaml").exists()


def test_changed_training_data_is_refused_when_resuming(tmp_path):
    folder = write_pictures(tmp_path / "hr")
    settings = expert_settings(folder, tmp_path / "run", steps=2)
    run(settings)
    (folder / "img0.png").unlink()
    with pytest.raises(Refusal, match="training data has changed"):
        run(settings, resume=True)


def test_the_last_checkpoints_and_milestones_are_kept(tmp_path):
    settings = CheckpointSettings(last=2, milestone=4)
    for step in range(1, 8):
        save_checkpoint(tmp_path, step, {}, settings)
    assert [step for step, _ in list_checkpoints(tmp_path)] == [4, 6, 7]


def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"network": {"a": torch.arange(9.0)}}, CheckpointSettings())
    whole = path.read_bytes()
    assert torch.equal(load_checkpoint(path)["network"]["a"], torch.arange(9.0))
    rng = random.Random(3)
    damaged = [whole[: rng.randrange(len(whole))] for _ in range(30)]
    for number in range(30):
        flipped = bytearray(whole)
        flipped[rng.randrange(number * len(whole) // 30, len(whole))] ^= 0xFF
        damaged.append(bytes(flipped))
    refused = 0
    for data in [b"", b"PK\x03\x04 not whole", pickle.dumps(print), pickle.dumps([1, 2]), *damaged]:
        path.write_bytes(data)
        try:
            loaded = load_checkpoint(path)
        except Refusal as refusal:
            refused += 1
            assert len(str(refusal).splitlines()) == 1 and refusal.where == str(path)
        else:  # the flipped bit was in no one's bytes: padding between the entries
            assert torch.equal(loaded["network"]["a"], torch.arange(9.0))
    assert refused >= 50


def test_a_run_can_be_prolonged(pictures, tmp_path, caplog):
    """It goes on as a run of more steps would from there; that it did is recorded wherever the run is described."""
    cut = tmp_path / "cut"
    run(expert_settings(pictures, cut, steps=4, checkpoint={"every": 2}))
    longer = expert_settings(pictures, cut, steps=8, checkpoint={"every": 2})
    with pytest.raises(Refusal, match="has begun already"):
        run(longer)
    real, rates = loop.take_step, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", lambda *words: rates.append(result := real(*words)) or result)
        summary = run(longer, resume=True)
    assert summary["steps"] == 8 and last_state(cut)["step"] == 8
    expected = [learning_rate(step, 8, longer.optimizer.lr, longer.schedule) for step in range(4, 8)]
    assert [one.lr for one in rates] == expected
    assert "prolonged to 8 steps after step 4" in caplog.text
    origin = json.loads((cut / "origin.json").read_text())
    assert origin["prolonged"] == [{"after": 4, "to": 8}]
    with safe_open(cut / "model.safetensors", "pt") as file:
        provenance = json.loads(file.metadata()["provenance"])
    assert provenance["prolonged"] == origin["prolonged"] and provenance["settings"]["steps"] == 8
    run(longer, resume=True)  # it is a run of 8 steps now
    assert json.loads((cut / "origin.json").read_text()) == origin
    with pytest.raises(Refusal, match=r"'steps' was 8 .* and is 4 now"):
        run(expert_settings(pictures, cut, steps=4), resume=True)


def test_the_time_of_a_run_is_said_before_its_first_step_and_changes_no_bit(pictures, tmp_path, caplog):
    def made(name):
        run(expert_settings(pictures, tmp_path / name, steps=30, validation={"every": 15}, checkpoint={"every": 30}))
        return last_state(tmp_path / name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "tell_duration", lambda *words: None)
        silent = made("silent")
    caplog.set_level("INFO")
    caplog.clear()
    assert_same(made("told"), silent)
    lines = [record.message for record in caplog.records]
    told = next(index for index, line in enumerate(lines) if "30 steps at about" in line)
    assert "and 2 validations" in lines[told]
    assert told < next(index for index, line in enumerate(lines) if "after step 15" in line)


def test_durations_in_words():
    assert [in_words(seconds) for seconds in (3, 90, 7200, 200_000)] == [
        "3 seconds",
        "1.5 minutes",
        "2.0 hours",
        "2.3 days",
    ]
