"""The fusion network's laws: it starts as the base, whatever is on, at any size, and what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion import network
from fusion.network import ExpertSlot, FusionSettings, FusionSR
from fusion.network.settings import every_phase
from imaging.refusal import Refusal
from imaging.settings import parse_settings
from tests.fusion.parts import NAMES, PHASES, batch_for, random_record, small_model, small_settings, stir, without


@pytest.mark.parametrize("groups", [((0, 1, 2),), ((0,), (1, 2))])
@pytest.mark.parametrize("pull", [0.0, 1.07])
@pytest.mark.parametrize("train", [True, False])
def test_untrained_it_is_the_base_bit_for_bit(groups: tuple[tuple[int, ...], ...], pull: float, train: bool) -> None:
    model = small_model(base=random_record(NAMES, groups=groups, pull=pull)).train(train)
    lr, sr, feats = batch_for(model.settings)
    output = model(lr, sr, feats)
    assert torch.equal(output.image_BCHW, model.base(lr, sr, NAMES))
    if len(groups) == 1 and not pull:
        first, second, third = model.base.weights(NAMES)[0]
        assert torch.equal(output.image_BCHW, sr[:, 0] * first + sr[:, 1] * second + sr[:, 2] * third)
    assert all(part.abs().max() == 0 for part in output.contributions.values())


@pytest.mark.parametrize("phases_on", [{"gating", "refine"}, set(PHASES)])
def test_the_network_has_its_size_and_starts_as_the_base(phases_on: set[str]) -> None:
    torch.manual_seed(0)
    model = FusionSR() if len(phases_on) == 2 else FusionSR(every_phase())
    phases = model.parameters_per_phase()
    assert 1_000_000 <= sum(phases.values()) <= 1_200_000
    assert sum(phases.values()) == sum(p.numel() for p in model.parameters())
    assert set(PHASES) & set(phases) == phases_on
    lr, sr, feats = batch_for(model.settings, 8, 8, batch=1)
    with torch.no_grad():
        output = model(lr, sr, feats)
    assert torch.equal(output.image_BCHW, output.base_BCHW)


def test_one_step_away_from_zero_every_parameter_has_a_gradient() -> None:
    model = small_model()
    lr, sr, feats = batch_for(model.settings, 24, 24)
    target = sr.mean(dim=1) + 0.01 * torch.randn(sr.shape[0], 3, 96, 96)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        (model(lr, sr, feats).image_BCHW - target).square().mean().backward()
        optimizer.step()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


@pytest.mark.parametrize("off", [(p,) for p in PHASES] + [tuple(p for p in PHASES if p != on) for on in PHASES])
def test_with_phases_off_the_rest_does_no_harm_and_trains(off: tuple[str, ...]) -> None:
    model = small_model(**without(*off))
    assert not set(off) & set(model.parameters_per_phase())
    lr, sr, feats = batch_for(model.settings, 9, 8)
    output = model(lr, sr, feats)
    assert torch.equal(output.image_BCHW, output.base_BCHW)
    assert set(output.contributions) == {"collaboration", "hierarchy", "gating", "refine", "edges"} & set(
        model.parameters_per_phase()
    )
    if not list(model.parameters()):  # bands alone guide nobody: they are not built
        assert {"bands", "cross_band"} - set(off)
        return
    stir(model)(lr, sr, feats).image_BCHW.square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert not torch.equal(model(lr, sr, feats).image_BCHW, output.base_BCHW)


@settings(max_examples=12, deadline=None)
@given(st.integers(8, 29), st.integers(8, 29))
def test_any_size_from_8x8_up(height: int, width: int) -> None:
    model = stir(small_model())
    lr, sr, feats = batch_for(model.settings, height, width, batch=1)
    with torch.no_grad():
        output = model(lr, sr, feats)
    assert output.image_BCHW.shape == output.base_BCHW.shape == (1, 3, 4 * height, 4 * width)
    assert output.gates_BEHW.shape == (1, 3, 4 * height, 4 * width)
    assert output.difficulty_B1HW is not None
    assert output.difficulty_B1HW.shape == (1, 1, 4 * height, 4 * width)
    assert 0 <= output.difficulty_B1HW.min() <= output.difficulty_B1HW.max() <= 1
    assert output.image_BCHW.isfinite().all()


def test_the_image_is_the_base_plus_its_contributions() -> None:
    model = stir(small_model(base=random_record(NAMES)))
    lr, sr, feats = batch_for(model.settings)
    output = model(lr, sr, feats)
    total = output.base_BCHW
    for part in output.contributions.values():
        assert part.abs().max() > 0
        total = total + part
    assert torch.equal(output.image_BCHW, total)
    torch.testing.assert_close(output.gates_BEHW.sum(dim=1), torch.ones(2, 48, 40), atol=1e-5, rtol=0)


def test_where_experts_agree_weighing_them_changes_nothing() -> None:
    model = stir(small_model(base=random_record(NAMES)), scale=0.3)
    lr, sr, feats = batch_for(model.settings)
    same = sr[:, :1].expand(-1, 3, -1, -1, -1)
    output = model(lr, same, feats)
    for phase in ("collaboration", "hierarchy", "gating"):
        assert output.contributions[phase].abs().max() < 1e-5
    torch.testing.assert_close(output.base_BCHW, sr[:, 0])


def test_whatever_is_learned_cannot_brighten() -> None:
    model = stir(small_model(), scale=0.1)
    lr, sr, feats = batch_for(model.settings)
    output = model(lr, sr, feats)
    for part in output.contributions.values():
        assert part.abs().max() > 1e-3
        assert F.avg_pool2d(part, 4).abs().max() < 1e-6 * part.abs().max() + 1e-8


def test_the_base_turns_and_mirrors_with_the_images() -> None:
    model = small_model(base=random_record(NAMES, groups=((0,), (1, 2))))
    lr, sr, feats = batch_for(model.settings, 12, 12)
    for turn in (lambda t: t.flip(-1), lambda t: t.flip(-2), lambda t: t.rot90(1, (-2, -1))):
        turned_feats = {name: turn(feat) for name, feat in feats.items() if feat is not None}
        turned = model(turn(lr), turn(sr), turned_feats).image_BCHW
        torch.testing.assert_close(turned, turn(model(lr, sr, feats).image_BCHW), atol=1e-6, rtol=0)


def test_training_and_evaluation_do_the_same_arithmetic_without_a_clamp() -> None:
    model = stir(small_model())
    lr, sr, feats = batch_for(model.settings)
    bright = sr + 0.5
    trained, evaluated = model.train()(lr, bright, feats), model.eval()(lr, bright, feats)
    assert torch.equal(trained.image_BCHW, evaluated.image_BCHW)
    assert evaluated.image_BCHW.max() > 1


def test_wrong_inputs_are_refused() -> None:
    model = small_model()
    lr, sr, feats = batch_for(model.settings)
    wrong = [
        (lr, sr[:, :2], feats, None),
        (lr, sr, feats, ("a", "b", "x")),
        (lr, sr, feats, ("a", "a", "b")),
        (lr, sr[:, :0], feats, ()),
        (lr[..., :7], sr[..., :28], None, None),
        (lr, sr[..., :-4], feats, None),
        (lr, sr, feats | {"a": torch.zeros(2, 5, 12, 10)}, None),
        (lr[:, :1], sr, feats, None),
    ]
    for inputs in wrong:
        with pytest.raises(Refusal):
            model(*inputs)
    with pytest.raises(Refusal, match="fitted for"):
        model.set_base(random_record(("a", "b")))


def test_settings_refuse_what_cannot_be() -> None:
    with pytest.raises(Refusal, match="did you mean 'gating'"):
        parse_settings(FusionSettings, {"gatings": {"enabled": False}}, where="test")
    with pytest.raises(Refusal, match="heads"):
        parse_settings(FusionSettings, {"cross_band": {"inner": 10}}, where="test")
    with pytest.raises(Refusal, match="twice"):
        parse_settings(FusionSettings, {"experts": [{"name": "a", "channels": 1}] * 2}, where="test")
    known = small_settings(slots=[ExpertSlot(name="a", channels=0, sha256="ab" * 32)])
    known.check_weights({"a": "ab" * 32})
    with pytest.raises(Refusal, match="not those this model was trained on"):
        known.check_weights({"a": "cd" * 32})


def test_a_model_that_did_not_win_gives_the_base() -> None:
    model = stir(small_model(base=random_record(NAMES)))
    model.record = model.record.model_copy(update={"verdict": "base"})
    lr, sr, feats = batch_for(model.settings)
    output = model(lr, sr, feats)
    assert torch.equal(output.image_BCHW, model.base(lr, sr, NAMES))
    assert output.contributions == {}
    torch.testing.assert_close(output.gates_BEHW.sum(dim=1), torch.ones(2, 48, 40))


def test_the_public_names_are_sorted_and_documented() -> None:
    assert network.__all__ == sorted(network.__all__)
    for name in network.__all__:
        assert (getattr(network, name).__doc__ or "").strip(), name
        assert f"`{name}" in (network.__doc__ or ""), name
