"""Running: equal to spandrel's own forward, for every size, with the features on the LR grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spandrel import ModelLoader
from torch import nn

from experts.catalog import built_in_catalog
from experts.loading.load import load_network
from experts.loading.spandrel_registry import registry
from experts.loading.weights import StateFile
from experts.open import open_experts
from experts.pad import pad_right_bottom
from experts.run import NetworkExpert
from experts.spec import ExpertSpec, Padding, Tap, WeightsSource
from experts.tap import tapped
from imaging.refusal import Refusal
from imaging.tiling import plan_kept_tiles
from tests.experts.parts import CLASSES, image, save_network, small_network

NO_PADDING = Padding()
SOURCE = (WeightsSource(file="x.safetensors"),)
PADDINGS = {"HAT": 16, "DRCT": 16, "GRL": 64, "EDSR": 1}


def expert_of(architecture: str, **more: Any) -> NetworkExpert:
    """A small network with the catalog's tap and padding for its architecture."""
    changes = {"window_size": 16, "stripe_size": [32, 32]} if architecture == "GRL" else {}  # a quarter of its cost
    network = small_network(architecture, **changes)
    return wrap(network, architecture, Padding(multiple=PADDINGS[architecture]), **more)


def wrap(
    network: nn.Module, name: str, padding: Padding = NO_PADDING, tap: str = "conv_after_body", **more: Any
) -> NetworkExpert:
    options = {"device": torch.device("cpu"), **more}
    spec = ExpertSpec(name=name, weights=SOURCE, precision=("fp32", "bf16"), overlap=options.pop("overlap", 16))
    return NetworkExpert(
        spec, network, architecture=name, tap=Tap(module=tap), padding=padding, weights_sha256="0" * 64, **options
    )


@pytest.mark.parametrize("architecture", CLASSES)
def test_equal_to_spandrels_own_forward(architecture: str) -> None:
    expert = expert_of(architecture)
    descriptor = ModelLoader(registry=registry()).load_from_state_dict(dict(expert.network.state_dict()))
    if architecture == "GRL":  # spandrel guesses the anchor factor; everything else of its forward is the reference
        descriptor._model = expert.network
    for height, width in ((64, 64), (32, 48)) if architecture != "GRL" else ((64, 64),):
        lr_BCHW = image(height, width)
        with torch.inference_mode():
            theirs = descriptor(lr_BCHW)
        torch.testing.assert_close(expert.run(lr_BCHW).sr_BCHW.clamp(0, 1), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("architecture", "height", "width"), [("HAT", 20, 37), ("GRL", 40, 50), ("EDSR", 13, 7)])
def test_equal_to_the_networks_own_padding_where_it_has_one(architecture: str, height: int, width: int) -> None:
    expert = expert_of(architecture)
    lr_BCHW = image(height, width)
    with torch.no_grad():
        own = expert.network(lr_BCHW)
    torch.testing.assert_close(expert.run(lr_BCHW).sr_BCHW, own, rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", CLASSES)
def test_features_are_those_before_the_long_residual(architecture: str) -> None:
    """Pushed through the rest of the network by hand, the tapped features give the network's own image."""
    expert = expert_of(architecture)
    network, lr_BCHW = expert.network, image(64, 64)
    output = expert.run(lr_BCHW)
    mean = network.mean
    feat_BCHW = output.feat_BCHW
    assert feat_BCHW is not None
    with torch.no_grad():
        img_range = getattr(network, "img_range", 1.0)
        x = feat_BCHW + network.conv_first((lr_BCHW - mean) * img_range)
        if hasattr(network, "conv_before_upsample"):
            x = network.conv_before_upsample(x)
        tail = network.conv_last(network.upsample(x)) / img_range + mean
    torch.testing.assert_close(output.sr_BCHW, tail, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", CLASSES)
def test_every_size_from_one_pixel_up(architecture: str) -> None:
    expert = expert_of(architecture)
    batch = 1 if architecture == "GRL" else 2  # it pads to 64 pixels

    @settings(max_examples=6 if architecture == "GRL" else 12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(height=st.integers(1, 40), width=st.integers(1, 40))
    def law(height: int, width: int) -> None:
        lr_BCHW = image(height, width, batch=batch)
        output = expert.run(lr_BCHW)
        assert output.sr_BCHW.shape == (batch, 3, 4 * height, 4 * width)
        assert output.feat_BCHW is not None
        assert output.feat_BCHW.shape == (batch, expert.network.conv_after_body.out_channels, height, width)
        assert output.sr_BCHW.dtype == output.feat_BCHW.dtype == torch.float32

    law()
    one = expert.run(image(1, 1))
    assert one.sr_BCHW.shape == (1, 3, 4, 4)


def test_an_image_does_not_depend_on_the_rest_of_its_batch() -> None:
    expert = expert_of("DRCT")
    lr_BCHW = image(19, 16, batch=3)
    whole, alone = expert.run(lr_BCHW), expert.run(lr_BCHW[1:2])
    torch.testing.assert_close(whole.sr_BCHW[1:2], alone.sr_BCHW, rtol=0, atol=1e-6)


def test_bf16_stays_close_and_gives_float32() -> None:
    lr_BCHW = image(32, 32)
    exact = expert_of("HAT").run(lr_BCHW)
    rounded = expert_of("HAT", precision="bf16").run(lr_BCHW)
    assert rounded.sr_BCHW.dtype == torch.float32
    assert not torch.equal(rounded.sr_BCHW, exact.sr_BCHW)
    torch.testing.assert_close(rounded.sr_BCHW, exact.sr_BCHW, rtol=0, atol=0.05)


def test_tiled_equals_whole_for_a_convolution_network() -> None:
    lr_BCHW = image(45, 70)
    whole = expert_of("EDSR").run(lr_BCHW)
    tiled = expert_of("EDSR", tile=40, overlap=16).run(lr_BCHW)  # receptive field: 8 pixels each side at LR size
    assert len(plan_kept_tiles(45, 70, 40, 16)) > 4
    torch.testing.assert_close(tiled.sr_BCHW, whole.sr_BCHW, rtol=0, atol=1e-5)
    torch.testing.assert_close(tiled.feat_BCHW, whole.feat_BCHW, rtol=0, atol=1e-4)


def test_tiling_is_part_of_the_identity() -> None:
    assert expert_of("EDSR").identity != expert_of("EDSR", tile=40).identity
    assert expert_of("EDSR").identity != expert_of("EDSR", precision="bf16").identity


class _Branching(nn.Module):
    """A network whose tapped layers misbehave in every way a tap must notice."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Conv2d(3, 4, 3, padding=1)
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.smaller = nn.AvgPool2d(2)
        self.pair = _Pair()
        self.inplace = nn.Conv2d(3, 3, 3, padding=1)
        self.nan = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.smaller(x)
        self.pair(x)
        y = self.inplace(self.twice(self.twice(x)))
        self.kept = y.clone()
        y += x
        if self.nan:
            y = y / 0
        return nn.functional.interpolate(y, scale_factor=4)


class _Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("tap", "word"),
    [
        ("idle", "did not fire"),
        ("twice", "fired 2 times"),
        ("smaller", "not maps at LR size"),
        ("pair", "gives a tuple"),
        ("nowhere", "no layer 'nowhere'"),
    ],
)
def test_a_tap_that_cannot_be_trusted_is_refused(tap: str, word: str) -> None:
    with pytest.raises(Refusal, match=word):
        wrap(_Branching(), "b", tap=tap).run(image(8, 8))


def test_a_tap_is_not_changed_by_what_the_network_does_in_place_and_leaves_nothing_behind() -> None:
    network = _Branching()
    output = wrap(network, "b", tap="inplace").run(image(8, 8))
    assert output.feat_BCHW is not None
    assert torch.equal(output.feat_BCHW, network.kept)
    assert not network.inplace._forward_hooks
    with pytest.raises(RuntimeError), tapped(network, "inplace"):
        raise RuntimeError
    assert not network.inplace._forward_hooks


def test_nan_in_an_output_stops_with_the_images_name() -> None:
    network = _Branching()
    network.nan = True
    with pytest.raises(Refusal, match="expert b on kodim01: gave NaN"):
        wrap(network, "b", tap="inplace").run(image(8, 8), items=["kodim01"])


@pytest.mark.parametrize(
    "lr_BCHW",
    [image(8, 8) * 255, image(8, 8).double(), image(8, 8)[:, :1], image(8, 8)[0]],
    ids=["range", "f64", "grey", "3d"],
)
def test_a_batch_that_is_no_image_is_an_error(lr_BCHW: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="an expert takes"):
        expert_of("EDSR").run(lr_BCHW)


def test_from_a_file_named_by_its_path_the_tap_is_known(tmp_path: Path) -> None:
    for architecture in ("HAT", "DRCT", "EDSR"):
        path = save_network(small_network(architecture), tmp_path / f"my {architecture}.safetensors")
        (expert,) = open_experts([str(path)])
        assert expert.name == f"my-{architecture}"
        output = expert.run(image(17, 18))
        assert output.feat_BCHW is not None
        assert expert.identity.channels == output.feat_BCHW.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hat-l", "drct-l", "edsr-l", "grl-b"])
def test_the_full_size_network_equals_spandrels_forward(name: str) -> None:
    """The published configurations, seeded weights (GRL has fewer blocks): our loading and running, and spandrel's."""
    spec = built_in_catalog().get(name)
    assert spec.architecture is not None
    assert spec.tap is not None
    if name == "grl-b":  # half a minute a forward: a block for each of three of its groups of four to eight
        heads = {key: spec.hyperparameters[key][:3] for key in ("num_heads_window", "num_heads_stripe")}
        thin = {**spec.hyperparameters, **heads, "depths": [1] * 3}
        spec = spec.model_copy(update={"hyperparameters": thin, "parameters": None})
    torch.manual_seed(0)
    network = CLASSES[spec.architecture](**spec.hyperparameters).eval()
    state = StateFile(Path("seeded.safetensors"), dict(network.state_dict()), {}, "0" * 64)
    loaded = load_network(state, spec)
    lr_BCHW = image(*((40, 64) if name == "grl-b" else (9, 16)))
    padding = spec.padding or Padding()
    expert = NetworkExpert(
        spec,
        loaded.network,
        architecture=loaded.architecture,
        tap=spec.tap,
        padding=padding,
        weights_sha256="0" * 64,
        device=torch.device("cpu"),
    )
    output = expert.run(lr_BCHW)
    with torch.no_grad():
        own = network(pad_right_bottom(lr_BCHW, padding))
    height, width = lr_BCHW.shape[-2:]
    torch.testing.assert_close(output.sr_BCHW, own[..., : 4 * height, : 4 * width], rtol=0, atol=1e-5)
    assert output.feat_BCHW is not None
    assert output.feat_BCHW.shape == (1, spec.tap.channels, height, width)
