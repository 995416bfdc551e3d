"""Files that are refused: pickles that would run code, damage, other architectures, keys that do not fit."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from experts.loading.weights import read_state_file
from experts.open import open_experts
from imaging.refusal import Refusal
from tests.experts.loading.parts import load
from tests.experts.parts import save_network, small_network


def test_a_table_in_the_file_that_contradicts_the_settings_is_refused(tmp_path: Path) -> None:
    network = small_network("GRL", anchor_window_down_factor=4)
    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    tensors |= {key: value.contiguous() for key, value in network.named_buffers() if key.startswith(("table", "index"))}
    save_file(tensors, tmp_path / "grl.safetensors")
    with pytest.raises(Refusal, match="its table '.*' is"):
        load(tmp_path / "grl.safetensors", hyperparameters={"anchor_window_down_factor": 2})


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
