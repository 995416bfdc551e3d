"""Finding a tap by running: layouts, padding of the network's own, layers off the grid, and who never needs one."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from spandrel.architectures.CRAFT import CRAFT
from torch import Tensor, nn

import experts.open as opening
from cache_tools.__main__ import main as cache_main
from experts.__main__ import main
from experts.loading.find_tap import find_tap
from experts.open import open_experts
from experts.run import NetworkExpert
from experts.spec import ExpertSpec, Padding, Tap, WeightsSource
from imaging import command
from infer import build
from tests.cache.parts import write_images
from tests.experts.networks import small
from tests.experts.parts import image

WIDTH = 8


class Body(nn.Module):
    """A body that gives its map in one of the layouts, and an upsampler that takes it."""

    def __init__(self, layout: str = "BCHW", pad: tuple[int, int, int, int] = (0, 0, 0, 0)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layout, self.pad = layout, pad
        self.head = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.up = nn.Sequential(nn.Conv2d(WIDTH, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        height, width = lr_BCHW.shape[-2:]
        x_BCHW = self.head(nn.functional.pad(lr_BCHW, self.pad))
        size = x_BCHW.shape[-2:]
        x_BHWC = x_BCHW.permute(0, 2, 3, 1)
        y_BHWC = self.mix(x_BHWC.flatten(1, 2) if self.layout == "BNC" else x_BHWC)
        sr_BCHW = self.up(y_BHWC.reshape(-1, *size, WIDTH).permute(0, 3, 1, 2) + x_BCHW)
        left, top = 4 * self.pad[0], 4 * self.pad[2]
        return sr_BCHW[..., top : top + 4 * height, left : left + 4 * width]


class Global(nn.Module):
    """A network whose only map at LR size is the same whatever the image shows: it does not move."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fixed = nn.Parameter(torch.rand(1, 8, 256, 256))
        self.still = nn.Identity()
        self.up = nn.Sequential(nn.Conv2d(8, 48, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        height, width = lr_BCHW.shape[-2:]
        return self.up(self.still(self.fixed[..., :height, :width] * lr_BCHW.mean()))


def wrap(network: nn.Module, tap: Tap | None) -> NetworkExpert:
    spec = ExpertSpec(name="x", weights=(WeightsSource(file="x.pth"),))
    return NetworkExpert(
        spec, network.eval(), architecture="X", tap=tap, padding=Padding(), weights_sha256="0" * 64,
        device=torch.device("cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("layout", ["BHWC", "BNC"])
def test_maps_with_channels_last_and_tokens_are_turned_round(layout: str) -> None:
    network = Body(layout)
    tap = find_tap(network, Padding())
    assert tap == Tap(module="mix", channels=WIDTH, layout=layout)
    lr_BCHW = image(9, 14)
    feat_BCHW = wrap(network, tap).run(lr_BCHW).feat_BCHW
    with torch.no_grad():
        expected_BHWC = network.mix(network.head(lr_BCHW).permute(0, 2, 3, 1))
    assert feat_BCHW is not None
    torch.testing.assert_close(feat_BCHW, expected_BHWC.permute(0, 3, 1, 2), rtol=0, atol=1e-6)


def test_a_border_that_the_network_adds_at_right_and_bottom_is_cut_off() -> None:
    network = Body("BHWC", pad=(0, 5, 0, 7))
    tap = find_tap(network, Padding())
    assert tap is not None
    assert tap.module == "mix"
    feat_BCHW = wrap(network, tap).run(image(20, 14)).feat_BCHW
    assert feat_BCHW is not None
    assert feat_BCHW.shape == (1, WIDTH, 20, 14)


@pytest.mark.parametrize("network", [Body(pad=(6, 6, 6, 6)), Global()], ids=["border on all sides", "does not move"])
def test_maps_off_the_grid_are_no_features(network: nn.Module) -> None:
    assert find_tap(network.eval(), Padding()) is None


def test_a_map_from_the_upsampler_is_refused() -> None:
    network = small("EDSR")
    for size in ((16, 16), (20, 31)):
        with pytest.raises(opening.Refusal, match="not maps at LR size"):
            wrap(network, Tap(module="upsample.1")).run(image(*size))


def test_craft_gives_features_for_every_size(tmp_path: Path) -> None:
    (expert,) = open_experts([save("CRAFT", tmp_path)])
    for height, width in ((1, 1), (16, 16), (32, 20), (17, 50)):
        feat_BCHW = expert.run(image(height, width)).feat_BCHW
        assert feat_BCHW is not None
        assert feat_BCHW.shape == (1, 24, height, width)


def save(architecture: str, folder: Path) -> str:
    path = folder / "net.safetensors"
    save_file({key: value.contiguous().clone() for key, value in small(architecture).state_dict().items()}, path)
    return str(path)


def test_without_a_tap_it_works_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (expert,) = open_experts([save("IPT", tmp_path)])
        for _ in range(2):
            assert expert.run(image(16, 20)).feat_BCHW is None
    assert [record.message for record in caplog.records] == [
        "net: no layer of IPT gives features on the image's grid: works without"
    ]
    assert (expert.identity.tap, expert.identity.channels) == (None, 0)


def test_who_needs_images_alone_runs_no_forward_to_find_a_tap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: Any) -> None:
        raise AssertionError("a tap was looked for")

    file, hr = save("MoESR", tmp_path), write_images(tmp_path / "hr", [(12, 12)])
    monkeypatch.setattr(opening, "find_tap", refuse)
    words = ["run", file, "-i", str(hr), "-o", str(tmp_path / "out")]
    assert command.run(main, words) == 0
    words = ["extract", "--experts", file, "--hr", str(hr), "--out", str(tmp_path / "c"), "--profile", "images"]
    assert command.run(cache_main, [*words, "--device", "cpu"]) == 0
    build("none", [file], device="cpu")
    with pytest.raises(AssertionError, match="looked for"):
        open_experts([file])


def test_torchs_meshgrid_warning_does_not_reach_the_user(tmp_path: Path) -> None:
    torch.set_warn_always(True)  # it comes once in a process otherwise, and another test may have had it
    try:
        with pytest.warns(UserWarning, match="meshgrid"):
            CRAFT(embed_dim=24, depths=[2], num_heads=[2])
        file = save("CRAFT", tmp_path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            (expert,) = open_experts([file])
            expert.run(image(8, 8))
        assert [str(one.message) for one in caught if "meshgrid" in str(one.message)] == []
    finally:
        torch.set_warn_always(False)
