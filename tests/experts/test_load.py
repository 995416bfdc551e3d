"""Loading: strict, exact, and never running foreign code."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from experts.catalog import built_in_catalog
from experts.loading.edsr import EDSR
from experts.loading.load import load_network
from experts.loading.weights import read_state_file
from experts.open import open_expert, open_experts
from experts.run import NetworkExpert
from experts.spec import ExpertSpec, WeightsSource
from imaging.refusal import Refusal
from tests.experts.parts import CLASSES, SMALL, image, original_edsr_layout, save_network, small_network


def spec_for(path: Path, **more: Any) -> ExpertSpec:
    return ExpertSpec(name="x", weights=(WeightsSource(file=str(path)),), **more)


def load(path: Path, **more: Any) -> torch.nn.Module:
    return load_network(read_state_file(path), spec_for(path, **more)).network


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


def test_grl_is_built_with_the_factor_its_file_cannot_tell(tmp_path: Path) -> None:
    network = small_network("GRL", anchor_window_down_factor=2)
    path = save_network(network, tmp_path / "grl.safetensors")
    guessed = load(path)
    told = load(path, hyperparameters={"anchor_window_down_factor": 2})
    lr_BCHW = image(64, 64)
    with torch.no_grad():
        assert torch.equal(told(lr_BCHW), network(lr_BCHW))
        assert not torch.allclose(guessed(lr_BCHW), network(lr_BCHW), atol=1e-5), "the trap is gone: simplify load.py"


def test_a_table_in_the_file_that_contradicts_the_settings_is_refused(tmp_path: Path) -> None:
    network = small_network("GRL", anchor_window_down_factor=4)
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    tensors |= {key: value.contiguous() for key, value in network.named_buffers() if key.startswith(("table", "index"))}
    save_file(tensors, tmp_path / "grl.safetensors")
    with pytest.raises(Refusal, match="its table '.*' is"):
        load(tmp_path / "grl.safetensors", hyperparameters={"anchor_window_down_factor": 2})


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


class _Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_does_not(suffix: str, how: str, tmp_path: Path) -> None:
    target, path = tmp_path / "owned", tmp_path / f"evil{suffix}"
    document = {"params": small_network("EDSR").state_dict(), "extra": _Evil(target)}
    if how == "torch":
        torch.save(document, path)
    else:
        path.write_bytes(pickle.dumps(document))
    with pytest.raises(Refusal, match="safetensors"):
        read_state_file(path)
    assert not target.exists()


@given(data=st.binary(min_size=1, max_size=40), opcode=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"broken"]))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_arbitrary_bytes_are_refused_and_nothing_else(data: bytes, opcode: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(opcode + data)
    with pytest.raises(Refusal):
        read_state_file(tmp_path / "m.pth")


def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(Refusal):
        read_state_file(tmp_path / "script.pt")


def _broken(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Each kind of bad file -> its path and a word that the refusal must hold."""
    good = small_network("EDSR").state_dict()
    whole = save_network(small_network("EDSR"), tmp_path / "good.safetensors").read_bytes()
    pickled = save_network(small_network("EDSR"), tmp_path / "good.pth").read_bytes()

    def tensors(name: str, state: dict[str, torch.Tensor]) -> Path:
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
        return tmp_path / name

    def raw(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    nan = {key: value.clone() for key, value in good.items()}
    nan["conv_last.bias"][0] = float("nan")
    missing = {key: value for key, value in good.items() if key != "body.1.conv2.bias"}
    torch.save([1, 2], tmp_path / "list.pth")
    return {
        "missing": (tmp_path / "nowhere.safetensors", "no such weights file"),
        "empty": (raw("empty.safetensors", b""), "empty"),
        "truncated": (raw("cut.safetensors", whole[: len(whole) // 2]), "damaged"),
        "truncated pickle": (raw("cut.pth", pickled[: len(pickled) // 2]), "cannot be read"),
        "noise": (raw("noise.pth", bytes(range(256)) * 40), "damaged"),
        "not a dict": (tmp_path / "list.pth", "not named tensors"),
        "suffix": (raw("model.txt", b"hello"), "not a weights format"),
        "missing key": (tensors("missing.safetensors", missing), "body.1.conv2.bias"),
        "extra key": (tensors("extra.safetensors", {**good, "surplus.weight": torch.zeros(1)}), "surplus.weight"),
        "wrong shape": (tensors("shape.safetensors", {**good, "conv_last.bias": torch.zeros(5)}), "conv_last.bias"),
        "foreign": (tensors("foreign.safetensors", {"a.weight": torch.zeros(2)}), "no known architecture"),
        "nan": (tensors("nan.safetensors", nan), "conv_last.bias"),
        "scale 8": (save_network(small_network("EDSR", upscale=8), tmp_path / "x8.safetensors"), "scale is 8"),
    }


KINDS = (
    "missing", "empty", "truncated", "truncated pickle", "noise", "not a dict", "suffix", "missing key", "extra key",
    "wrong shape", "foreign", "nan", "scale 8",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_file_is_refused_in_one_line_that_names_it(kind: str, tmp_path: Path) -> None:
    path, word = _broken(tmp_path)[kind]
    with pytest.raises(Refusal, match=word) as caught:
        load(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_architecture_or_size_is_refused_for_a_known_expert(tmp_path: Path) -> None:
    path = save_network(small_network("EDSR"), tmp_path / "m.safetensors")
    with pytest.raises(Refusal, match="architecture is EDSR, wanted HAT"):
        load(path, architecture="HAT")
    with pytest.raises(Refusal, match="num_feat=16"):
        load(path, hyperparameters={"num_feat": 256})
    with pytest.raises(Refusal, match="parameter count"):
        load(path, parameters=5)
    with pytest.raises(Refusal, match="no hyperparameter 'num_feets'"):
        load(path, hyperparameters={"num_feets": 256})


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


def test_a_file_of_another_kind_is_no_unknown_name(tmp_path: Path) -> None:
    """TorchScript under its own ending: it is there, and is no weights file."""
    program = tmp_path / "net.torchscript"
    torch.jit.script(torch.nn.Conv2d(3, 3, 3)).save(program)
    with pytest.raises(Refusal, match=r"'\.torchscript' is not a weights format.*state_dict"):
        open_experts([str(program)])
    with pytest.raises(Refusal, match="unknown expert"):
        open_experts([str(tmp_path / "nothing.torchscript")])


@pytest.mark.parametrize(("heads", "where"), [(0, "k.pth"), (5, "expert k")])
def test_settings_that_make_no_network_are_not_blamed_on_the_keys(tmp_path: Path, heads: int, where: str) -> None:
    """A HAT whose every key is there, of 24 channels for no head at all, and for 5: that loads and cannot run."""
    tensors = small_network("HAT").state_dict()
    for key, value in tensors.items():
        if key.endswith("relative_position_bias_table"):
            tensors[key] = value.new_zeros(value.shape[0], heads)
    torch.save(dict(tensors), tmp_path / "k.pth")
    with pytest.raises(Refusal, match="settings that its tensors' shapes imply make no") as caught:
        open_experts([str(tmp_path / "k.pth")])[0].run(torch.rand(1, 3, 20, 20))
    assert caught.value.where.endswith(where)


def test_a_lacking_key_is_named(tmp_path: Path) -> None:
    tensors = small_network("HAT").state_dict()
    del tensors["relative_position_index_OCA"]
    torch.save(dict(tensors), tmp_path / "k.pth")
    with pytest.raises(Refusal, match="keys do not fit together: there is no 'relative_position_index_OCA'"):
        open_experts([str(tmp_path / "k.pth")])
