"""Published code of a challenge with its published weights, through `code:`: the stored images to one grey level."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experts.open import open_experts
from experts.run import NetworkExpert
from imaging.files import read_rgb

HIT = {
    "upscale": 4, "in_chans": 3, "img_size": 64, "base_win_size": [8, 8], "img_range": 1.0, "depths": [6, 6, 6, 6],
    "embed_dim": 60, "num_heads": [6, 6, 6, 6], "resi_connection": "1conv",
    "hier_win_ratios": [0.5, 1, 2, 4, 6, 8], "upsampler": "pixelshuffledirect",
}  # fmt: skip
# Where tap and padding are given, one forward is enough to open it: the published HiT-SRF takes ten seconds for each.
GIVEN = {"tap": {"module": "conv_after_body", "channels": 60}, "padding": {"multiple": 1}}


@pytest.fixture
def published(shared_data: Path) -> Path:
    folder = shared_data.parent / "real_models"
    if not (folder / "code" / "team33_EagleSR.py").is_file():
        pytest.skip("published code not present in shared/real_models")
    return folder


def levels(rgb_BCHW: torch.Tensor) -> np.ndarray:
    return (rgb_BCHW[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.int64)


def require_stored(expert: NetworkExpert, lr: Path, stored: Path) -> None:
    with Image.open(stored) as picture:
        theirs_HWC = np.asarray(picture.convert("RGB"), dtype=np.int64)
    ours_HWC = levels(expert.run(read_rgb(lr)).sr_BCHW)
    assert np.abs(ours_HWC - theirs_HWC).max() <= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("file", "name", "arguments", "known", "folder", "tap", "sets"),
    [
        ("team33_EagleSR", "BSRN", {}, {}, "eagle", "c2", ("train", "Set5")),
        ("team43_SepSRNet", "ESA_CCA", {}, {}, "sepsr", "cnn", ("train", "Set5")),
        ("team54_HITSR", "HiT_SRF", HIT, GIVEN, "hitsr", "conv_after_body", ("train",)),
    ],
)
def test_the_stored_images(
    published: Path,
    shared_data: Path,
    tmp_path: Path,
    file: str,
    name: str,
    arguments: dict[str, Any],
    known: dict[str, Any],
    folder: str,
    tap: str,
    sets: tuple[str, ...],
) -> None:
    if name == "HiT_SRF" and importlib.util.find_spec("timm") is None:
        pytest.skip("the published code of HiT-SRF needs timm")
    one = {
        "name": "mine",
        "code": {"file": str(published / "code" / f"{file}.py"), "name": name, "arguments": arguments},
        "weights": [{"file": str(published / "weights" / f"{file}.pth")}],
        **known,
    }
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps({"experts": [one]}))
    (expert,) = open_experts(["mine"], config=config, trust_code=True)
    assert isinstance(expert, NetworkExpert)
    assert expert.identity.tap == tap
    stored = shared_data / "real_experts"
    if "train" in sets:
        lr = sorted((stored / "train" / "LRx4").iterdir())[0]
        require_stored(expert, lr, stored / "train" / folder / lr.name)
    if "Set5" in sets:
        lr = shared_data / "bench" / "Set5" / "LRx4" / "img_003x4.png"
        require_stored(expert, lr, stored / "Set5" / folder / "img_003x4.webp")
