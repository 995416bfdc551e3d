"""`infer.py` as users and challenge toolkits call it: real tiny experts, real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import infer
from benchmarks.inference.cost import photograph, run_infer, tiny_expert
from fusion.inference.report.provenance import read_manifest, record_path
from fusion.network import FusionSR
from imaging.command import DONE, FAILURES_LISTED, REFUSED
from imaging.files import quantize_u8, read_rgb
from tests.experts.parts import small_network
from tests.inference.parts import alone, call, fusion_folder, photo, pixels, reference, save_photos, weights_file


def test_folder_of_images(tmp_path: Path, expert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = save_photos(tmp_path / "in")
    assert alone(expert, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json") == DONE
    document = json.loads(capsys.readouterr().out)
    assert len(document["written"]) == 3
    assert not document["failed"]
    for path in inputs:
        difference = pixels(tmp_path / "out" / path.name).astype(int) - reference(path)
        assert np.abs(difference).max() <= 1  # one thread or two: sums in another order


def test_one_file_to_one_file(tmp_path: Path, expert: Path) -> None:
    (path,) = save_photos(tmp_path, 1)
    assert alone(expert, "-i", path, "-o", tmp_path / "made" / "big.png") == DONE
    assert pixels(tmp_path / "made" / "big.png").shape == (96, 96, 3)


def test_tiles_and_tta_from_the_command_line(tmp_path: Path, expert: Path) -> None:
    path = tmp_path / "in.png"
    Image.fromarray(photo(100, 130)).save(path)
    assert alone(expert, "-i", path, "-o", tmp_path / "tiles.png", "-t", "96") == DONE
    assert np.abs(pixels(tmp_path / "tiles.png").astype(int) - reference(path)).max() <= 1
    record = json.loads(record_path(tmp_path / "tiles.png").read_text())
    assert record["tiles"] == 4
    assert alone(expert, "-i", path, "-o", tmp_path / "tta.png", "--tta") == DONE
    assert (pixels(tmp_path / "tta.png") != pixels(tmp_path / "tiles.png")).any()


def test_several_experts_without_a_model_give_their_mean(tmp_path: Path, expert: Path) -> None:
    second = weights_file(tmp_path / "weights", "tiny-b", seed=1)
    (path,) = save_photos(tmp_path / "in", 1)
    words = ["--model", "none", "--experts", f"{expert},{second}", "--device", "cpu"]
    assert call(*words, "-i", path, "-o", tmp_path / "out") == DONE
    with torch.no_grad():
        images = [small_network("EDSR", seed)(read_rgb(path)) for seed in (0, 1)]
    expected = quantize_u8((images[0] + images[1]) / 2)[0].permute(1, 2, 0).numpy()
    output = tmp_path / "out" / path.name
    assert np.abs(pixels(output).astype(int) - expected).max() <= 1
    assert read_manifest(output)["fusion"] == {"kind": "plain mean"}


@pytest.mark.parametrize("subset", [None, "tiny-b"])
def test_fusion_model_and_subsets(tmp_path: Path, expert: Path, subset: str | None, monkeypatch: Any) -> None:
    second = weights_file(tmp_path / "weights", "tiny-b", seed=1)
    model = fusion_folder(tmp_path / "model", {"tiny-a": 16, "tiny-b": 16})
    (path,) = save_photos(tmp_path / "in", 1)
    experts = {"tiny-a": expert, "tiny-b": second}
    chosen = [subset] if subset else list(experts)
    words = ["--model", model, "--experts", ",".join(str(experts[name]) for name in chosen), "--device", "cpu"]
    assert call(*words, "-i", path, "-o", tmp_path / "out") == DONE
    found = pixels(tmp_path / "out" / path.name)
    fusion = FusionSR.from_pretrained(str(model))
    lr_BCHW, images, feats = read_rgb(path), [], {}
    for name in chosen:
        network = small_network("EDSR", list(experts).index(name))
        caught: list[torch.Tensor] = []
        network.conv_after_body.register_forward_hook(
            lambda _m, _i, output, caught=caught: caught.append(output.clone())
        )
        with torch.no_grad():
            images.append(network(lr_BCHW))
        feats[name] = caught[0]
    with torch.no_grad():
        fused = fusion(lr_BCHW, torch.stack(images, 1), feats, chosen).image_BCHW
    assert np.abs(found.astype(int) - quantize_u8(fused)[0].permute(1, 2, 0).numpy()).max() <= 1
    manifest = read_manifest(tmp_path / "out" / path.name)
    assert list(manifest["experts"]) == chosen
    assert manifest["fusion"]["kind"] == "fusion"


def test_images_smaller_than_the_fusion_takes(tmp_path: Path, expert: Path) -> None:
    model = fusion_folder(tmp_path / "model", {"tiny-a": 16})
    Image.fromarray(photo(3, 5)).save(tmp_path / "in.png")
    words = ["--model", model, "--experts", expert, "--device", "cpu"]
    assert call(*words, "-i", tmp_path / "in.png", "-o", tmp_path / "out") == DONE
    assert pixels(tmp_path / "out" / "in.png").shape == (12, 20, 3)


def test_a_folder_of_images_as_an_expert(tmp_path: Path, expert: Path) -> None:
    inputs = save_photos(tmp_path / "in", 2, side=90)
    assert alone(expert, "-i", tmp_path / "in", "-o", tmp_path / "theirs") == DONE
    words = ["--model", "none", "--experts", f"images:{tmp_path / 'theirs'}", "-t", "40", "--tta"]
    assert call(*words, "-i", tmp_path / "in", "-o", tmp_path / "out") == DONE
    for path in inputs:
        np.testing.assert_array_equal(pixels(tmp_path / "out" / path.name), pixels(tmp_path / "theirs" / path.name))


def test_dry_run_writes_nothing(tmp_path: Path, expert: Path, capsys: Any, caplog: pytest.LogCaptureFixture) -> None:
    save_photos(tmp_path / "in")
    caplog.set_level("INFO")
    words = ["-i", tmp_path / "in", "-o", tmp_path / "out", "--dry-run", "--json", "-t", "0"]
    assert alone(expert, *words) == DONE
    document = json.loads(capsys.readouterr().out)
    assert document["tiles"] == 3
    assert document["seconds"] > 0
    assert document["disk_bytes"] > 0
    words.remove("--json")
    assert alone(expert, *words) == DONE
    assert "in all 3 images, 3 tiles (whole images) on cpu, " in caplog.text
    assert alone(expert, "-i", tmp_path / "in" / "image0.png", *words[2:]) == DONE
    assert "in all 1 image, 1 tile (whole images) on cpu, " in caplog.text
    assert not (tmp_path / "out").exists()


def test_skip_existing_knows_what_made_an_image(tmp_path: Path, expert: Path, capsys: Any) -> None:
    inputs = save_photos(tmp_path / "in")
    base = ["-i", tmp_path / "in", "-o", tmp_path / "out", "--skip-existing", "--json"]

    def written(*words: object, weights: Path = expert) -> set[str]:
        assert alone(weights, *base, *words) == DONE
        return {Path(name).stem for name in json.loads(capsys.readouterr().out)["written"]}

    assert len(written()) == 3
    assert written() == set()
    (tmp_path / "out" / "image0.png").unlink()
    assert alone(expert, *base, "--dry-run") == DONE  # forecasts what a run would do
    assert [Path(one["input"]).stem for one in json.loads(capsys.readouterr().out)["images"]] == ["image0"]
    assert written() == {"image0"}
    assert alone(expert, *base, "--dry-run") == DONE
    assert json.loads(capsys.readouterr().out)["images"] == []
    Image.fromarray(photo(24, 24, seed=9)).save(inputs[1])  # another input
    assert written() == {"image1"}
    with (tmp_path / "out" / "image2.png").open("ab") as file:  # a changed output
        file.write(b"x")
    assert written() == {"image2"}
    record_path(tmp_path / "out" / "image0.png").write_text("{")  # a damaged record
    assert written() == {"image0"}
    assert len(written("--tta")) == 3  # other options
    assert len(written("--tta", weights=weights_file(tmp_path / "other", seed=5))) == 3  # other weights, same name


def test_verify(
    tmp_path: Path, expert: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = save_photos(tmp_path / "in", 1)
    assert alone(expert, "-i", path, "-o", tmp_path / "out", "-t", "0") == DONE
    output = tmp_path / "out" / path.name
    verify = ["--verify", output, "-t", "0", "--json"]
    assert alone(expert, *verify, "-i", path, "-o", tmp_path) == DONE
    capsys.readouterr()
    assert alone(expert, *verify, "--tta") == FAILURES_LISTED
    assert any("tta" in one for one in json.loads(capsys.readouterr().out)["differences"])
    other = weights_file(tmp_path / "other", seed=5)
    assert alone(other, *verify) == FAILURES_LISTED
    assert any("weights_sha256" in one for one in json.loads(capsys.readouterr().out)["differences"])
    caplog.set_level("INFO")
    assert alone(other, *verify[:-1]) == FAILURES_LISTED
    assert "if another --model, --experts or --refine made it, give them again" in caplog.text
    data = bytearray(output.read_bytes())
    data[len(data) // 2] ^= 1
    output.write_bytes(data)
    assert alone(expert, *verify) == FAILURES_LISTED
    assert any("changed after" in one for one in json.loads(capsys.readouterr().out)["differences"])
    assert alone(expert, "--verify", path) == REFUSED


def test_default_model_is_read_from_the_pretrained_folder(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    folder = tmp_path / "pretrained"
    weights_file(folder)
    (folder / "default.yaml").write_text("experts: [tiny-a.safetensors]\nfusion: null\n")
    monkeypatch.setenv("CHAMPIONSHIP_SR_PRETRAINED", str(folder))
    (path,) = save_photos(tmp_path / "in", 1)
    assert call("-i", path, "-o", tmp_path / "out") == DONE
    assert np.abs(pixels(tmp_path / "out" / path.name).astype(int) - reference(path)).max() <= 1
    (folder / "default.yaml").write_text("expert: [tiny-a.safetensors]\n")
    assert call("-i", path, "-o", tmp_path / "out") == REFUSED
    assert "did you mean 'experts'" in capsys.readouterr().err


class StandIn:
    """What the NTIRE toolkit's test.py does: keyword arguments, a device object, then it reads the folder."""

    def __init__(self, data: Path, save: Path) -> None:
        self.data, self.save = data, save

    def run(self, model_func: Any, model_dir: Path) -> list[np.ndarray]:
        self.save.mkdir(parents=True)
        model_func(
            model_dir=str(model_dir), input_path=str(self.data), output_path=str(self.save), device=torch.device("cpu")
        )
        return [pixels(self.save / path.name) for path in sorted(self.data.iterdir())]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_ntire_entry_point(tmp_path: Path, expert: Path, kind: str) -> None:
    inputs = save_photos(tmp_path / "LR")
    model_dir = expert
    if kind == "folder":
        (expert.parent / "default.yaml").write_text("experts: [tiny-a.safetensors]\n")
        model_dir = expert.parent
    outputs = StandIn(tmp_path / "LR", tmp_path / "results").run(infer.main, model_dir)
    for path, found in zip(inputs, outputs, strict=True):
        assert np.abs(found.astype(int) - reference(path)).max() <= 1


@pytest.mark.slow
def test_compiled_experts_give_the_same_image(tmp_path: Path, expert: Path, monkeypatch: Any) -> None:
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler")
    # Without vector instructions: trying which of them the compiler knows takes longer than all else here.
    monkeypatch.setattr("torch._inductor.config.cpp.vec_isa_ok", False)
    (path,) = save_photos(tmp_path / "in", 1)
    from torch._dynamo.utils import counters

    counters.clear()
    assert alone(expert, "-i", path, "-o", tmp_path / "out", "--compile") == DONE
    assert counters["stats"]["unique_graphs"] > 0  # else nothing was compiled
    assert np.abs(pixels(tmp_path / "out" / path.name).astype(int) - reference(path)).max() <= 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """Real processes: ten times the pixels, the same peak but for what reading the input takes."""
    weights = tiny_expert(tmp_path / "tiny.safetensors")
    peaks = []
    for height in (256, 2560):
        Image.fromarray(photograph(512)[:256]).resize((512, height)).save(tmp_path / f"{height}.png")
        words = ["-t", 128, "--model", "none", "--experts", weights]
        peaks.append(run_infer("-i", tmp_path / f"{height}.png", "-o", tmp_path / f"{height}-out.png", *words).peak_mb)
    assert peaks[1] < peaks[0] + 120  # the output alone is 63 MB as levels, 252 MB as floats


def test_shards_make_every_image_once_and_the_report_comes_at_the_end(
    tmp_path: Path, expert: Path, capsys: Any
) -> None:
    inputs = save_photos(tmp_path / "in", 5)
    assert alone(expert, "-i", tmp_path / "in", "-o", tmp_path / "whole") == DONE
    counts = []
    for part in range(2):
        words = ("-i", tmp_path / "in", "-o", tmp_path / "out", "--shard", f"{part}/2")
        capsys.readouterr()
        assert alone(expert, *words, "--json") == DONE
        document = json.loads(capsys.readouterr().out)
        counts.append(len(document["written"]))
        assert not document["skipped"]
    assert counts == [3, 2]
    for path in inputs:
        assert (tmp_path / "out" / path.name).read_bytes() == (tmp_path / "whole" / path.name).read_bytes()
    assert alone(expert, *words, "--report") == REFUSED
    assert "--skip-existing" in capsys.readouterr().err
    assert alone(expert, "-i", tmp_path / "in", "-o", tmp_path / "out", "--shard", "2/2") == REFUSED
    assert "not I/N" in capsys.readouterr().err


def test_verify_takes_from_the_record_what_is_not_said(tmp_path: Path, expert: Path, capsys: Any, caplog: Any) -> None:
    """An output made with options is not another's because they are not repeated; those that are given are checked."""
    (path,) = save_photos(tmp_path / "in", 1, side=140)
    assert alone(expert, "-i", path, "-o", tmp_path / "out", "-t", "16", "--tta", "--background", "white") == DONE
    output = tmp_path / "out" / path.name
    caplog.set_level("INFO")
    assert alone(expert, "--verify", output) == DONE
    assert "its record names" in caplog.text and "tta=True" in caplog.text and "background=#ffffff" in caplog.text
    assert alone(expert, "--verify", output, "-t", "16") == DONE, "as it was asked for: raised as it was then"
    capsys.readouterr()
    assert alone(expert, "--verify", output, "-t", "400", "--background", "black", "--json") == FAILURES_LISTED
    document = json.loads(capsys.readouterr().out)
    assert {one.partition(":")[0] for one in document["differences"]} == {"options.tile", "options.background"}
    assert document["from_record"] == {"tta": True}
