"""The shrinkage of what was learned: a least-squares factor on every contribution, kept in the model's file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from skimage.metrics import peak_signal_noise_ratio

from fusion.network import TrainingRecord
from fusion.network.network import load_model
from fusion.network.save import read_header, save_model
from fusion.training.judge.shrinkage import ErrorMoments, error_moments_of, fit_shrinkage, gain_db
from imaging.refusal import Refusal
from imaging.settings import parse_settings
from tests.fusion.parts import batch_for, random_record, small_model, stir

NAMES = ("a", "b", "c")


def moments(pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> list[ErrorMoments]:
    """The error moments of each triple."""
    return [error_moments_of(*pair) for pair in pairs]


def items(amplitude: float) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Truths that lie a little beside their base, and answers in the right direction, `amplitude` times too far."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(4):
        base = torch.rand(1, 3, 24, 28, generator=generator)
        wanted = 0.02 * torch.randn(base.shape, generator=generator)
        noise = 0.01 * torch.randn(base.shape, generator=generator)
        found.append((base, base + amplitude * (wanted + noise), base + wanted))
    return found


@pytest.mark.parametrize("amplitude", [1.5, 3.0])
def test_it_is_the_least_squares_factor(amplitude: float) -> None:
    pairs = items(amplitude)
    learned, wanted = (
        np.concatenate([(x - base)[..., 4:-4, 4:-4].flatten().double().numpy() for base, x in chosen])
        for chosen in ([(b, f) for b, f, _ in pairs], [(b, t) for b, _, t in pairs])
    )
    direct = np.linalg.lstsq(learned[:, None], wanted, rcond=None)[0][0]
    assert fit_shrinkage(moments(pairs)) == pytest.approx(direct, rel=1e-6)


def test_it_is_clipped_to_between_0_and_1() -> None:
    assert fit_shrinkage(moments(items(0.2))) == 1.0
    assert fit_shrinkage(moments(items(-1.0))) == 0.0
    assert fit_shrinkage(moments([(torch.rand(1, 3, 20, 20),) * 3])) == 1.0  # an untrained network changes nothing


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0])
def test_its_gain_is_that_of_the_images(factor: float) -> None:
    pairs = items(1.5)
    gains = [
        peak_signal_noise_ratio(
            truth[..., 4:-4, 4:-4].numpy(), (base + factor * (fused - base))[..., 4:-4, 4:-4].numpy(), data_range=1
        )
        - peak_signal_noise_ratio(truth[..., 4:-4, 4:-4].numpy(), base[..., 4:-4, 4:-4].numpy(), data_range=1)
        for base, fused, truth in pairs
    ]
    assert gain_db(moments(pairs), factor) == pytest.approx(np.mean(gains), abs=1e-4)


def test_fewer_experts_have_a_shrinkage_of_their_own() -> None:
    model = stir(small_model(base=random_record(NAMES)))
    lr, sr, feats = batch_for(model.settings)
    for present, factor in ((("b",), 0.0), (("a", "c"), 0.5), (NAMES, 0.75)):
        picked = sr[:, [NAMES.index(name) for name in present]]
        seen = {name: feats[name] for name in present if name in feats}
        with torch.no_grad():
            model.record = TrainingRecord(verdict="fused")
            full = model(lr, picked, seen, present)
            model.record = TrainingRecord(verdict="fused", shrinkage=0.75, fewer=(0.0, 0.5))
            shrunk = model(lr, picked, seen, present)
        changed = full.image_BCHW - full.base_BCHW
        assert float(changed.abs().max()) > 1e-4
        torch.testing.assert_close(shrunk.image_BCHW - shrunk.base_BCHW, factor * changed, atol=1e-6, rtol=0)


def test_contributions_are_multiplied_by_it_and_the_file_keeps_it(tmp_path) -> None:
    model = stir(small_model(base=random_record(NAMES)))
    lr, sr, feats = batch_for(model.settings)
    with torch.no_grad():
        full = model(lr, sr, feats)
        model.record = TrainingRecord(verdict="fused", shrinkage=0.25)
        shrunk = model(lr, sr, feats)
        save_model(model, tmp_path / "model.safetensors")
        again = load_model(tmp_path / "model.safetensors")(lr, sr, feats)
    torch.testing.assert_close(
        shrunk.image_BCHW - shrunk.base_BCHW, 0.25 * (full.image_BCHW - full.base_BCHW), atol=1e-6, rtol=0
    )
    base_gate = full.gates_BEHW - 4 * (full.gates_BEHW - shrunk.gates_BEHW) / 3
    torch.testing.assert_close(
        base_gate,
        torch.tensor(model.base.weights(NAMES)[-1])[None, :, None, None].expand_as(base_gate),
        atol=1e-5,
        rtol=0,
    )
    torch.testing.assert_close(shrunk.gates_BEHW.sum(1), torch.ones(2, 48, 40), atol=1e-5, rtol=0)
    assert torch.equal(again.image_BCHW, shrunk.image_BCHW)


def test_old_files_call_it_belief_and_new_ones_shrinkage(tmp_path) -> None:
    written = stir(small_model(base=random_record(NAMES)))
    written.record = TrainingRecord(verdict="fused", shrinkage=0.6)
    save_model(written, tmp_path / "written.safetensors")
    before = _as_written_before(tmp_path / "written.safetensors", tmp_path / "before.safetensors")
    old = read_header(before)["training"]
    assert 0 < old["belief"] < 1 and "shrinkage" not in old
    model = load_model(before)
    assert model.record.shrinkage == old["belief"]
    save_model(model, tmp_path / "model.safetensors")
    new = read_header(tmp_path / "model.safetensors")["training"]
    assert new["shrinkage"] == old["belief"] and "belief" not in new
    assert new.pop("expert_specs") == {}  # what old files do not have
    assert {**new, "belief": new["shrinkage"]} == {**old, "shrinkage": old["belief"]}
    inputs = batch_for(model.settings)
    with torch.no_grad():
        image, again = model(*inputs).image_BCHW, load_model(tmp_path / "model.safetensors")(*inputs).image_BCHW
        model.record = TrainingRecord(verdict="fused")
        full = model(*inputs)
    assert torch.equal(image, again)
    expected = full.base_BCHW + old["belief"] * (full.image_BCHW - full.base_BCHW)
    assert not torch.allclose(image, full.image_BCHW, atol=1e-6)
    torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)


def _as_written_before(path: Path, target: Path) -> Path:
    """The same model as releases before 0.2.0 wrote it: `belief`, no experts' specs, no digest."""
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    training = json.loads(metadata["training"])
    training["belief"] = training.pop("shrinkage")
    del training["expert_specs"], metadata["digest"]
    save_file(tensors, target, metadata=metadata | {"training": json.dumps(training)})
    return target


def test_a_header_with_both_names_is_refused() -> None:
    with pytest.raises(Refusal, match="belief"):
        parse_settings(TrainingRecord, {"shrinkage": 0.5, "belief": 0.6}, where="header")
