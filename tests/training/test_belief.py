"""How much of what was learned is believed: the least-squares share, of every contribution, kept in the file."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from fusion.network import TrainingRecord
from fusion.network.save import load_model, save_model
from fusion.training.judge.shrinkage import ErrorMoments, error_moments_of, fit_shrinkage, gain_db
from tests.fusion.parts import batch_for, random_record, small_model, stir

NAMES = ("a", "b", "c")


def lessons(pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> list[ErrorMoments]:
    """What each of them teaches."""
    return [error_moments_of(*pair) for pair in pairs]


def items(loudness: float) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Truths that lie a little beside their base, and answers in the right direction, so many times too far."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(4):
        base = torch.rand(1, 3, 24, 28, generator=generator)
        wanted = 0.02 * torch.randn(base.shape, generator=generator)
        noise = 0.01 * torch.randn(base.shape, generator=generator)
        found.append((base, base + loudness * (wanted + noise), base + wanted))
    return found


@pytest.mark.parametrize("loudness", [1.5, 3.0])
def test_it_is_the_least_squares_share(loudness: float) -> None:
    pairs = items(loudness)
    learned, wanted = (
        np.concatenate([(x - base)[..., 4:-4, 4:-4].flatten().double().numpy() for base, x in chosen])
        for chosen in ([(b, f) for b, f, _ in pairs], [(b, t) for b, _, t in pairs])
    )
    direct = np.linalg.lstsq(learned[:, None], wanted, rcond=None)[0][0]
    assert fit_shrinkage(lessons(pairs)) == pytest.approx(direct, rel=1e-6)


def test_it_never_exaggerates_nor_turns_round() -> None:
    assert fit_shrinkage(lessons(items(0.2))) == 1.0
    assert fit_shrinkage(lessons(items(-1.0))) == 0.0
    assert fit_shrinkage(lessons([(torch.rand(1, 3, 20, 20),) * 3])) == 1.0  # an untrained network has said nothing


@pytest.mark.parametrize("belief", [0.0, 0.3, 1.0])
def test_its_gain_is_that_of_the_images(belief: float) -> None:
    pairs = items(1.5)
    gains = [
        peak_signal_noise_ratio(
            truth[..., 4:-4, 4:-4].numpy(), (base + belief * (fused - base))[..., 4:-4, 4:-4].numpy(), data_range=1
        )
        - peak_signal_noise_ratio(truth[..., 4:-4, 4:-4].numpy(), base[..., 4:-4, 4:-4].numpy(), data_range=1)
        for base, fused, truth in pairs
    ]
    assert gain_db(lessons(pairs), belief) == pytest.approx(np.mean(gains), abs=1e-4)


def test_fewer_experts_have_a_belief_of_their_own() -> None:
    model = stir(small_model(base=random_record(NAMES)))
    lr, sr, feats = batch_for(model.settings)
    for present, share in ((("b",), 0.0), (("a", "c"), 0.5), (NAMES, 0.75)):
        picked = sr[:, [NAMES.index(name) for name in present]]
        seen = {name: feats[name] for name in present if name in feats}
        with torch.no_grad():
            model.record = TrainingRecord(verdict="fused")
            loud = model(lr, picked, seen, present)
            model.record = TrainingRecord(verdict="fused", belief=0.75, fewer=(0.0, 0.5))
            quiet = model(lr, picked, seen, present)
        changed = loud.image_BCHW - loud.base_BCHW
        assert float(changed.abs().max()) > 1e-4
        torch.testing.assert_close(quiet.image_BCHW - quiet.base_BCHW, share * changed, atol=1e-6, rtol=0)


def test_the_network_adds_that_share_and_the_file_keeps_it(tmp_path) -> None:
    model = stir(small_model(base=random_record(NAMES)))
    lr, sr, feats = batch_for(model.settings)
    with torch.no_grad():
        loud = model(lr, sr, feats)
        model.record = TrainingRecord(verdict="fused", belief=0.25)
        quiet = model(lr, sr, feats)
        save_model(model, tmp_path / "model.safetensors")
        again = load_model(tmp_path / "model.safetensors")(lr, sr, feats)
    torch.testing.assert_close(
        quiet.image_BCHW - quiet.base_BCHW, 0.25 * (loud.image_BCHW - loud.base_BCHW), atol=1e-6, rtol=0
    )
    base_gate = loud.gates_BEHW - 4 * (loud.gates_BEHW - quiet.gates_BEHW) / 3
    torch.testing.assert_close(
        base_gate,
        torch.tensor(model.base.weights(NAMES)[-1])[None, :, None, None].expand_as(base_gate),
        atol=1e-5,
        rtol=0,
    )
    torch.testing.assert_close(quiet.gates_BEHW.sum(1), torch.ones(2, 48, 40), atol=1e-5, rtol=0)
    assert torch.equal(again.image_BCHW, quiet.image_BCHW)
