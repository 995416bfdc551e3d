"""The loop on a tiny EDSR: it learns, skips and stops at bad batches, scales half precision, refuses wrong settings."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from fusion.training.loop import loop
from fusion.training.loop.checkpoint import list_checkpoints, load_checkpoint
from fusion.training.loop.estimate import in_words
from fusion.training.tasks.expert import ExpertTask
from imaging.refusal import Refusal
from tests.training.loop.parts import assert_same, last_state, run
from tests.training.parts import KINDS, TINY, expert_settings


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
