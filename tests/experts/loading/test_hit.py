"""HiT-SRF against the published code and its stored images; its bias is computed once and never stale."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experts.native.hit import HiTSRF
from experts.native.hit_correlation import Correlation
from experts.open import open_experts
from experts.run import NetworkExpert
from imaging.files import read_rgb
from tests.experts.parts import image, save_network

SMALL: dict[str, Any] = {"embed_dim": 40, "depths": [6], "num_heads": [4]}
PUBLISHED = "team54_HITSR.pth"


def small_hit(seed: int = 0) -> HiTSRF:
    torch.manual_seed(seed)
    return HiTSRF(**SMALL).eval()


@pytest.fixture(scope="module")
def real_models(shared_data: Path) -> Path:
    folder = shared_data.parent / "real_models"
    if not (folder / "weights" / PUBLISHED).is_file():
        pytest.skip("published weights not present in shared/real_models")
    return folder


@pytest.fixture(scope="module")
def published_code(real_models: Path) -> ModuleType:
    pytest.importorskip("timm", reason="the published code of HiT-SRF needs timm")
    spec = importlib.util.spec_from_file_location("published_hit", real_models / "code" / "team54_HITSR.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("height", "width"), [(19, 45), (40, 64)])
def test_equal_to_the_published_code(published_code: ModuleType, height: int, width: int) -> None:
    ours = small_hit()
    theirs = published_code.HiT_SRF(**SMALL, img_size=64).eval()
    theirs.load_state_dict(ours.state_dict())
    lr_BCHW = image(height, width, batch=2)
    with torch.no_grad():
        torch.testing.assert_close(ours(lr_BCHW), theirs(lr_BCHW), rtol=0, atol=1e-5)


def test_a_file_tells_its_settings_and_loads_without_code(tmp_path: Path) -> None:
    path = save_network(small_hit(), tmp_path / "h.pth")
    (expert,) = open_experts([str(path)])
    assert isinstance(expert, NetworkExpert)
    assert expert.identity.architecture == "HiT_SRF"
    assert (expert.identity.tap, expert.identity.channels) == ("conv_after_body", 40)
    lr_BCHW = image(13, 70)
    with torch.no_grad():
        torch.testing.assert_close(expert.run(lr_BCHW).sr_BCHW, small_hit()(lr_BCHW), rtol=0, atol=1e-6)
    windows = [one.window for one in expert.network.modules() if isinstance(one, Correlation)]
    assert windows == [(4, 4), (8, 8), (16, 16), (32, 32), (48, 48), (64, 64)]


def test_the_bias_is_kept_until_the_weights_change() -> None:
    network, lr_BCHW = small_hit(), image(8, 8)
    with torch.no_grad():
        network(lr_BCHW)
        kept = [one.bias_hPK for one in network.modules() if isinstance(one, Correlation)]
        network(lr_BCHW)
        assert all(a is one.bias_hPK for a, one in zip(kept, _correlations(network), strict=True))
        other = small_hit(seed=1)
        network.load_state_dict(other.state_dict())
        assert torch.equal(network(lr_BCHW), other(lr_BCHW))
    assert not any("bias_hPK" in key for key in network.state_dict())
    network(lr_BCHW).mean().backward()
    assert all(float(one.pos.pos_proj.weight.grad.abs().max()) > 0 for one in _correlations(network))


def _correlations(network: HiTSRF) -> list[Correlation]:
    return [one for one in network.modules() if isinstance(one, Correlation)]


@pytest.mark.parametrize("name", ["img_001", "img_003"])
def test_the_stored_images_to_one_grey_level(real_models: Path, shared_data: Path, name: str) -> None:
    (expert,) = open_experts([str(real_models / "weights" / PUBLISHED)])
    lr_BCHW = read_rgb(next((shared_data / "bench" / "Set5").rglob(f"LRx4/{name}*")))
    with Image.open(shared_data / "real_experts" / "Set5" / "hitsr" / f"{name}x4.webp") as stored:
        levels_HWC = np.asarray(stored.convert("RGB"), dtype=np.int64)
    sr_CHW = expert.run(lr_BCHW).sr_BCHW[0].clamp(0, 1)
    ours_HWC = (sr_CHW * 255).round().permute(1, 2, 0).numpy().astype(np.int64)
    assert np.abs(ours_HWC - levels_HWC).max() <= 1
