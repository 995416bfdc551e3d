"""Loading: strict and exact, by the file's header, the catalog and the hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experts.catalog import built_in_catalog
from experts.loading.student import build_architecture
from experts.native.edsr import EDSR
from experts.open import open_expert, open_experts
from experts.run import NetworkExpert
from imaging.refusal import Refusal
from tests.experts.loading.parts import load
from tests.experts.parts import CLASSES, SMALL, image, original_edsr_layout, save_network, small_network


@pytest.mark.parametrize("architecture", CLASSES)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_loads_as_the_network_it_was(architecture: str, suffix: str, tmp_path: Path) -> None:
    network = small_network(architecture)
    if architecture == "GRL":
        untold = {"anchor_window_down_factor": 2}
    else:
        untold = {}
    loaded = load(save_network(network, tmp_path / f"m{suffix}"), hyperparameters=untold)
    lr_BCHW = image(64, 64) if architecture == "GRL" else image(32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(lr_BCHW), network(lr_BCHW))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not loaded.training


def test_grl_is_built_with_the_factor_its_file_cannot_tell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = small_network("GRL", anchor_window_down_factor=2)
    path = save_network(network, tmp_path / "grl.safetensors")
    guessed = load(path)
    assert "the tensors of GRL do not tell window_size, stripe_size, anchor_window_down_factor" in caplog.text
    caplog.clear()
    told = load(path, hyperparameters={"anchor_window_down_factor": 2})
    assert "window_size, stripe_size:" in caplog.text
    caplog.clear()
    load(path, hyperparameters=network.hyperparameters)
    assert not caplog.text
    lr_BCHW = image(64, 64)
    with torch.no_grad():
        assert torch.equal(told(lr_BCHW), network(lr_BCHW))
        assert not torch.allclose(guessed(lr_BCHW), network(lr_BCHW), atol=1e-5), "the trap is gone: simplify load.py"


def test_both_edsr_layouts_give_equal_images(tmp_path: Path) -> None:
    network = small_network("EDSR")
    assert isinstance(network, EDSR)
    new = load(save_network(network, tmp_path / "new.safetensors"))
    original = original_edsr_layout(network)
    torch.save(original, tmp_path / "old.pt")
    old = load(tmp_path / "old.pt")
    lr_BCHW = image(17, 23)
    with torch.no_grad():
        torch.testing.assert_close(old(lr_BCHW), new(lr_BCHW), rtol=0, atol=1e-6)
        torch.testing.assert_close(old(lr_BCHW), _original_forward(original, lr_BCHW), rtol=0, atol=2e-5)


def _original_forward(state: dict[str, torch.Tensor], lr_BCHW: torch.Tensor) -> torch.Tensor:
    """The original release's arithmetic, from its keys, in the range 0-255 that it works in."""

    def conv(x: torch.Tensor, key: str, padding: int = 1) -> torch.Tensor:
        return torch.nn.functional.conv2d(x, state[f"{key}.weight"], state[f"{key}.bias"], padding=padding)

    x = conv(conv(lr_BCHW * 255, "sub_mean", 0), "head.0")
    body = x
    for index in range(2):
        body = body + conv(torch.relu(conv(body, f"body.{index}.body.0")), f"body.{index}.body.2")
    x = x + conv(body, "body.2")
    for index in (0, 2):
        x = torch.nn.functional.pixel_shuffle(conv(x, f"tail.0.{index}"), 2)
    return conv(conv(x, "tail.1"), "add_mean", 0) / 255


def test_the_original_edsr_layout_has_142_keys_at_full_size() -> None:
    spec = built_in_catalog().get("edsr-l")
    network = EDSR(**spec.hyperparameters)
    assert len(original_edsr_layout(network)) == 142


def test_a_file_with_a_header_is_built_by_it(tmp_path: Path) -> None:
    network = small_network("EDSR", res_scale=0.3)
    told = save_network(network, tmp_path / "told.safetensors", header={**SMALL["EDSR"], "res_scale": 0.3})
    with torch.no_grad():
        assert torch.equal(load(told)(image(9, 9)), network(image(9, 9)))


def test_params_ema_beats_params(tmp_path: Path) -> None:
    plain, smoothed = small_network("EDSR", seed=1), small_network("EDSR", seed=2)
    torch.save({"params": plain.state_dict(), "params_ema": smoothed.state_dict()}, tmp_path / "both.pth")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "both.pth")(image(8, 8)), smoothed(image(8, 8)))


def test_the_hash_is_checked_when_known_and_always_recorded(tmp_path: Path) -> None:
    path = save_network(small_network("EDSR"), tmp_path / "m.safetensors")
    (expert,) = open_experts([str(path)])
    sha256 = expert.identity.weights_sha256
    assert len(sha256) == 64
    config = tmp_path / "c.yaml"
    for known, fine in ((sha256, True), (sha256[:8], True), ("0" * 8, False)):
        field = "sha256" if len(known) == 64 else "sha256_prefix"
        document = {"experts": [{"name": "m", "weights": [{"file": str(path), field: known}]}]}
        config.write_text(json.dumps(document))
        if fine:
            assert open_experts(["m"], config=config)[0].identity.weights_sha256 == sha256
        else:
            with pytest.raises(Refusal, match="sha256 is"):
                open_experts(["m"], config=config)


def test_missing_weights_name_the_file_and_the_page() -> None:
    with pytest.raises(Refusal, match=r"HAT-L_SRx4.*get it from https://github.com/XPixelGroup/HAT"):
        open_experts(["hat-l"])
    with pytest.raises(Refusal, match="python -m experts fetch grl-b"):
        open_experts(["grl-b"])


def test_two_experts_of_one_name_are_refused(tmp_path: Path) -> None:
    path = str(save_network(small_network("EDSR"), tmp_path / "m.safetensors"))
    with pytest.raises(Refusal, match="stands for two"):
        open_experts([path, path])


def test_a_precision_that_overflows_is_refused(tmp_path: Path) -> None:
    path = save_network(small_network("EDSR"), tmp_path / "m.safetensors")
    with pytest.raises(Refusal, match="may not run in fp16"):
        open_experts([str(path)], precision="fp16")


def test_a_file_named_like_a_published_one_gets_that_experts_settings(tmp_path: Path) -> None:
    path = save_network(small_network("EDSR"), tmp_path / "sr_grl_base_c3x4.safetensors")
    expert = open_expert(str(path), built_in_catalog(), device=torch.device("cpu"))
    assert isinstance(expert, NetworkExpert)
    assert expert.name == "sr_grl_base_c3x4"
    named = save_network(small_network("GRL"), tmp_path / "sr_grl_base_c3x4.ckpt")
    with pytest.raises(Refusal, match="does not fit the expert's hyperparameters"):
        open_expert(str(named), built_in_catalog(), device=torch.device("cpu"))


@pytest.mark.parametrize("untold", [{}, {"window_size": 16, "stripe_size": [32, 32], "anchor_window_down_factor": 2}])
def test_a_network_to_be_trained_is_the_one_that_was_built(
    untold: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A GRL, told its windows or left to its class's own: neither leaves a trace in the tensors."""
    told = {key: value for key, value in SMALL["GRL"].items() if key not in ("window_size", "stripe_size")} | untold
    torch.manual_seed(0)
    built = CLASSES["GRL"](**told)
    network = build_architecture("GRL", told, seed=0).network
    assert network.hyperparameters == built.hyperparameters
    assert not caplog.text
    lr_BCHW = image(64, 64)
    with torch.no_grad():
        assert torch.equal(network.eval()(lr_BCHW), built.eval()(lr_BCHW))
