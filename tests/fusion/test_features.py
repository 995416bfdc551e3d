"""The scale of the experts' features: against NumPy over all pixels at once, in the network, in its file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from fusion.network import FusionSR
from fusion.network.network import load_model
from fusion.network.save import save_model
from fusion.training.tasks.initial_statistics import fit_moments
from imaging.refusal import Refusal
from tests.fusion.parts import small_settings

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def items() -> list[dict[str, Tensor]]:
    """Two experts' features of images of several sizes, far from zero, channels of very different strength."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for height, width in ((5, 7), (9, 4), (6, 6)):
        a = 40 + 30 * torch.randn(1, 6, height, width, generator=generator)
        b = torch.tensor([0.001, 1.0, 5.0, 0.0])[:, None, None] * torch.randn(2, 4, height, width, generator=generator)
        made.append({"a": a, "b": b})
    return made


def test_moments_are_those_of_all_pixels_together() -> None:
    moments = fit_moments(iter(items()))
    for name in ("a", "b"):
        all_pixels = np.concatenate([item[name].movedim(1, 0).flatten(1).numpy() for item in items()], axis=1)
        mean_C, spread_C = moments[name]
        np.testing.assert_allclose(mean_C, all_pixels.mean(1, dtype=np.float64), rtol=1e-5, atol=1e-6)
        spread = all_pixels.astype(np.float64).std(1)
        np.testing.assert_allclose(spread_C, np.where(spread > 0, spread, 1), rtol=1e-4)


def test_features_that_are_not_finite_are_refused() -> None:
    broken = items()
    broken[1]["b"][0, 2, 3, 3] = torch.nan
    with pytest.raises(Refusal, match="expert b.*not finite"):
        fit_moments(iter(broken))


def test_the_unit_of_an_experts_features_does_not_matter() -> None:
    """A hundred times stronger features, measured anew, give the same image; strength within the image is kept."""
    torch.manual_seed(1)
    network = FusionSR(small_settings()).eval()
    assert network.refine is not None and network.refine.features is not None
    read = network.refine.features.project["0"]
    feats = items()[0]["a"]
    network.set_feature_moments(fit_moments([{"a": feats}]))
    weak = read(feats)
    assert torch.isfinite(weak).all() and weak.std() > 0
    strong = 100 * feats - 7
    network.set_feature_moments(fit_moments([{"a": strong}]))
    torch.testing.assert_close(read(strong), weak, rtol=1e-3, atol=1e-3)
    centre = strong.mean((0, 2, 3), keepdim=True)
    bias = read[1].bias[:, None, None]
    louder = read(centre + 2 * (strong - centre))
    torch.testing.assert_close(louder - bias, 2 * (weak - bias), rtol=1e-3, atol=1e-3)


def test_the_scale_travels_in_the_models_file(tmp_path: Path) -> None:
    network = FusionSR(small_settings())
    network.set_feature_moments(fit_moments(iter(items())))
    save_model(network, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors").state_dict()
    for name, tensor in network.state_dict().items():
        if name.endswith(("mean_C", "spread_C")):
            assert torch.equal(loaded[name], tensor)
            assert not torch.equal(tensor, torch.zeros_like(tensor))
