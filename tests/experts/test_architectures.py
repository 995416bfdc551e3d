"""Every architecture that can upscale by 4, spandrel's and ours: a file of it goes through every command as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from cache_tools.__main__ import main as cache_main
from cache_tools.read.reader import CacheReader
from experts.__main__ import main
from experts.loading.find_tap import find_tap
from experts.loading.spandrel_registry import registry
from experts.open import open_experts
from experts.run import NetworkExpert
from imaging import command
from tests.cache.parts import write_images
from tests.experts.networks import MAKERS, small

# What spandrel has beside these, and why it is no 4x expert.
NO_EXPERTS = {
    "AuraSR": "draws noise in every forward",
    "FaceSR and inpainting": {"GFPGAN", "RestoreFormer", "LaMa"},
    "restoration at scale 1": {
        "SCUNet", "FBCNN", "Uformer", "KBNet", "FFTformer", "NAFNet", "MixDehazeNet", "DRUNet", "DnCNN",
        "RetinexFormer", "HVICIDNet", "SAFMNBCIE",
    },
}  # fmt: skip
# Without a layer on the image's grid: IPT runs patch by patch, RealCUGAN works on a mirrored border of its own.
WITHOUT_FEATURES = {"IPT", "RealCUGAN"}
FOUND = {
    "CRAFT": "conv_after_body",
    "Compact": "body.5",
    "DCTLSA": "LR_conv",
    "DITN": "conv_after_body",
    "EDSR": "conv_after_body",
    "FDAT": "conv_after",
    "HiT_SRF": "conv_after_body",
    "MMRealSR": "conv_body",
    "MoESR": "blocks",
    "OmniSR": "output",
    "PLKSR": "feats.3",
    "RCAN": "body",
    "SAFMN": "feats",
    "SPAN": "conv_cat",
    "SeemoRe": "conv_2",
    "SwiftSRGAN": "convblock",
    "SwinIR": "conv_before_upsample",
}
BUILT = sorted(set(MAKERS) - {"AuraSR"})


def save(architecture: str, path: Path) -> str:
    state = small(architecture).state_dict()
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path)
    return str(path)


def run(*words: object) -> int:
    return command.run(main, [str(word) for word in words])


def test_no_architecture_is_left_out() -> None:
    others = set().union(*(why if isinstance(why, set) else {name} for name, why in NO_EXPERTS.items()))
    built = {name.partition(" ")[0] for name in BUILT}
    assert {str(one.architecture.id) for one in registry()} - others == built


@pytest.mark.parametrize("architecture", BUILT)
def test_from_a_file_to_the_reader(architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(architecture, tmp_path / "net.safetensors")
    assert run("check", file, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sr_shape"] == [1, 3, 256, 256]
    assert (report["feature_shape"] is None) == (architecture in WITHOUT_FEATURES)
    hr = write_images(tmp_path / "hr", [(21, 26)])
    assert run("run", file, "-i", hr / "a.png", "-o", tmp_path / "out") == 0
    words = ["extract", "--experts", file, "--hr", hr, "--out", tmp_path / "cache", "--device", "cpu"]
    assert command.run(cache_main, [str(word) for word in words]) == 0
    (batch,) = list(CacheReader(tmp_path / "cache"))
    assert batch.sr_BECHW.shape[-2:] == (84, 104)
    channels = 0 if report["feature_shape"] is None else report["feature_shape"][1]
    assert sum(feat.shape[1] for feat in batch.feats.values()) == channels


def test_noise_is_no_expert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", save("AuraSR", tmp_path / "net.safetensors")) == 2
    assert "another image in every run" in capsys.readouterr().err


@pytest.mark.parametrize("architecture", FOUND)
def test_the_layer_that_is_found(architecture: str, tmp_path: Path) -> None:
    (expert,) = open_experts([save(architecture, tmp_path / "net.safetensors")])
    assert isinstance(expert, NetworkExpert)
    taps = [find_tap(expert.network, expert.padding) for _ in range(2)]
    assert taps[0] == taps[1]
    assert taps[0] is not None
    assert taps[0].module == FOUND[architecture]
    assert taps[0].layout == "BCHW"


@pytest.mark.parametrize(
    ("file", "tap", "channels"),
    [
        ("DCTLSA_X4.pt", "LR_conv", 55),
        ("team34_craft.pth", "conv_after_body", 48),
        ("team54_HITSR.pth", "conv_after_body", 60),
    ],
)
def test_the_layer_of_published_weights(shared_data: Path, file: str, tap: str, channels: int) -> None:
    path = shared_data.parent / "real_models" / "weights" / file
    if not path.is_file():
        pytest.skip(f"published weights not present: {file}")
    (expert,) = open_experts([str(path)])
    assert isinstance(expert, NetworkExpert)
    found = find_tap(expert.network, expert.padding)
    assert found is not None
    assert (found.module, found.channels) == (tap, channels)
    assert (expert.identity.tap, expert.identity.channels) == (tap, channels)
