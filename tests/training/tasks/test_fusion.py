"""Task fusion from a real small cache: the gate, the file it ships, exact resume, expert dropout, live training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import train as command
from cache_tools.read.reader import CacheReader
from fusion.network.interface import TrainingRecord
from fusion.network.network import FusionSR, load_model
from fusion.network.save import read_header, save_model
from fusion.training.loop import loop
from fusion.training.sources.cache import CacheSource
from fusion.training.tasks.fusion import FusionTask
from fusion.training.tasks.pictures import signed
from imaging.refusal import Refusal
from tests.training.loop.parts import assert_same, last_state, power_cut
from tests.training.parts import SMALL_FUSION, fusion_settings, make_striped_cache, write_pictures, write_tiny_expert


def run(settings, *, resume=False, live=False):
    return loop.train(settings, lambda rank, world: command.make_task(settings, live, rank, world), resume=resume)


@pytest.fixture(scope="module")
def striped(tmp_path_factory):
    return make_striped_cache(tmp_path_factory.mktemp("striped"))


@pytest.mark.parametrize(("hold_out", "said"), [(2, 1), (9, 1), (10, 0)])
def test_too_few_images_for_the_gate_are_said_before_the_first_step(cache, tmp_path, hold_out, said, caplog):
    settings = fusion_settings(
        cache, tmp_path / "run", data={"cache": str(cache), "patch": 8, "batch": 4, "hold_out": 2}
    )
    data = settings.data.model_copy(update={"hold_out": hold_out})
    FusionTask(settings.model_copy(update={"data": data}), CacheSource(settings))
    assert caplog.text.count("needs 5: whatever is learned, the base will be shipped") == said


def test_two_images_prove_nothing_and_the_base_is_shipped(cache, tmp_path):
    summary = run(fusion_settings(cache, tmp_path / "run"))
    assert not summary["gate"]["passed"] and "prove nothing" in summary["gate"]["reason"]
    assert set(summary["scores"]) == {"fused", "base", "mean", "ann", "bob"}
    model = load_model(tmp_path / "run/model.safetensors")
    assert model.record.verdict == "base"
    batch = next(iter(CacheReader(cache)))
    with torch.no_grad():
        output = model(batch.lr_BCHW, batch.sr_BECHW, batch.feats, batch.experts)
        weights = model.base.weights(batch.experts)
    assert torch.equal(output.image_BCHW, output.base_BCHW)
    if len(weights) == 1:
        expected = sum(w * image for w, image in zip(weights[0], batch.sr_BECHW.unbind(1), strict=True))
        torch.testing.assert_close(output.image_BCHW, expected)


def test_a_fusion_goes_on_when_its_experts_were_trained_further(cache, tmp_path, caplog):
    settings = fusion_settings(cache, tmp_path / "run")
    task = FusionTask(settings, CacheSource(settings))
    before = FusionSR(
        task.network.settings.model_copy(
            update={"experts": tuple(s.model_copy(update={"sha256": "0" * 64}) for s in task.network.settings.experts)}
        )
    )
    for parameter in before.parameters():
        torch.nn.init.normal_(parameter)
    save_model(before, tmp_path / "before.safetensors")
    kept = {name: value.clone() for name, value in task.network.named_buffers()}
    base = task.network.base.record
    task.load(task.network, tmp_path / "before.safetensors")
    assert_same(dict(task.network.named_parameters()), dict(before.named_parameters()))
    assert_same(dict(task.network.named_buffers()), kept)
    assert task.network.base.record == base != before.base.record
    assert "other weights of the same experts" in caplog.text
    other = FusionSR(before.settings.model_copy(update={"context_width": before.settings.context_width + 8}))
    save_model(other, tmp_path / "other.safetensors")
    with pytest.raises(Refusal, match="other settings"):
        task.load(task.network, tmp_path / "other.safetensors")


def test_what_can_be_learned_passes_the_gate(striped, tmp_path):
    data = {"cache": str(striped), "patch": 8, "batch": 8, "hold_out": 12}
    summary = run(
        fusion_settings(
            striped,
            tmp_path / "run",
            data=data,
            steps=60,
            optimizer={"lr": 3e-3},
            validation={"every": 60},
            checkpoint={"every": 60},
            schedule={"warmup": 5},
            network={"name": "fusion", "settings": {**SMALL_FUSION, "collaboration": {"enabled": False}}},
        )
    )
    assert summary["gate"]["passed"] and summary["gate"]["low_db"] > 0
    header = read_header(tmp_path / "run/model.safetensors")
    assert header["training"]["verdict"] == "fused"
    assert header["training"]["held_out_items"] == 6
    model = load_model(tmp_path / "run/model.safetensors")
    batch = next(iter(CacheReader(striped)))
    with torch.no_grad():
        output = model(batch.lr_BCHW, batch.sr_BECHW, batch.feats, batch.experts)
    fused, base = (float((image - batch.hr_BCHW).square().mean()) for image in (output.image_BCHW, output.base_BCHW))
    assert fused < base


def test_one_expert_alone_has_its_own_shrinkage(striped, tmp_path):
    """With one expert the file adds the share that was fitted with one, on images of which each saw another expert."""
    data = {"cache": str(striped), "patch": 8, "batch": 8, "hold_out": 12}
    settings = fusion_settings(striped, tmp_path / "run", data=data, steps=20, optimizer={"lr": 3e-3})
    summary = run(settings)
    model = load_model(tmp_path / "run/model.safetensors")
    assert model.record.fewer == tuple(summary["fewer"]) and len(summary["fewer"]) == 1
    task = FusionTask(settings, CacheSource(settings))
    model.record = TrainingRecord(verdict="fused")
    product = power = 0.0
    for index, batch in enumerate(task._half(0)):
        assert batch.sr_BECHW is not None
        alone = batch.experts[index % 2]
        with torch.no_grad():
            output = model(batch.lr_BCHW, batch.sr_BECHW[:, [index % 2]], {}, (alone,))
        inner = (..., slice(4, -4), slice(4, -4))
        learned = (output.image_BCHW - output.base_BCHW)[inner].double()
        product += float((learned * (batch.hr_BCHW - output.base_BCHW)[inner]).mean())
        power += float(learned.square().mean())
    assert summary["fewer"][0] in (0.0, pytest.approx(min(max(product / power, 0), 1), rel=1e-5))
    assert summary["fewer"][0] > 0  # the stripes are on every expert's image


@pytest.mark.parametrize(("workers", "optimizer"), [(0, "adamw"), (2, "adamw"), (0, "muon")])
def test_fusion_resumes_bit_for_bit(cache, tmp_path, workers, optimizer):
    data = {"cache": str(cache), "patch": 8, "batch": 4, "hold_out": 4}
    network = {"name": "fusion", "settings": {**SMALL_FUSION, "refine": {"width": 32, "blocks": 1}}}
    changes = {"fusion": {"expert_dropout": 0.4}, "network": network, "optimizer": {"name": optimizer, "lr": 1e-3}}
    run(fusion_settings(cache, tmp_path / "whole", data=data, **changes))
    settings = fusion_settings(cache, tmp_path / "cut", data={**data, "workers": workers}, **changes)
    with power_cut(step=3):
        run(settings)
    run(settings, resume=True)
    assert_same(last_state(tmp_path / "cut"), last_state(tmp_path / "whole"))


def test_dropout_leaves_at_least_one_expert_and_the_same_in_every_process(cache, tmp_path):
    settings = fusion_settings(cache, tmp_path / "run", fusion={"expert_dropout": 0.7})
    tasks = [FusionTask(settings, CacheSource(settings)) for _ in range(2)]
    raw = next(tasks[0].source.raw_batches(range(1), 0))
    batch = tasks[0].source.finish(raw, torch.device("cpu"))
    kept = [tasks[0]._drop_experts(batch, step) for step in range(40)]
    assert [one.experts for one in kept] == [tasks[1]._drop_experts(batch, step).experts for step in range(40)]
    assert {one.experts for one in kept} == {("ann",), ("bob",), ("ann", "bob")}
    for one in kept:
        assert set(one.feats) == set(one.experts)
        for index, name in enumerate(one.experts):
            assert torch.equal(one.sr_BECHW[:, index], batch.sr_BECHW[:, batch.experts.index(name)])


def test_log_images_are_whole_held_out_images_as_they_are(cache, tmp_path):
    """Truth and experts as the cache stores them, unturned; gates that sum to 1; faint changes made visible."""
    settings = fusion_settings(cache, tmp_path / "run")
    task = FusionTask(settings, CacheSource(settings))
    shown = task.pictures(task.network, 2)
    held = {batch.items[0]: batch for batch in task.source.held_out()}
    items = {name.split("/")[0] for name in shown}
    assert len(items) == 2 and items <= held.keys()
    for item in items:
        picture = Image.open(next((cache.parent / "hr").glob(f"{item.rsplit('-', 1)[0]}*")))
        truth = (shown[f"{item}/truth"] * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(truth, np.asarray(picture))
        for index, name in enumerate(("ann", "bob")):
            assert torch.equal(shown[f"{item}/expert {name}"], held[item].sr_BECHW[0, index])
        # Untrained, the fused image is the base: nothing has changed, which is middle grey.
        assert torch.equal(shown[f"{item}/base"], shown[f"{item}/fused"])
        changes = [image for name, image in shown.items() if item in name and " minus " in name]
        assert len(changes) == 3
        for image in changes:
            torch.testing.assert_close(image, torch.full_like(image, 0.5))
        weights = dict(zip(("ann", "bob"), task.network.base.weights(("ann", "bob"))[-1], strict=True))
        for name, weight in weights.items():
            red, green, blue = (float(plane.mean()) for plane in shown[f"{item}/gate {name}"])
            assert red == pytest.approx(min(abs(weight), 1)) and green == blue == pytest.approx(min(max(weight, 0), 1))


def test_negative_weights_show_as_red():
    red = signed(torch.tensor([[-0.25, 0.0, 0.5, 2.0]]))
    assert red[:, 0].T.tolist() == [[0.25, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5], [1, 1, 1]]


def test_live_training_with_every_augmentation(tmp_path):
    hr = write_pictures(tmp_path / "hr", 6, size=(128, 136))
    experts = [
        str(write_tiny_expert(tmp_path / f"{name}.safetensors", seed)) for seed, name in enumerate(("ann", "bob"))
    ]
    summary = run(
        fusion_settings(
            tmp_path,
            tmp_path / "run",
            steps=2,
            data={"hr": [str(hr)], "experts": experts, "patch": 8, "batch": 2, "hold_out": 2},
            augment=dict.fromkeys(("jitter", "blur", "cutblur", "mixup"), 0.5),
            network={"name": "fusion", "settings": SMALL_FUSION},
        ),
        live=True,
    )
    assert {"fused", "base", "ann", "bob"} <= set(summary["scores"])


def test_one_held_out_image_is_no_two_halves(cache, tmp_path):
    document = fusion_settings(cache, tmp_path / "run").data.model_dump(mode="json") | {"hold_out": 1}
    with pytest.raises(Refusal, match="no two halves"):
        run(fusion_settings(cache, tmp_path / "run", data=document))


def test_the_scores_are_those_of_the_file(striped, tmp_path, monkeypatch):
    monkeypatch.setattr("fusion.training.tasks.fusion.fit_shrinkage", lambda moments: 0.0)
    data = {"cache": str(striped), "patch": 8, "batch": 8, "hold_out": 12}
    summary = run(fusion_settings(striped, tmp_path / "run", data=data, optimizer={"lr": 3e-2}))
    assert summary["shrinkage"] == 0
    assert summary["scores"]["fused"] == summary["scores"]["base"]
