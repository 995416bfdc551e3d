"""The three presets: every switch builds, learns, folds, is saved and loads; any size runs; they start near bicubic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from spandrel import ModelLoader
from torch.utils.flop_counter import FlopCounterMode

from experts.__main__ import main
from experts.catalog import built_in_catalog
from experts.export.deploy import deploy
from experts.loading.load import load_network
from experts.loading.spandrel_registry import registry
from experts.loading.weights import read_state_file
from experts.native.base import NativeNetwork
from experts.native.blocks.multi_branch import MultiBranchConv
from experts.open import open_experts, spec_of
from experts.run import NetworkExpert
from imaging.refusal import Refusal
from imaging.resize import resize_bicubic
from tests.experts.parts import image, save_network
from tests.native.parts import ABLATIONS, KINDS, SMALL, image_of, label, native

CASES = [*((name, {}) for name in KINDS), *ABLATIONS]


@pytest.mark.parametrize("case", CASES, ids=label)
def test_every_switch_gives_a_network_that_learns(case: tuple[str, dict[str, Any]]) -> None:
    name, changes = case
    network = native(name, **changes)
    lr_BCHW, scale = image(14, 13, batch=2), changes.get("scale", 4)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    output = network(lr_BCHW)
    assert image_of(output).shape == (2, 3, 14 * scale, 13 * scale)
    routed = changes.get("moe") not in ("single", "off") or changes.get("upsampler") == "moe"
    assert isinstance(output, tuple) is routed
    loss = image_of(output).square().mean()
    if isinstance(output, tuple):
        assert 0.9 < float(output[1].detach()) < 4
        loss = loss + 0.1 * output[1]
    loss.backward()
    without = [key for key, p in network.named_parameters() if p.grad is None or not bool(p.grad.isfinite().all())]
    assert without == []
    optimizer.step()
    assert all(bool(p.isfinite().all()) for p in network.parameters())
    assert bool(image_of(network.eval()(lr_BCHW)).isfinite().all())


@pytest.mark.parametrize("case", CASES, ids=label)
def test_every_switch_is_saved_detected_and_folded(case: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    name, changes = case
    network = native(name, **changes).eval()
    lr_BCHW = image(14, 13)
    path = save_network(network, tmp_path / "net.safetensors", header={**SMALL[name], **changes})
    with torch.no_grad():
        expected = network(lr_BCHW)
        if changes.get("scale", 4) == 4:
            loaded = load_network(read_state_file(path), spec_of(str(path), built_in_catalog()))
            assert loaded.architecture == type(network).__name__
            assert torch.equal(loaded.network(lr_BCHW), expected)
        told = ModelLoader(registry=registry()).load_from_file(path).model
        multi = [m for m in network.modules() if isinstance(m, MultiBranchConv)]
        assert network.reparameterize() == len(multi)
        torch.testing.assert_close(network(lr_BCHW), expected, rtol=0, atol=1e-5)
        assert network.reparameterize() == 0
        folded = save_network(network, tmp_path / "folded.safetensors", header=_plain(network))
        if changes.get("scale", 4) == 4:
            again = load_network(read_state_file(folded), spec_of(str(folded), built_in_catalog())).network
            assert torch.equal(again(lr_BCHW), network(lr_BCHW))
    differing = {key for key, value in told.hyperparameters.items() if value != _plain(network)[key]}
    assert differing <= UNTOLD


# What leaves no trace in the tensors, and `deployed`, since the file is compared with a network folded meanwhile.
UNTOLD = {"drop_path", "recompute", "top_k", "skip_flat", "noise", "directions", "moe", "split", "splitter", "deployed"}
# What a switch makes meaningless is not told either.
UNTOLD |= {"kernel", "window_size", "states"}


def _plain(network: NativeNetwork) -> dict[str, Any]:
    return dict(network.hyperparameters)


@pytest.mark.parametrize(
    ("name", "changes"),
    [("msg", {"top_k": 1}), ("msg", {"split": "laplacian"}), ("freqnet", {"skip_flat": 0.29}), ("ssm", {"noise": 0.1}),
     ("ssm", {"directions": 2}), ("freqnet", {"moe": "dense"})],
    ids=str,
)  # fmt: skip
def test_what_the_tensors_do_not_tell_comes_from_the_header(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    network = native(name, **changes).eval()
    bare = save_network(network, tmp_path / "bare.safetensors")
    with torch.no_grad():
        guessed = load_network(read_state_file(bare), spec_of(str(bare), built_in_catalog())).network
        assert not torch.allclose(guessed(image(24, 24)), network(image(24, 24)), atol=1e-6), "the file tells: simplify"


@pytest.mark.parametrize("name", KINDS)
def test_all_settings_that_shape_tensors_are_detected(name: str, tmp_path: Path) -> None:
    network = native(name, seed=3).eval()
    path = tmp_path / "net.pth"
    torch.save(network.state_dict(), path)
    descriptor = ModelLoader(registry=registry()).load_from_file(path)
    assert descriptor.model.hyperparameters == network.hyperparameters
    assert descriptor.architecture.id == type(network).__name__
    assert descriptor.scale == 4


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("upsampler", ["pixelshuffle", "dysample", "moe"])
def test_a_new_network_is_near_bicubic(name: str, upsampler: str) -> None:
    torch.manual_seed(0)
    network = KINDS[name](**SMALL[name], upsampler=upsampler).eval()
    x, y = torch.meshgrid(torch.linspace(0, 3, 32), torch.linspace(0, 5, 32), indexing="ij")
    lr_BCHW = (0.5 + 0.3 * torch.sin(x * y)).expand(1, 3, 32, 32)
    with torch.no_grad():
        difference = network(lr_BCHW) - resize_bicubic(lr_BCHW, scale=4)
    assert float(difference.square().mean().sqrt()) < 0.1


@pytest.mark.parametrize("name", KINDS)
def test_without_its_residual_it_is_the_houses_bicubic(name: str) -> None:
    network = native(name).eval()
    last = network.upsampler.to_image
    torch.nn.init.zeros_(last.weight)  # pyright: ignore[reportArgumentType]
    torch.nn.init.zeros_(last.bias)  # pyright: ignore[reportArgumentType]
    lr_BCHW = image(32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network(lr_BCHW), resize_bicubic(lr_BCHW, scale=4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (13, 9), (16, 33)])
def test_any_size_runs(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    network = native(name).eval()
    path = save_network(network, tmp_path / "net.safetensors", header=SMALL[name])
    (expert,) = open_experts([str(path)])
    assert isinstance(expert, NetworkExpert)
    assert expert.padding.multiple == network.padding.multiple
    lr_BCHW = image(*size, batch=2)
    output = expert.run(lr_BCHW)
    assert output.sr_BCHW.shape == (2, 3, 4 * size[0], 4 * size[1])
    assert output.feat_BCHW is not None
    assert output.feat_BCHW.shape == (2, SMALL[name]["widths"][0], *size)
    with torch.no_grad():  # the network pads as the runner does, so training's validation sees what users will see
        torch.testing.assert_close(network(lr_BCHW), output.sr_BCHW, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_training_and_eval_give_the_same_image(name: str) -> None:
    network = native(name, drop_path=0.0)
    with torch.no_grad():
        torch.testing.assert_close(image_of(network(image(16, 16))), image_of(network.eval()(image(16, 16))))


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_stays_near(name: str) -> None:
    network = native(name, drop_path=0.0).eval()
    lr_BCHW = image(16, 16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(lr_BCHW)
    assert half.dtype == torch.float32
    with torch.no_grad():
        exact = network(lr_BCHW)
    assert float((half - exact).abs().mean()) < 0.03 * float(exact.std())


@pytest.mark.parametrize("name", KINDS)
def test_a_batch_can_be_learned_by_heart(name: str) -> None:
    torch.manual_seed(0)
    network = KINDS[name](**SMALL[name], drop_path=0.0)
    blocks_BCHW = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    hr_BCHW = torch.nn.functional.interpolate(blocks_BCHW, scale_factor=2, mode="nearest")
    lr_BCHW = resize_bicubic(hr_BCHW, size=(8, 8))
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.0)
    course = []
    for _ in range(32):
        sr_BCHW, balance = network(lr_BCHW)
        loss = (sr_BCHW - hr_BCHW).abs().mean()
        course.append(float(loss.detach()))
        optimizer.zero_grad()
        (loss + 0.001 * balance).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimizer.step()
    assert course[-1] < 0.6 * course[0]


@pytest.mark.parametrize("name", KINDS)
def test_default_sizes(name: str) -> None:
    with torch.device("meta"):
        network = KINDS[name]()
    assert 0.4e6 < sum(p.numel() for p in network.parameters()) < 0.9e6


def test_skipping_flat_windows_saves_work_and_sparse_routing_too() -> None:
    flat, busy = torch.full((1, 3, 32, 32), 0.5), image(32, 32)

    def work(lr_BCHW: torch.Tensor, name: str, **changes: Any) -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            native(name, **changes).eval()(lr_BCHW)
        return counter.get_total_flops()

    assert work(flat, "freqnet", skip_flat=0.01) < work(busy, "freqnet", skip_flat=0.01) == work(busy, "freqnet")
    assert work(busy, "msg", top_k=1) < work(busy, "msg") < work(busy, "msg", moe="dense")


@pytest.mark.parametrize(("name", "within"), [("msg", 1e-3), ("freqnet", 1e-3), ("ssm", 0.2)])
def test_work_grows_with_the_pixels(name: str, within: float) -> None:
    """Which of SSM's three experts a window takes decides its work; the others do equal work everywhere."""
    works = []
    for size in (64, 128):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            native(name).eval()(image(size, size))
        works.append(counter.get_total_flops())
    assert works[1] == pytest.approx(4 * works[0], rel=within)


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [("msg", {"scale": 5}, "upscale"), ("msg", {"depths": (1,)}, "depths"), ("msg", {"long_range": "x"}, "long_range"),
     ("freqnet", {"splitter": "x"}, "splitter"), ("ssm", {"mixer": "x"}, "mixer"), ("ssm", {"moe": "x"}, "routing"),
     ("msg", {"top_k": 9}, "top 9"), ("ssm", {"directions": 3}, "directions"), ("msg", {"kernel": 4}, "odd"),
     ("msg", {"upsampler": "x"}, "upsampler"), ("freqnet", {"widths": (16, 20, 16)}, "multiple of 16")],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_named(name: str, changes: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        native(name, **changes)


def test_the_deploy_command_folds_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = native("ssm").eval()
    path = save_network(network, tmp_path / "net.safetensors", header=SMALL["ssm"])
    out = tmp_path / "folded.safetensors"
    assert main(["deploy", str(path), str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["folded"] == 4
    assert report["largest_difference"] < 1e-5
    (before, after) = (open_experts([str(file)])[0].run(image(20, 20)).sr_BCHW for file in (path, out))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    with pytest.raises(Refusal, match="already"):
        deploy(str(out), built_in_catalog(), tmp_path / "twice.safetensors")
    plain = tmp_path / "edsr.safetensors"
    save_file({"x": torch.zeros(1)}, plain)
    with pytest.raises(Refusal):
        deploy(str(plain), built_in_catalog(), tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()
