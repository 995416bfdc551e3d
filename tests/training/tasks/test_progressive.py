"""From x2 to x4: the trunk is taken, the upsampler is new and named, everything else must fit; shipped files start."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fusion.training.loop import loop
from fusion.training.loop.checkpoint import list_checkpoints, load_checkpoint
from fusion.training.loop.initial_weights import load_known
from fusion.training.settings import NetworkSettings, TrainSettings
from fusion.training.tasks.expert import ExpertTask
from fusion.training.tasks.networks import build_network
from imaging.refusal import Refusal
from tests.native.parts import SMALL
from tests.training.parts import TINY, expert_settings, write_pictures
from train import NETWORKS

# Each network small, and the name of its part that knows the scale.
SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "edsr": (TINY, "upsample"),
    **{name: (small, "upsampler") for name, small in SMALL.items()},
}
SHIPPED = Path(__file__).parents[3] / "pretrained" / "edsr_s.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("hr"), count=4)


def settings_of(folder: Path, run: Path, name: str, *, scale: int, steps: int = 2, **network) -> TrainSettings:
    return expert_settings(
        folder,
        run,
        steps=steps,
        network={"name": name, "settings": SIZES[name][0], **network},
        data={"hr": [str(folder)], "patch": 8, "batch": 2, "hold_out": 2, "scale": scale},
        export={"name": "model", "dtype": "fp16"},
    )


def train(settings: TrainSettings, *, resume: bool = False) -> dict[str, Any]:
    return loop.train(settings, lambda rank, world: ExpertTask(settings, NETWORKS, rank, world), resume=resume)


@pytest.mark.parametrize("name", SIZES)
def test_x4_starts_from_x2_with_a_new_upsampler(name, pictures, tmp_path, caplog):
    part = SIZES[name][1]
    train(settings_of(pictures, tmp_path / "x2", name, scale=2))
    half = tmp_path / "x2/model.safetensors"
    given = load_file(half)
    wanted = {"start_from": str(half), "start_new": [part]}
    settings = settings_of(pictures, tmp_path / "x4", name, scale=4, **wanted)
    task, fresh = ExpertTask(settings, NETWORKS), build_network(NETWORKS, settings.network, settings.seed)
    with caplog.at_level(logging.INFO):
        load_known(task.network, half, settings.network.start_new)
    for key, value in task.network.state_dict().items():
        expected = fresh.state_dict()[key] if key.startswith(f"{part}.") else given[key].float()
        assert torch.equal(value, expected), key
    assert any(key.startswith(f"{part}.") for key in given)
    new = next(
        record.getMessage() for record in caplog.records if record.getMessage().startswith("random initial weights: ")
    )
    assert all(key in new for key in task.network.state_dict() if key.startswith(f"{part}."))
    summary = train(settings)
    assert summary["scores"]["model"]["psnr_y"] > 10
    image_BCHW = torch.rand(1, 3, 9, 11)
    for scale, run in ((2, "x2"), (4, "x4")):
        network = build_network(NETWORKS, settings.network, 0, scale).eval()
        network.load_state_dict(
            {key: value.float() for key, value in load_file(tmp_path / run / "model.safetensors").items()}
        )
        assert network(image_BCHW).shape == (1, 3, 9 * scale, 11 * scale)


def test_one_layer_alone_may_be_new(pictures, tmp_path):
    train(settings_of(pictures, tmp_path / "x2", "edsr", scale=2))
    half = tmp_path / "x2/model.safetensors"
    network = build_network(NETWORKS, NetworkSettings(name="edsr", settings=TINY), 0)
    load_known(network, half, ["upsample.2"])
    assert torch.equal(network.state_dict()["upsample.0.weight"], load_file(half)["upsample.0.weight"].float())


def test_whatever_is_not_named_must_fit(pictures, tmp_path):
    train(settings_of(pictures, tmp_path / "x2", "edsr", scale=2))
    half = str(tmp_path / "x2/model.safetensors")

    def start(**network):
        return train(settings_of(pictures, tmp_path / "no", "edsr", scale=4, start_from=half, **network))

    with pytest.raises(Refusal, match=r"does not fit the network: 'upsample.2.*network.start_new"):
        start()
    with pytest.raises(Refusal, match=r"no part 'upsampler'; did you mean 'upsample'"):
        start(start_new=["upsampler"])
    with pytest.raises(Refusal, match=r"'upsample.2.bias', which start_new does not name"):
        start(start_new=["conv_last"])
    with pytest.raises(Refusal, match=r"'body.1.conv1.bias'"):
        start(start_new=["upsample"], settings={**TINY, "num_block": 2})
    with pytest.raises(Refusal, match=r"'conv_first.weight'|'body.0"):
        start(start_new=["upsample"], settings={**TINY, "num_feat": 8})
    with pytest.raises(Refusal, match="start_new needs start_from"):
        settings_of(pictures, tmp_path / "no", "edsr", scale=4, start_new=["upsample"])
    with pytest.raises(Refusal, match=r"is 4, the data's scale is 2; set data.scale"):
        train(settings_of(pictures, tmp_path / "no2", "edsr", scale=2, settings={**TINY, "upscale": 4}))


def test_a_run_that_began_so_resumes_with_the_same_bits(pictures, tmp_path):
    train(settings_of(pictures, tmp_path / "x2", "edsr", scale=2))
    wanted = {"start_from": str(tmp_path / "x2/model.safetensors"), "start_new": ["upsample"]}
    settings = settings_of(pictures, tmp_path / "x4", "edsr", scale=4, steps=4, **wanted)
    train(settings)
    before = load_checkpoint(list_checkpoints(tmp_path / "x4/checkpoints")[-1][1])
    list_checkpoints(tmp_path / "x4/checkpoints")[-1][1].unlink()
    train(settings, resume=True)
    after = load_checkpoint(list_checkpoints(tmp_path / "x4/checkpoints")[-1][1])
    assert before["step"] == after["step"] == 4
    assert all(torch.equal(before["network"][key], after["network"][key]) for key in before["network"])
    changed = settings_of(
        pictures, tmp_path / "x4", "edsr", scale=4, steps=4, **{**wanted, "start_new": ["upsample.2"]}
    )
    with pytest.raises(Refusal, match="'network' was"):
        train(changed, resume=True)


def test_a_shipped_half_precision_file_starts_a_run(pictures, tmp_path):
    stored = load_file(SHIPPED)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    settings = expert_settings(
        pictures,
        tmp_path / "run",
        steps=1,
        ema=0.0,
        optimizer={"lr": 1e-9},
        network={
            "name": "edsr",
            "settings": {"num_feat": 48, "num_block": 8},
            "start_from": str(SHIPPED),
        },
    )
    train(settings)
    trained = load_checkpoint(list_checkpoints(tmp_path / "run/checkpoints")[-1][1])["network"]
    for key, tensor in stored.items():
        torch.testing.assert_close(trained[key], tensor.float(), rtol=0, atol=1e-6)
