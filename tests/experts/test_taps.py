"""Every line of the catalog's tap table, against a real network of that architecture: it loads, fires, fits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from spandrel import ModelLoader

from experts.catalog import built_in_catalog
from experts.loading.spandrel_registry import registry
from experts.open import open_experts
from experts.run import NetworkExpert
from tests.experts.networks import small
from tests.experts.parts import image


@pytest.mark.parametrize("architecture", [*built_in_catalog().taps, "PLKSR (first)"])
def test_the_tap_of_each_architecture(architecture: str, tmp_path: Path) -> None:
    network = small(architecture)
    path = tmp_path / "net.safetensors"
    save_file({key: value.contiguous().clone() for key, value in network.state_dict().items()}, path)
    (expert,) = open_experts([str(path)])
    assert isinstance(expert, NetworkExpert)
    assert expert.identity.architecture == architecture.partition(" ")[0]
    lr_BCHW = image(40, 44) if architecture == "GRL" else image(24, 20)
    untouched = lr_BCHW.clone()
    output = expert.run(lr_BCHW)
    assert torch.equal(lr_BCHW, untouched)
    descriptor = ModelLoader(registry=registry()).load_from_file(path)
    with torch.inference_mode():
        torch.testing.assert_close(output.sr_BCHW.clamp(0, 1), descriptor(lr_BCHW), rtol=0, atol=1e-5)
    height, width = lr_BCHW.shape[-2:]
    assert output.sr_BCHW.shape == (1, 3, 4 * height, 4 * width)
    assert output.feat_BCHW is not None
    assert output.feat_BCHW.shape[-2:] == (height, width)
    assert output.feat_BCHW.shape[1] == expert.identity.channels > 3
    assert float(output.feat_BCHW.std()) > 0
