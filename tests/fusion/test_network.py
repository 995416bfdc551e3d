"""The fusion network's laws: it starts as the base, whoever is there, whatever is on, at any size."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion import network
from fusion.network import ExpertSlot, FusionSettings, FusionSR
from fusion.network.attention import LargeKernelAttention, attend
from fusion.network.hierarchy import shrink, spread
from fusion.network.parts import channel_norm, weigh, zero_mean_per_pixel, zero_sum
from fusion.network.settings import RefineSettings, every_phase
from imaging.refusal import Refusal
from imaging.settings import parse_settings
from tests.fusion.parts import PHASES, SLOTS, batch_for, random_record, small_model, small_settings, stir, without

NAMES = tuple(slot.name for slot in SLOTS)
SUBSETS = [names for size in (1, 2, 3) for names in combinations(NAMES, size)]


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


@pytest.mark.parametrize("present", SUBSETS)
def test_every_parameter_is_in_the_graph_whoever_is_there(present: tuple[str, ...]) -> None:
    model = stir(small_model())
    lr, sr, feats = batch_for(model.settings)
    places = [NAMES.index(name) for name in present]
    model(lr, sr[:, places], {name: feats.get(name) for name in present}, present).image_BCHW.sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


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


def test_the_order_of_experts_and_of_the_batch_does_not_matter() -> None:
    model = stir(small_model(base=random_record(NAMES)))
    lr, sr, feats = batch_for(model.settings)
    straight = model(lr, sr, feats)
    turned = model(lr, sr[:, [2, 0, 1]], feats, ("c", "a", "b"))
    torch.testing.assert_close(straight.image_BCHW, turned.image_BCHW, atol=1e-5, rtol=0)
    torch.testing.assert_close(straight.gates_BEHW, turned.gates_BEHW[:, [1, 2, 0]], atol=1e-5, rtol=0)
    swapped = model(lr.flip(0), sr.flip(0), {n: f.flip(0) for n, f in feats.items() if f is not None})
    torch.testing.assert_close(straight.image_BCHW, swapped.image_BCHW.flip(0), atol=1e-5, rtol=0)


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


def test_attention_is_torchs() -> None:
    query, key, value = (torch.randn(2, 5, 3, 4, 6, 7, dtype=torch.float64) for _ in range(3))
    order = (0, 4, 5, 2, 1, 3)  # B T N d H W -> B H W N T d
    reference = F.scaled_dot_product_attention(query.permute(order), key.permute(order), value.permute(order))
    torch.testing.assert_close(attend(query, key, value).permute(order), reference)


def test_norm_is_torchs() -> None:
    x = torch.randn(2, 6, 5, 4)
    reference = F.layer_norm(x.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(channel_norm(6)(x), reference)


def test_lka_is_decomposed_as_described() -> None:
    lka = LargeKernelAttention(6)
    layers = [lka.near, lka.across, lka.along, lka.mix]
    assert [layer.kernel_size for layer in layers] == [(5, 5), (1, 21), (21, 1), (1, 1)]
    assert [layer.dilation for layer in layers] == [(1, 1), (1, 3), (3, 1), (1, 1)]
    assert [layer.groups for layer in layers] == [6, 6, 6, 1]
    x = torch.zeros(1, 6, 71, 71)
    x[..., 35, 35] = 1
    reach = (lka.along(lka.across(lka.near(x))) - lka.along(lka.across(lka.near(x * 0)))).abs().sum(dim=(0, 1)) > 0
    rows = reach.any(dim=1).nonzero()
    assert (rows.min().item(), rows.max().item()) == (35 - 32, 35 + 32)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_shrinking_unshuffled_images_is_average_pooling(scale: int) -> None:
    images = torch.rand(2, 3, 3, 16, 24)
    unshuffled = F.pixel_unshuffle(images, 4)
    pooled = F.avg_pool2d(images.flatten(0, 1), 4 // scale).unflatten(0, (2, 3))
    torch.testing.assert_close(F.pixel_shuffle(shrink(unshuffled, scale, 4), scale), pooled)
    repeated = pooled.repeat_interleave(4 // scale, -1).repeat_interleave(4 // scale, -2)
    torch.testing.assert_close(F.pixel_shuffle(spread(shrink(unshuffled, scale, 4), scale, 4), 4), repeated)


def test_gradients_of_the_hand_written_parts_in_float64() -> None:
    def check(function: object, *shapes: tuple[int, ...]) -> bool:
        inputs = tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
        return torch.autograd.gradcheck(function, inputs, fast_mode=True)  # type: ignore[arg-type]

    assert check(attend, (1, 3, 2, 2, 2, 3), (1, 3, 2, 2, 2, 3), (1, 3, 2, 2, 2, 3))
    assert check(lambda d, x: weigh(zero_sum(d), x), (1, 3, 16, 2, 2), (1, 3, 48, 2, 2))
    assert check(zero_mean_per_pixel, (1, 48, 2, 3))
    assert check(channel_norm(4).double(), (1, 4, 3, 2))
    model = stir(small_model()).double()
    lr, sr, feats = batch_for(model.settings, 8, 9, batch=1)
    doubles = {name: feat.double() for name, feat in feats.items() if feat is not None}
    assert check(lambda a, b: model(a, b, doubles).image_BCHW, tuple(lr.shape), tuple(sr.shape))


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


def test_the_public_names_are_sorted_and_documented() -> None:
    assert network.__all__ == sorted(network.__all__)
    for name in network.__all__:
        assert (getattr(network, name).__doc__ or "").strip(), name
        assert f"`{name}" in (network.__doc__ or ""), name
