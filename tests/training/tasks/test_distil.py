"""Distillation: a real ensemble of tiny networks, rendered, learned from, judged and shipped, by the command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from cache_tools.__main__ import main as cache_command
from cache_tools.read.reader import CacheReader
from championship_sr.teacher import with_cached_experts
from experts.open import open_experts
from fusion.__main__ import main
from fusion.inference.ensemble import Answer, Place, run_tile
from fusion.training.judge.gate import paired_bootstrap
from fusion.training.settings import TrainSettings
from fusion.training.sources.teacher import TeacherSource
from imaging import command
from imaging.files import quantize_u8
from imaging.refusal import Refusal
from imaging.settings import parse_settings
from infer import build
from tests.training.parts import write_config, write_pictures, write_tiny_expert

Capsys = pytest.CaptureFixture[str]
PLAN = {
    "task": "distil",
    "run": "replaced",
    "steps": 6,
    "device": "cpu",
    "ema": 0.0,
    "network": {"name": "Compact", "settings": {"num_feat": 8, "num_conv": 2}},
    "data": {"patch": 8, "batch": 4, "hold_out": 10},
    "optimizer": {"lr": 1e-2},
    "stages": [{"until": 1.0, "losses": {"l1": 1.0}}],
    "validation": {"every": 3},
    "checkpoint": {"every": 2},
    "log": {"images": 0},
}


def distil(*words: object) -> int:
    return command.run(main, ["distil", *(str(word) for word in words)])


class Stage:
    """A folder with pictures, two tiny experts and a plan."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hr = write_pictures(folder / "hr", 22)
        self.experts = [str(write_tiny_expert(folder / f"{name}.safetensors", i)) for i, name in enumerate("ab")]
        self.teacher = ("--model", "none", "--experts", ",".join(self.experts))
        self.out, self.work = folder / "out" / "student.safetensors", folder / "out" / "student_distil"

    def run(self, *more: object, images: tuple[object, ...] = (), **changes: object) -> int:
        config = write_config(self.folder / "plan.yaml", {**PLAN, **changes})
        images = images or ("--hr", self.hr)
        return distil(*self.teacher, *images, "--config", config, "--out", self.out, "--device", "cpu", *more)

    def source(self, **distil_settings: object) -> TeacherSource:
        document = {**PLAN, "distil": distil_settings, "data": {**PLAN["data"], "cache": str(self.work / "teacher")}}
        return TeacherSource(parse_settings(TrainSettings, document, where="test"))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def test_the_cache_holds_the_ensemble_s_images(stage: Stage) -> None:
    stage.run()
    reader = CacheReader(stage.work / "teacher")
    batch = next(iter(reader))
    ensemble = build("none", stage.experts, device="cpu")
    wanted = run_tile(ensemble, batch.lr_BCHW, Place("", 0, 0, *batch.lr_BCHW.shape[-2:]))
    assert torch.equal(quantize_u8(batch.sr_BECHW[0, 0]), quantize_u8(wanted))
    assert reader.recipe.profile == "images"


def test_a_truth_above_1_is_negative_correlation_learning() -> None:
    generator = torch.Generator().manual_seed(0)
    student, truth, others = torch.rand(3, 50, generator=generator, dtype=torch.float64).unbind()
    student.requires_grad_()
    penalty = 0.2
    loss = (student - truth).square().mean() - penalty * (student - others).square().mean()
    (wanted,) = torch.autograd.grad(loss, student)
    target = torch.lerp(others, truth, 1 / (1 - penalty))
    (ours,) = torch.autograd.grad((student - target).square().mean(), student)
    assert torch.allclose((1 - penalty) * ours, wanted)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 1.2])
def test_the_target_is_teacher_and_truth_as_mixed(share: float, stage: Stage) -> None:
    stage.run()
    source = stage.source(truth=share)
    pair, reader = source._pairs[0], CacheReader(stage.work / "teacher")
    batch = reader.read(pair.item)
    wanted = (1 - share) * batch.sr_BECHW[:, 0] + share * batch.hr_BCHW
    assert torch.equal(pair.hr_CHW, quantize_u8(wanted)[0])
    held = next(iter(source.held_out()))
    assert torch.equal(held.hr_BCHW, reader.read(held.items[0]).hr_BCHW)  # judged by the truth, whatever is learned


def test_another_seed_may_hold_out_the_same_images(stage: Stage) -> None:
    """So that a student may go on by another order of patches and never see what it is judged on."""
    stage.run()

    def held(seed: int, **data: int) -> set[str]:
        shared = {**PLAN["data"], **data, "cache": str(stage.work / "teacher")}
        source = TeacherSource(parse_settings(TrainSettings, {**PLAN, "seed": seed, "data": shared}, where="test"))
        return {item for batch in source.held_out() for item in batch.items}

    assert len(held(1)) == 10
    assert held(1) != held(2) == held(1, hold_out_seed=2)


def test_a_better_student_is_shipped_and_opens_in_spandrel_without_us(stage: Stage, capsys: Capsys) -> None:
    """Its rival is an expert of random weights: anything that learns beats it."""
    assert stage.run("--json", steps=40, distil={"rival": stage.experts[0]}) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["gate"]["passed"]
    assert "better than a at 95% confidence" in summary["gate"]["reason"]
    with safe_open(stage.out, "pt") as file:
        header = file.metadata()
    assert header["architecture"] == "Compact"
    assert json.loads(header["provenance"])["teacher"]["architecture"] == "ensemble of a, b"
    code = (
        "import sys, torch; from spandrel import ModelLoader; "
        f"model = ModelLoader().load_from_file({str(stage.out)!r}); "
        "assert model.scale == 4 and model(torch.rand(1, 3, 9, 7)).shape == (1, 3, 36, 28); "
        "assert not {'imaging', 'experts', 'fusion', 'championship_sr'} & set(sys.modules); "
        "print(model.architecture.id)"
    )
    # From another folder, so that none of our packages could be found by chance.
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=stage.folder, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "Compact"), done.stderr
    (expert,) = open_experts([str(stage.out)])
    assert expert.run(torch.rand(1, 3, 9, 7)).sr_BCHW.shape == (1, 3, 36, 28)


def test_a_student_that_is_no_better_is_not_shipped(stage: Stage, capsys: Capsys) -> None:
    """It goes on from an expert and is trained at a rate that cannot change it."""
    assert stage.run("--student", stage.experts[0], optimizer={"lr": 1e-12}) == 1
    assert "is not written: not better than a at 95% confidence: nothing is shipped" in capsys.readouterr().out
    assert not stage.out.exists()


def test_the_same_command_goes_on(stage: Stage) -> None:
    stage.run(steps=40, distil={"rival": stage.experts[0]})
    whole = load_file(stage.out)
    items = {path: path.stat().st_mtime_ns for path in (stage.work / "teacher").rglob("*.h5")}
    checkpoints = sorted((stage.work / "run" / "checkpoints").iterdir())
    stage.out.unlink()
    assert len(items) == 22
    assert checkpoints
    assert stage.run(steps=40, distil={"rival": stage.experts[0]}) == 0
    again = load_file(stage.out)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert {path: path.stat().st_mtime_ns for path in (stage.work / "teacher").rglob("*.h5")} == items


def test_unlabelled_images_are_enough(stage: Stage, capsys: Capsys) -> None:
    lr = stage.folder / "lr"
    lr.mkdir()
    for path in stage.hr.iterdir():
        with Image.open(path) as image:
            image.resize((14, 12)).save(lr / path.name)
    assert stage.run("--json", images=("--lr", lr), steps=120) == 0  # nothing to go on from: better than bicubic
    scores = json.loads(capsys.readouterr().out)["gate_scores"]
    assert set(scores) == {"student", "bicubic"}  # measured against the teacher, so it has no row


def test_a_cache_of_its_experts_replaces_running_them(stage: Stage) -> None:
    cache = stage.folder / "cache"
    words = ("--experts", ",".join(stage.experts), "--hr", str(stage.hr), "--out", str(cache))
    assert cache_command(["extract", *words]) == 0
    ensemble = build("none", stage.experts, device="cpu")

    def fail(lr_BCHW: torch.Tensor, place: Place, turn: int) -> Answer:
        raise AssertionError((lr_BCHW.shape, place, turn))

    nothing_runs = replace(ensemble, experts=dict.fromkeys(ensemble.experts, fail))
    batch = CacheReader(cache).read(next(iter(CacheReader(cache).entries)).id)
    height, width = batch.lr_BCHW.shape[-2:]
    read = with_cached_experts(nothing_runs, cache)
    wanted = batch.sr_BECHW.mean(1)
    place = Place(batch.items[0], 0, 0, height, width)
    assert torch.equal(run_tile(read, batch.lr_BCHW, place), wanted[0])
    part_BCHW = batch.lr_BCHW[..., 3:, 2:]
    assert torch.equal(run_tile(read, part_BCHW, place.moved(3, 2)), wanted[0, :, 12:, 8:])
    for lr_BCHW, other, turn in (
        (batch.lr_BCHW, Place("unknown", 0, 0, height, width), 0),
        (1 - batch.lr_BCHW, place, 0),
        (batch.lr_BCHW, place, 1),
    ):
        with pytest.raises(AssertionError):
            run_tile(read, lr_BCHW, other, turns=(turn,))
    assert stage.run("--cache", cache, steps=1) in (0, 1)


def test_a_cache_of_other_weights_is_no_teacher_s(stage: Stage, capsys: Capsys) -> None:
    cache, other = stage.folder / "cache", write_tiny_expert(stage.folder / "other" / "b.safetensors", 7)
    assert cache_command(["extract", "--experts", str(other), "--hr", str(stage.hr), "--out", str(cache)]) == 0
    assert stage.run("--cache", cache) == 2
    assert "does not hold the expert 'a'" in capsys.readouterr().err
    ensemble = build("none", stage.experts[1:], device="cpu")
    with pytest.raises(Refusal, match="was made with other weights of 'b'"):
        with_cached_experts(ensemble, cache)


def test_two_folders_become_one_cache(stage: Stage) -> None:
    second = stage.folder / "second"
    second.mkdir()
    for number, path in enumerate(sorted(stage.hr.iterdir())[:6]):
        path.rename(second / f"more{number}.png")
    stage.run(images=("--hr", stage.hr, "--hr", second))
    assert len(CacheReader(stage.work / "teacher")) == 22


@pytest.mark.parametrize("name", ["MSG", "EDSR", "SPAN"])
def test_students_by_their_class(name: str, stage: Stage) -> None:
    small = {"MSG": {"widths": [16, 16], "up_depths": [1], "depths": [1, 1], "kernel": 3}, "EDSR": {"num_feat": 8}}
    values = small.get(name, {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 8, "norm": False})
    assert stage.run(steps=2, network={"name": name, "settings": values}) in (0, 1)
    assert open_experts([str(stage.work / "run" / "model.safetensors")])[0].identity.architecture == name


def test_a_routed_network_of_ours_goes_on_from_its_file(stage: Stage) -> None:
    """In training it gives its image and the balance of its experts."""
    small = {"widths": [16, 16], "up_depths": [1], "depths": [1, 1], "kernel": 3}
    stage.run(steps=2, network={"name": "MSG", "settings": small})
    first = stage.folder / "routed.safetensors"
    (stage.work / "run" / "model.safetensors").rename(first)
    shutil.rmtree(stage.work / "run")
    assert stage.run("--student", first, steps=2) in (0, 1)
    went_on, before = load_file(stage.work / "run" / "model.safetensors"), load_file(first)
    assert went_on.keys() == before.keys()
    assert any(not torch.equal(went_on[key], before[key]) for key in before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--student", "Compacd"), "unknown network 'Compacd'"),
        (("network.settings.nothing=1",), "cannot be built"),
        (("data.degrade={kind: mixed}",), "cannot be used with a cache"),
        (("augment.jitter=0.5",), "cannot be used with a cache"),
        (("data.hold_out=1",), "no two halves"),
    ],
)
def test_what_cannot_be_done_is_refused(words: tuple[str, ...], message: str, stage: Stage, capsys: Capsys) -> None:
    assert stage.run(*words) == 2
    assert message in capsys.readouterr().err


def test_the_gate_names_its_rival() -> None:
    scores = {str(n): 30.0 + n for n in range(6)}
    better = {key: value + 0.1 for key, value in scores.items()}
    names = {key: key for key in scores}
    words = {"confidence": 0.95, "resamples": 200, "seed": 0}
    assert paired_bootstrap(better, scores, names, **words).reason == "better than the base at 95% confidence"
    told = paired_bootstrap(scores, better, names, **words, rival="edsr-s", otherwise="nothing is shipped")
    assert told.reason == "not better than edsr-s at 95% confidence: nothing is shipped"
