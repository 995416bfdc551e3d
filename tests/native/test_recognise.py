"""Our own networks are told without spandrel: as spandrel would tell them, and no other network for one of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from spandrel import MAIN_REGISTRY, ModelLoader
from spandrel.util import get_pixelshuffle_params, get_seq_len, store_hyperparameters
from torch import nn

from experts.catalog import built_in_catalog
from experts.loading.load import load_network
from experts.loading.spandrel_registry import registry
from experts.loading.weights import read_state_file
from experts.native.architectures import OWN_ARCHITECTURES, find_own
from experts.native.edsr import EDSR, build_edsr
from experts.native.recognise import sequence_length, stores_hyperparameters
from experts.open import spec_of
from tests.experts.networks import MAKERS, small
from tests.experts.parts import image, original_edsr_layout, save_network, small_network

OWN = sorted(one.name for one in OWN_ARCHITECTURES)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("architecture", sorted(MAKERS))
def test_no_network_of_spandrels_is_taken_for_one_of_ours(architecture: str) -> None:
    tensors = small(architecture).state_dict()
    own = find_own(tensors)
    assert (None if own is None else own.name) == (architecture if architecture in OWN else None)
    theirs = [one for one in MAIN_REGISTRY.architectures() if one.detect(tensors)]
    assert bool(theirs) is (architecture not in OWN), "both know it: which one opens it must not depend on the order"


@pytest.mark.parametrize("architecture", OWN)
def test_opened_as_it_was_and_as_spandrel_opens_it(architecture: str, tmp_path: Path) -> None:
    saved = small(architecture).eval()
    path = save_network(saved, tmp_path / "net.safetensors")
    ours = load_network(read_state_file(path), spec_of(str(path), built_in_catalog()))
    theirs = ModelLoader(registry=registry()).load_from_file(path)
    assert type(ours.network) is type(theirs.model)
    assert ours.network.hyperparameters == theirs.model.hyperparameters
    assert (ours.architecture, ours.scale) == (theirs.architecture.id, theirs.scale)
    assert ours.padding.multiple % theirs.size_requirements.multiple_of == 0
    with torch.no_grad():
        assert torch.equal(ours.network(image(32, 32)), saved(image(32, 32)))
        assert torch.equal(theirs.model.eval()(image(32, 32)), saved(image(32, 32)))


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("architecture", OWN)
def test_opened_at_any_scale_and_dtype(architecture: str, scale: int, dtype: torch.dtype, tmp_path: Path) -> None:
    kind = type(small(architecture))
    torch.manual_seed(0)
    setting = "scale" if "scale" in small(architecture).hyperparameters else "upscale"
    saved = kind(**{**small(architecture).hyperparameters, setting: scale}).eval()
    tensors = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in saved.state_dict().items()
    }
    saved.load_state_dict(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "net.safetensors")
    path = tmp_path / "net.safetensors"
    loaded = load_network(read_state_file(path), spec_of(str(path), built_in_catalog()))
    assert loaded.scale == scale
    assert {p.dtype for p in loaded.network.parameters()} == {torch.float32}
    with torch.no_grad():
        assert torch.equal(loaded.network(image(32, 32)), saved(image(32, 32)))


def test_the_original_layout_of_edsr_needs_no_spandrel_either(tmp_path: Path) -> None:
    network = small_network("EDSR").eval()
    assert isinstance(network, EDSR)
    tensors = original_edsr_layout(network)
    own = find_own(tensors)
    assert own is not None
    torch.save(tensors, tmp_path / "net.pt")
    loaded = load_network(read_state_file(tmp_path / "net.pt"), spec_of(str(tmp_path / "net.pt"), built_in_catalog()))
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(image(16, 16)), network(image(16, 16)), rtol=0, atol=1e-6)


def test_a_spandrel_that_does_not_import_is_not_blamed_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "experts.loading.spandrel_registry", None)
    path = save_network(small("RCAN"), tmp_path / "net.safetensors")
    with pytest.raises(ImportError):
        load_network(read_state_file(path), spec_of(str(path), built_in_catalog()))
    path = save_network(small("EDSR"), tmp_path / "own.safetensors")
    assert load_network(read_state_file(path), spec_of(str(path), built_in_catalog())).architecture == "EDSR"


@pytest.mark.parametrize("wrapper", ["params_ema", "state_dict", "module."])
def test_a_checkpoint_goes_by_spandrel(wrapper: str, tmp_path: Path) -> None:
    network = small_network("EDSR").eval()
    tensors = network.state_dict()
    wrapped: Any = {f"module.{key}": value for key, value in tensors.items()} if "." in wrapper else {wrapper: tensors}
    assert find_own(wrapped) is None
    torch.save(wrapped, tmp_path / "net.pth")
    loaded = load_network(read_state_file(tmp_path / "net.pth"), spec_of(str(tmp_path / "net.pth"), built_in_catalog()))
    with torch.no_grad():
        assert torch.equal(loaded.network(image(16, 16)), network(image(16, 16)))


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_the_scale_is_read_as_spandrel_reads_it(scale: int) -> None:
    network = EDSR(num_feat=8, num_block=1, upscale=scale)
    tensors = network.state_dict()
    assert get_pixelshuffle_params(tensors, "upsample", 8)[0] == scale
    if scale > 1:  # else there is no upsampler to tell it by
        assert build_edsr(tensors).scale == scale
    if scale in (2, 4):
        assert build_edsr(original_edsr_layout(network)).scale == scale


@given(st.dictionaries(st.sampled_from(["a.0.w", "a.3.b", "a.11.c.1", "ab.7.w", "b.2.a", "a.2"]), st.none()))
def test_layers_are_counted_as_spandrel_counts_them(tensors: dict[str, None]) -> None:
    for prefix in ("a", "ab", "b"):
        assert sequence_length(tensors, prefix) == get_seq_len(tensors, prefix)


def test_hyperparameters_are_kept_as_spandrel_keeps_them() -> None:
    class Small(nn.Module):
        hyperparameters: dict[str, Any] = {}

        def __init__(self, *, width: int, depth: int = 3, names: tuple[str, ...] = ("a",)) -> None:
            super().__init__()
            self.size = width * depth * len(names)

    class Twin(Small):
        def __init__(self, *, width: int, depth: int = 3, names: tuple[str, ...] = ("a",)) -> None:
            super().__init__(width=width, depth=depth, names=names)

    ours, theirs = stores_hyperparameters(Small), store_hyperparameters()(Twin)
    for settings in ({"width": 2}, {"width": 2, "depth": 1}, {"width": 1, "names": ("b", "c")}):
        assert ours(**settings).hyperparameters == theirs(**settings).hyperparameters
    with pytest.raises(TypeError):
        ours(width=2, heigth=3)


def test_the_default_needs_neither_spandrel_nor_torchvision(tmp_path: Path) -> None:
    """They cost two seconds: as much as all else that comes before the first image."""
    code = (
        "import sys, infer; from imaging.command import run; code = run(infer.command_line); "
        "print(code, [name for name in ('spandrel', 'torchvision', 'torch._dynamo') if name in sys.modules])"
    )
    from PIL import Image

    Image.new("RGB", (24, 20), (90, 120, 60)).save(tmp_path / "a.png")
    words = ["-i", str(tmp_path / "a.png"), "-o", str(tmp_path / "out.png"), "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
