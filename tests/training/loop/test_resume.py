"""Checkpoints: which are kept, damaged ones, runs that resume bit for bit or are prolonged, data that has changed."""

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

import train
from fusion.training.loop import loop
from fusion.training.loop.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from fusion.training.loop.optimizers import learning_rate
from fusion.training.settings import CheckpointSettings
from imaging.refusal import Refusal
from tests.training.loop.parts import assert_same, last_state, power_cut, run
from tests.training.parts import expert_document, expert_settings, quiet_environment, write_config, write_pictures

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_equals_an_uninterrupted_one(pictures, tmp_path, workers):
    data = {"hr": [str(pictures)], "patch": 8, "batch": 4, "hold_out": 2}
    run(expert_settings(pictures, tmp_path / "whole", data=data, augment={"cutblur": 0.5, "jitter": 0.5}))
    data["workers"] = workers
    settings = expert_settings(pictures, tmp_path / "cut", data=data, augment={"cutblur": 0.5, "jitter": 0.5})
    with power_cut(step=3):
        run(settings)
    assert last_state(tmp_path / "cut")["step"] == 2
    run(settings, resume=True)
    assert_same(last_state(tmp_path / "cut"), last_state(tmp_path / "whole"))
    assert_same(load_file(tmp_path / "cut/model.safetensors"), load_file(tmp_path / "whole/model.safetensors"))


@pytest.mark.slow
def test_killed_and_resumed_from_the_command_line_it_ends_with_the_same_bits(pictures, tmp_path):
    def words(run_folder):
        document = expert_document(pictures, run_folder, steps=40, checkpoint={"every": 3}, validation={"every": 10})
        config = write_config(tmp_path / f"{run_folder.name}.yaml", document)
        return ["--config", str(config), "--resume", "auto"]

    def start(run_folder):
        command = [sys.executable, "train.py", *words(run_folder)]
        return subprocess.Popen(command, cwd=ROOT, env=quiet_environment(), stderr=subprocess.DEVNULL)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train.main(words(whole)) == 0
    process = start(cut)
    while process.poll() is None and len(list_checkpoints(cut / "checkpoints")) < 3:
        time.sleep(0.01)
    assert process.poll() is None, "it was over before it could be killed"
    process.kill()
    process.wait()
    assert start(cut).wait() == 0
    assert_same(last_state(cut), last_state(whole))
    assert_same(load_file(cut / "model.safetensors"), load_file(whole / "model.safetensors"))


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
