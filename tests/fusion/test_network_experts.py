"""Any experts: subsets, absent ones, any number and order of them, and their features."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from fusion.network import ExpertSlot
from fusion.network.settings import RefineSettings
from imaging.refusal import Refusal
from tests.fusion.parts import NAMES, batch_for, random_record, small_model, small_settings, stir, without

SUBSETS = [names for size in (1, 2, 3) for names in combinations(NAMES, size)]


@pytest.mark.parametrize("present", SUBSETS)
def test_every_parameter_is_in_the_graph_whoever_is_there(present: tuple[str, ...]) -> None:
    model = stir(small_model())
    lr, sr, feats = batch_for(model.settings)
    places = [NAMES.index(name) for name in present]
    model(lr, sr[:, places], {name: feats.get(name) for name in present}, present).image_BCHW.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("present", SUBSETS)
def test_any_subset_starts_as_its_own_base(present: tuple[str, ...]) -> None:
    record = random_record(NAMES)
    model = small_model(base=record)
    lr, sr, feats = batch_for(model.settings)
    subset = sr[:, [NAMES.index(name) for name in present]]
    weights = record.solve(present)[0]
    output = model(lr, subset, feats, present)
    expected = (subset * torch.tensor(weights)[:, None, None, None]).sum(dim=1)
    torch.testing.assert_close(output.image_BCHW, expected)
    torch.testing.assert_close(output.gates_BEHW[0, :, 0, 0], torch.tensor(weights))


def test_an_absent_expert_has_no_say() -> None:
    model = stir(small_model(base=random_record(NAMES)))
    lr, sr, feats = batch_for(model.settings)
    few = model(lr, sr[:, :2], {name: feats[name] for name in ("a", "b")}, ("a", "b"))
    same = model(lr, sr[:, :2], feats | {"c": torch.full((2, 5, 3, 3), torch.nan)}, ("a", "b"))
    assert torch.equal(few.image_BCHW, same.image_BCHW)
    assert few.gates_BEHW.shape[1] == 2
    alone = model(lr, sr[:, 2:], None, ("c",))
    torch.testing.assert_close(alone.gates_BEHW, torch.ones_like(alone.gates_BEHW))


def test_features_count_and_may_be_missing() -> None:
    model = stir(small_model())
    lr, sr, feats = batch_for(model.settings)
    full, half, none = (model(lr, sr, given).image_BCHW for given in (feats, {"a": feats["a"], "b": None}, None))
    assert not torch.equal(full, half)
    assert not torch.equal(half, none)
    assert all(image.isfinite().all() for image in (full, half, none))


def test_without_features_no_projection_exists() -> None:
    model = stir(small_model(features="none"))
    lr, sr, feats = batch_for(model.settings)
    assert not any(name.startswith("collaboration.tokens.project") for name, _ in model.named_parameters())
    assert torch.equal(model(lr, sr).image_BCHW, model(lr, sr, feats).image_BCHW)


def test_features_of_the_experts_named() -> None:
    """Those of the others change nothing, and have no layers; a name that the model does not know is refused."""
    slots = [ExpertSlot(name="a", channels=6), ExpertSlot(name="on", channels=4)]  # `on` is a part of `none`
    model = stir(small_model(slots=slots, features=("a",)))
    lr, sr, feats = batch_for(model.settings)
    other = {"a": feats["a"], "on": torch.randn(lr.shape[0], 4, *lr.shape[-2:])}
    assert torch.equal(model(lr, sr, feats).image_BCHW, model(lr, sr, other).image_BCHW)
    assert not torch.equal(model(lr, sr, feats).image_BCHW, model(lr, sr, None).image_BCHW)
    assert model.refine is not None and model.refine.features is not None
    assert list(model.refine.features.project) == ["0"]
    assert small_settings(slots, features="none").channels_of("on") == 0
    with pytest.raises(Refusal, match="expert 'b' is unknown to this model"):
        small_settings(slots, features=("b",))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_number_of_experts(count: int) -> None:
    slots = [ExpertSlot(name=f"e{i}", channels=3 * i) for i in range(count)]
    model = stir(small_model(slots=slots))
    lr, sr, feats = batch_for(model.settings)
    output = model(lr, sr, feats)
    assert output.gates_BEHW.shape == (2, count, 48, 40)
    torch.testing.assert_close(output.gates_BEHW.sum(dim=1), torch.ones(2, 48, 40), atol=1e-5, rtol=0)


def test_the_order_of_experts_and_of_the_batch_does_not_matter() -> None:
    model = stir(small_model(base=random_record(NAMES)))
    lr, sr, feats = batch_for(model.settings)
    straight = model(lr, sr, feats)
    turned = model(lr, sr[:, [2, 0, 1]], feats, ("c", "a", "b"))
    torch.testing.assert_close(straight.image_BCHW, turned.image_BCHW, atol=1e-5, rtol=0)
    torch.testing.assert_close(straight.gates_BEHW, turned.gates_BEHW[:, [1, 2, 0]], atol=1e-5, rtol=0)
    swapped = model(lr.flip(0), sr.flip(0), {n: f.flip(0) for n, f in feats.items() if f is not None})
    torch.testing.assert_close(straight.image_BCHW, swapped.image_BCHW.flip(0), atol=1e-5, rtol=0)


def test_a_direct_refinement_reads_each_experts_features() -> None:
    quiet = without("bands", "cross_band", "collaboration", "hierarchy", "gating", "edges")
    direct = RefineSettings(width=8, blocks=2, direct=True)
    untrained = small_model(base=random_record(NAMES), refine=direct, **quiet)
    lr, sr, feats = batch_for(untrained.settings)
    assert torch.equal(untrained(lr, sr, feats).image_BCHW, untrained.base(lr, sr, NAMES))
    model = stir(untrained)
    before = model(lr, sr, feats).image_BCHW
    for name in ("a", "b"):
        heard = model(lr, sr, feats | {name: feats[name] + torch.randn(feats[name].shape)}).image_BCHW
        assert (heard - before).abs().max() > 1e-4
        deaf = model(lr, sr, {other: feat for other, feat in feats.items() if other != name}).image_BCHW
        assert torch.isfinite(deaf).all() and (deaf - before).abs().max() > 1e-4
    model(lr, sr[:, :1], feats, ("a",)).image_BCHW.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert any(p.grad.abs().max() > 0 for p in model.refine.features.project["0"].parameters())
    assert all(p.grad.abs().max() == 0 for p in model.refine.features.project["1"].parameters())
