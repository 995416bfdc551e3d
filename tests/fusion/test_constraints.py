"""The optional hard constraints after phase 7 hold: LR consistency and the envelope."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.network.consistency import Envelope, LRConsistency
from fusion.network.settings import ConsistencySettings, EnvelopeSettings, FusionSettings
from imaging.resize import downscale
from tests.fusion.parts import batch_for, small_model, stir


def constrained(tolerance: float, scale: int = 4) -> FusionSettings:
    return FusionSettings(scale=scale, consistency=ConsistencySettings(enabled=True, tolerance=tolerance))


@settings(max_examples=10, deadline=None)
@given(st.integers(8, 24), st.integers(8, 24), st.sampled_from([0.0, 0.5 / 255, 0.02]))
def test_the_downscale_of_the_output_is_the_input(height: int, width: int, tolerance: float) -> None:
    image, lr = torch.rand(1, 3, 4 * height, 4 * width), torch.rand(1, 3, height, width)
    projected = LRConsistency(constrained(tolerance))(image, lr)
    assert (downscale(projected, 4) - lr).abs().max() <= tolerance + 1e-5


def test_it_is_a_projection_onto_the_images_that_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(1, 3, 40, 52, generator=generator, dtype=torch.float64)
    image = truth + 0.05 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
    project = LRConsistency(constrained(0))
    lr = downscale(truth, 4)
    once = project(image, lr)
    torch.testing.assert_close(project(once, lr), once)
    # The change is at right angles to what may remain: Pythagoras, and never further from the truth.
    torch.testing.assert_close(
        (image - truth).square().sum(), (image - once).square().sum() + (once - truth).square().sum()
    )
    inputs = image.requires_grad_(), lr
    assert torch.autograd.gradcheck(lambda x: project(x, inputs[1]), (inputs[0],), fast_mode=True)


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_no_pixel_leaves_the_envelope(margin: float) -> None:
    sr, base, image = torch.rand(2, 3, 3, 8, 8), torch.rand(2, 3, 8, 8), 4 * torch.rand(2, 3, 8, 8) - 1
    held = Envelope(EnvelopeSettings(enabled=True, margin=margin))(image, sr, base)
    everything = torch.cat([sr, base.unsqueeze(1)], dim=1)
    assert (held <= everything.amax(dim=1) + margin + 1e-6).all()
    assert (held >= everything.amin(dim=1) - margin - 1e-6).all()
    inside = (image <= everything.amax(dim=1)) & (image >= everything.amin(dim=1))
    assert torch.equal(held[inside], image[inside])


def test_in_the_network_both_hold_and_the_start_stays_the_base() -> None:
    model = stir(small_model(envelope=EnvelopeSettings(enabled=True)), scale=0.2)
    lr, sr, feats = batch_for(model.settings)
    output = model(lr, sr, feats)
    assert (output.image_BCHW <= torch.maximum(sr.amax(dim=1), output.base_BCHW)).all()
    assert (output.image_BCHW >= torch.minimum(sr.amin(dim=1), output.base_BCHW)).all()
    untrained = small_model(envelope=EnvelopeSettings(enabled=True))
    assert torch.equal(untrained(lr, sr, feats).image_BCHW, untrained.base(lr, sr, untrained.settings.names))
    fitting = stir(small_model(consistency=ConsistencySettings(enabled=True, tolerance=0.001)))
    assert (downscale(fitting(lr, sr, feats).image_BCHW, 4) - lr).abs().max() <= 0.001 + 1e-5


def test_an_expert_that_overshoots_is_read_as_its_8_bit_image() -> None:
    """Caches hold experts' images in 8 bits: at sharp edges a running expert must not say more than it said there."""
    model = stir(small_model())
    lr, sr, feats = batch_for(model.settings)
    loud = torch.where(sr > 0.8, sr + 0.3, torch.where(sr < 0.2, sr - 0.3, sr))
    assert loud.min() < 0 and loud.max() > 1
    with torch.no_grad():
        assert torch.equal(model(lr, loud, feats).image_BCHW, model(lr, loud.clamp(0, 1), feats).image_BCHW)
