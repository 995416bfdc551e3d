"""Experts of 2x and 3x, with random weights, through the whole chain: their scale is data, and four is the default."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.SPAN import SPAN

import championship_sr
import infer
import train
from cache_tools.__main__ import main as cache_command
from cache_tools.format.store import Recipe
from cache_tools.read.reader import CacheReader
from experts.__main__ import main as experts_command
from experts.native.msg import MSG
from experts.open import open_experts
from fusion.__main__ import main as fusion_command
from fusion.network import FusionSR
from fusion.network.base.back_projection import missing, shrink
from fusion.network.consistency import LRConsistency
from fusion.network.save import save_model
from fusion.network.settings import ConsistencySettings, ExpertSlot, FusionSettings, every_phase
from imaging.__main__ import main as images_command
from imaging.command import DONE, REFUSED, run
from imaging.resize import downscale
from tests.experts.parts import save_network, small_network
from tests.fusion.parts import stir
from tests.inference.parts import photo
from tests.native.parts import SMALL

SCALES = (2, 3)
HEIGHT, WIDTH = 40, 48  # of LR


def call(command: object, *words: object) -> int:
    return run(command, [str(word) for word in words])


def build(folder: Path, scale: int) -> tuple[Path, Path]:
    """Two of spandrel's networks; the last layer is small, so that their images look like their input."""
    folder.mkdir(parents=True)
    torch.manual_seed(scale)
    span = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=scale)
    compact = Compact(num_feat=8, num_conv=2, upscale=scale)
    for name, network in (("span", span), ("compact", compact)):
        save_file(
            {key: value.contiguous() for key, value in network.state_dict().items()}, folder / f"{name}.safetensors"
        )
    return folder / "span.safetensors", folder / "compact.safetensors"


@pytest.fixture(scope="module", params=SCALES)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Experts, images and a cache of theirs, as the commands make them."""
    folder, scale = tmp_path_factory.mktemp("house"), request.param
    files = build(folder / "weights", scale)
    (folder / "hr").mkdir()
    for index in range(6):
        Image.fromarray(photo(scale * HEIGHT, scale * WIDTH, seed=index)).save(folder / "hr" / f"i{index}.png")
    assert call(images_command, "downscale", folder / "hr", folder / "lr", "--scale", scale) == DONE
    words = ["--experts", ",".join(map(str, files)), "--hr", folder / "hr", "--out", folder / "cache"]
    assert call(cache_command, "extract", *words, "--profile", "half", "--regions", "2", "--region-size", "32") == DONE
    assert call(cache_command, "verify", folder / "cache") == DONE
    return folder, scale


def test_an_expert_says_its_scale(house: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, scale = house
    for name in ("span", "compact"):
        weights = folder / "weights" / f"{name}.safetensors"
        assert call(experts_command, "check", weights, "--json") == DONE
        assert json.loads(capsys.readouterr().out)["sr_shape"] == [1, 3, scale * 64, scale * 64]
    assert call(experts_command, "run", weights, "-i", folder / "lr", "-o", tmp_path / "run", "--tile", "48") == DONE
    with Image.open(tmp_path / "run" / "i0.png") as image:
        assert image.size == (scale * WIDTH, scale * HEIGHT)
    (expert,) = open_experts([str(weights)])
    assert expert.identity.document()["scale"] == scale


def test_the_cache_holds_and_records_it(house: tuple[Path, int]) -> None:
    folder, scale = house
    reader = CacheReader(folder / "cache")
    assert reader.recipe.scale == scale
    assert f"x1/{scale} " in reader.recipe.degradation
    item = reader.read(reader.entries[0].id)
    assert item.sr_BECHW.shape == (1, 2, 3, scale * 32, scale * 32)
    assert item.hr_BCHW is not None and item.hr_BCHW.shape[-1] == scale * 32
    torch.testing.assert_close(
        downscale(item.hr_BCHW, scale)[..., 4:-4, 4:-4], item.lr_BCHW[..., 4:-4, 4:-4], atol=0.01, rtol=0
    )
    (alone,) = open_experts([str(folder / "weights" / "compact.safetensors")])
    with_context = alone.run(item.lr_BCHW).sr_BCHW.clamp(0, 1)
    inner = slice(10 * scale, -10 * scale)
    difference = item.sr_BECHW[:, list(item.experts).index("compact")] - with_context
    assert difference[..., inner, inner].abs().max() <= 0.51 / 255


def test_it_trains_and_the_model_enlarges(house: tuple[Path, int], tmp_path: Path) -> None:
    folder, scale = house
    words = ["--config", "configs/fusion_embedded.yaml", "--cache", folder / "cache", f"run={tmp_path / 'run'}"]
    words += ["steps=2", "data.hold_out=2", "data.batch=2", "data.patch=16", "fusion.budget=true"]
    assert call(train.main, *words) == DONE
    model = FusionSR.from_pretrained(str(tmp_path / "run" / "fusion.safetensors"))
    assert model.settings.scale == scale
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert f"scale: {scale}" in config
    arguments = ["--model", tmp_path / "run" / "fusion.safetensors", "-i", folder / "lr", "--device", "cpu"]
    made = tmp_path / "sr"
    assert call(infer.command_line, *arguments, "-o", made, "--report", "--hr", folder / "hr") == DONE
    assert (
        call(infer.command_line, *arguments, "-o", tmp_path / "tiled", "--tta", "-t", "64", "--budget", "0.6") == DONE
    )
    for place in (made, tmp_path / "tiled"):
        with Image.open(place / "i0.png") as image:
            assert image.size == (scale * WIDTH, scale * HEIGHT)
    assert "PSNR" in (made / "report.html").read_text()
    assert call(fusion_command, "evaluate", "--sr", made, "--hr", folder / "hr") == DONE
    assert call(fusion_command, "judge", tmp_path / "run" / "fusion.safetensors", folder / "cache") == DONE
    large = championship_sr.upscale(photo(20, 24), model=str(tmp_path / "run" / "fusion.safetensors"), device="cpu")
    assert large.shape == (scale * 20, scale * 24, 3)
    assert call(infer.command_line, *arguments, "-o", tmp_path / "no", "--submission") == REFUSED


def test_a_base_alone_and_a_resized_output(house: tuple[Path, int], tmp_path: Path) -> None:
    folder, scale = house
    base = tmp_path / "base.safetensors"
    assert call(fusion_command, "fit-base", folder / "cache", "--out", base) == DONE
    rgba = np.dstack([photo(HEIGHT, WIDTH), np.tile(np.linspace(0, 255, WIDTH, dtype=np.uint8), (HEIGHT, 1))])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    for words, size in (((), (scale * WIDTH, scale * HEIGHT)), (("-s", "4"), (4 * WIDTH, 4 * HEIGHT))):
        words = ["--model", base, "-i", tmp_path / "a.png", "-o", tmp_path / "b.png", "--device", "cpu", *words]
        assert call(infer.command_line, *words) == DONE
        with Image.open(tmp_path / "b.png") as image:
            assert image.size == size and image.mode == "RGBA"
            assert (np.diff(np.asarray(image)[8, :, 3].astype(int)) >= 0).all()


def test_a_folder_of_images_beside_them_has_their_scale(house: tuple[Path, int], tmp_path: Path) -> None:
    folder, scale = house
    (tmp_path / "theirs").mkdir()
    for path in (folder / "hr").iterdir():
        (tmp_path / "theirs" / f"{path.stem}x{scale}.png").write_bytes(path.read_bytes())
    experts = f"{folder / 'weights' / 'compact.safetensors'},images:{tmp_path / 'theirs'}"
    words = ["--model", "none", "--experts", experts, "-i", folder / "lr", "-o", tmp_path / "out", "--device", "cpu"]
    assert call(infer.command_line, *words) == DONE
    assert len(list((tmp_path / "out").glob("*.png"))) == 6


def test_different_scales_are_refused(
    house: tuple[Path, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, scale = house
    mixed = f"{folder / 'weights' / 'compact.safetensors'},edsr-s"
    infer_words = ["-i", folder / "lr", "-o", tmp_path / "out", "--device", "cpu"]
    for command, words in (
        (infer.command_line, ["--model", "none", "--experts", mixed, *infer_words]),
        (cache_command, ["extract", "--experts", mixed, "--hr", folder / "hr", "--out", tmp_path / "c"]),
        (
            cache_command,
            ["extract", "--sequential", "--experts", mixed, "--hr", folder / "hr", "--out", tmp_path / "c"],
        ),
    ):
        assert call(command, *words) == REFUSED
        assert f"different factors: compact {scale}x, edsr-s 4x" in capsys.readouterr().err
    four = ExpertSlot(name="compact", channels=0)
    torch.manual_seed(0)
    save_model(FusionSR(FusionSettings(experts=(four,))), tmp_path / "four.safetensors")
    words = ["--model", tmp_path / "four.safetensors", "--experts", folder / "weights" / "compact.safetensors"]
    assert call(infer.command_line, *words, *infer_words) == REFUSED
    assert f"fuses experts that enlarge 4 times, these enlarge {scale} times" in capsys.readouterr().err
    live = ["--config", "configs/fusion_embedded.yaml", "--live", f"data.hr=[{folder / 'hr'}]", f"run={tmp_path / 'r'}"]
    live += [f"data.experts=[{folder / 'weights' / 'compact.safetensors'}]", "data.hold_out=2"]
    assert call(train.main, *live) == REFUSED
    assert f"data.scale={scale}" in capsys.readouterr().err
    wrong = ["--config", "configs/fusion_embedded.yaml", "--cache", folder / "cache", f"data.scale={5 - scale}"]
    assert call(train.main, *wrong, f"run={tmp_path / 'r'}") == REFUSED
    assert f"enlarge {scale} times" in capsys.readouterr().err


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("architecture", ["EDSR", "MSG"])
def test_our_own_architectures_have_them_too(tmp_path: Path, architecture: str, scale: int) -> None:
    own = {"upscale": scale} if architecture == "EDSR" else {"scale": scale}
    network = small_network(architecture, **own) if architecture == "EDSR" else MSG(**SMALL["msg"], **own).eval()
    path = save_network(network, tmp_path / "net.safetensors")
    (expert,) = open_experts([str(path)])
    lr = torch.rand(1, 3, 24, 33)
    output = expert.run(lr)
    assert output.sr_BCHW.shape == (1, 3, scale * 24, scale * 33)
    assert output.feat_BCHW is not None and output.feat_BCHW.shape[-2:] == (24, 33)


@pytest.mark.parametrize("scale", SCALES)
def test_every_phase_starts_at_the_base_and_keeps_its_means(scale: int) -> None:
    slots = (ExpertSlot(name="a", channels=5), ExpertSlot(name="b", channels=0))
    settings = every_phase().model_copy(update={"experts": slots, "scale": scale})
    torch.manual_seed(0)
    model = FusionSR(settings).eval()
    lr = torch.rand(1, 3, 16, 24)
    sr, feats = torch.rand(1, 2, 3, scale * 16, scale * 24), {"a": torch.rand(1, 5, 16, 24)}
    with torch.no_grad():
        output = model(lr, sr, feats)
        assert torch.equal(output.image_BCHW, output.base_BCHW)
        output = stir(model, 0.05)(lr, sr, feats)
    assert not torch.equal(output.image_BCHW, output.base_BCHW)
    torch.testing.assert_close(output.gates_BEHW.sum(1), torch.ones(1, scale * 16, scale * 24), atol=1e-4, rtol=0)
    for part_BCHW in output.contributions.values():
        means = torch.nn.functional.avg_pool2d(part_BCHW, scale)
        assert means.abs().max() < 1e-5


@pytest.mark.parametrize("scale", SCALES)
def test_shrinking_by_convolution_is_the_downscale(scale: int) -> None:
    image = torch.rand(1, 3, scale * 11, scale * 9, dtype=torch.float64)
    torch.testing.assert_close(shrink(image, scale), downscale(image, scale), atol=1e-12, rtol=0)
    assert missing(image, downscale(image, scale), scale).abs().max() < 1e-6
    constraint = FusionSettings(scale=scale, consistency=ConsistencySettings(enabled=True, tolerance=0))
    lr = torch.rand(1, 3, 11, 9, dtype=torch.float64)
    torch.testing.assert_close(shrink(LRConsistency(constraint)(image, lr), scale), lr, atol=1e-9, rtol=0)


def test_what_is_four_times_as_large_is_recorded_as_before() -> None:
    assert "scale" not in FusionSettings().model_dump(mode="json")
    assert FusionSettings.model_validate(FusionSettings(scale=3).model_dump()).scale == 3
    record = {"name": "a", "architecture": "b", "tap": None, "channels": 0, "weights_sha256": "c"}
    record |= {"precision": "fp32", "tiling": "whole"}
    recipe = {"profile": "half", "compression": "none", "experts": [record], "degradation": "d"}
    recipe |= {"regions": 0, "region_size": 0, "context": 0, "seed": 0, "dihedral": False}
    # As computed before there was any other scale.
    assert Recipe.model_validate(recipe).fingerprint == FINGERPRINT
    assert Recipe.model_validate({**recipe, "experts": [{**record, "scale": 2}]}).fingerprint != FINGERPRINT


FINGERPRINT = "14b234285e985a6e6390c09d271f227e8b9a2f7b"
