"""`infer.py --refine` and `python -m fusion evaluate --curve` as users call them, on tiny models."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import infer
from fusion import __main__ as fusion_main
from fusion.evaluation.curve import texture_gap
from fusion.inference.report.provenance import read_manifest, record_path
from imaging.command import DONE, FAILURES_LISTED, REFUSED, run
from imaging.files import read_rgb
from imaging.resize import downscale_8bit
from tests.inference.parts import photo, pixels, weights_file
from tests.refinement.parts import add_lora, lora_tensors, need_diffusion, save_lora, save_sd2, save_sd3

need_diffusion()
HOUSE = Path(infer.__file__).parent


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """expert weights, sd3/, sd2/, lora/ (for sd3) and lr/ with two images, hr/ with their truths."""
    folder = tmp_path_factory.mktemp("room")
    weights_file(folder)
    save_sd3(folder / "sd3")
    save_sd2(folder / "sd2")
    add_loras(folder)
    for name, height, width in (("a", 17, 23), ("b", 24, 20)):
        (folder / "hr").mkdir(exist_ok=True)
        Image.fromarray(photo(4 * height, 4 * width, seed=height)).save(folder / "hr" / f"{name}.png")
        small = downscale_8bit(read_rgb(folder / "hr" / f"{name}.png"))[0].permute(1, 2, 0).numpy()
        (folder / "lr").mkdir(exist_ok=True)
        Image.fromarray((small * 255).round().astype(np.uint8)).save(folder / "lr" / f"{name}.png")
    return folder


def add_loras(folder: Path) -> None:
    import diffusers

    model = diffusers.SD3Transformer2DModel.from_pretrained(folder / "sd3", subfolder="transformer")
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "sd3", subfolder="vae")
    save_lora(folder / "lora", "transformer.safetensors", lora_tensors(add_lora(model, ["to_q"])), "transformer")
    save_lora(folder / "lora", "vae.safetensors", lora_tensors(add_lora(vae, ["encoder.conv_in"])), "transformer")


def words_of(room: Path, out: Path, *more: object, refine: str | None = "tsdsr") -> list[str]:
    words = ["--model", room / "tiny-a.safetensors", "--device", "cpu", "-i", room / "lr", "-o", out, *more]
    base = {"tsdsr": "sd3", "sd-onestep": "sd2"}
    if refine is not None:
        words += ["--refine", refine, "--refine-model", room / base[refine]]
    return [str(word) for word in words]


def call(*words: object, **how: Any) -> int:
    return run(infer.command_line, words_of(*words, **how))


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_end_to_end_with_lora_report_and_provenance(room: Path, tmp_path: Path) -> None:
    """A process of its own: refined files, the report's third pane, the record, and `--verify`."""
    out = tmp_path / "out"
    more = ["--refine-lora", room / "lora", "--refine-seed", 3, "--report", "--hr", room / "hr", "--json"]
    command = [sys.executable, "infer.py", *words_of(room, out, *more)]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=False)
    assert done.returncode == DONE, done.stderr
    document = json.loads(done.stdout)
    assert document["refined"].keys() == {"a", "b"}
    assert document["refined"]["a"]["change_rms"] > 1
    assert document["refined"]["a"]["low_band_drift"] < 0.01
    assert document["refined"]["a"]["lr_rms"] != document["refined"]["a"]["lr_rms_before"]
    assert pixels(out / "a.png").shape == (68, 92, 3)
    manifest = read_manifest(out / "a.png")
    assert manifest["options"]["refine"] == {"strength": 1.0, "colour": "wavelet", "seed": 3}
    assert manifest["refine"]["lora"].keys() == {"transformer.safetensors", "vae.safetensors"}
    assert re.fullmatch(r"[0-9a-f]{64}", manifest["refine"]["base"]["transformer/diffusion_pytorch_model.safetensors"])
    assert json.loads(record_path(out / "a.png").read_text())["refined"] == document["refined"]["a"]
    page = (out / "report.html").read_text()
    assert page.count('alt="refined"') == 2
    assert page.count("grey levels (rms) from the input") == 2
    assert "<th>refined</th>" in page
    assert page.count('<label class="strength">') == 2

    same = ["--refine-lora", room / "lora", "--refine-seed", 3, "--verify", out / "a.png"]
    for changed, code in (
        (same, DONE),
        ([*same, "--refine-strength", 0.5], FAILURES_LISTED),
        (same[2:], FAILURES_LISTED),
    ):
        assert call(room, out, *changed, "-i", room / "lr" / "a.png") == code
    assert call(room, out, *same) == REFUSED  # a folder is not the one input


def test_strength_zero_leaves_every_pixel(room: Path, tmp_path: Path) -> None:
    assert call(room, tmp_path / "plain", refine=None) == DONE
    assert call(room, tmp_path / "zero", "--refine-strength", 0) == DONE
    assert call(room, tmp_path / "one", refine="sd-onestep") == DONE
    for name in ("a.png", "b.png"):
        np.testing.assert_array_equal(pixels(tmp_path / "zero" / name), pixels(tmp_path / "plain" / name))
        assert (pixels(tmp_path / "one" / name) != pixels(tmp_path / "plain" / name)).any()


def test_seeds_repeat_and_existing_outputs_are_known(room: Path, tmp_path: Path, capsys: Any) -> None:
    for folder, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert call(room, tmp_path / folder, "--refine-seed", seed) == DONE
    first, again, other = (pixels(tmp_path / folder / "a.png") for folder in "abc")
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    capsys.readouterr()
    for more, skipped in ((["--refine-seed", 5], 2), (["--refine-seed", 5, "--refine-colour", "adain"], 0)):
        assert call(room, tmp_path / "a", "--skip-existing", "--json", *more) == DONE
        assert len(json.loads(capsys.readouterr().out)["skipped"]) == skipped


def test_grey_alpha_and_sixteen_bits(room: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "lr"
    inputs.mkdir()
    Image.fromarray(photo(12, 15, 1)).save(inputs / "grey.png")
    Image.fromarray(photo(12, 15, 4)).save(inputs / "alpha.png")
    Image.fromarray(photo(12, 15, 1, depth=16)).save(inputs / "deep.png")
    assert call(room, tmp_path / "out", "-i", inputs) == DONE
    assert call(room, tmp_path / "plain", "-i", inputs, refine=None) == DONE
    for name in ("grey", "alpha", "deep"):
        found, plain = (pixels(tmp_path / folder / f"{name}.png") for folder in ("out", "plain"))
        assert found.shape == plain.shape
        assert found.dtype == plain.dtype
        assert (found != plain).any()
    np.testing.assert_array_equal(
        pixels(tmp_path / "out" / "alpha.png")[..., 3], pixels(tmp_path / "plain" / "alpha.png")[..., 3]
    )


def test_dry_run_forecasts_refinement(room: Path, tmp_path: Path, capsys: Any, caplog: Any) -> None:
    caplog.set_level("INFO")
    assert call(room, tmp_path / "out", "--dry-run", "--json") == DONE
    document = json.loads(capsys.readouterr().out)
    assert document["refine"]["tiles"] == 2 * 3
    assert document["refine"]["preset"] == "tsdsr"
    assert document["refine"]["host_bytes"] > 4 * 3 * 96 * 80
    assert not (tmp_path / "out").exists()
    assert call(room, tmp_path / "out", "--dry-run") == DONE
    assert "refined by tsdsr in float32: 6 tiles of its own" in caplog.text


def test_contradictory_options_are_refused(room: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    cases: list[tuple[list[object], str | None, str]] = [
        (["--refine-strength", 0.5], None, "--refine-strength without --refine"),
        (["--refine", "tsdsr"], None, "needs a base model"),
        (["--refine", "tsdrs", "--refine-model", "x"], None, "did you mean 'tsdsr'"),
        (["--refine-strength", 2], "tsdsr", "is no strength"),
        (["--refine-model", tmp_path / "nowhere"], "tsdsr", "no such folder"),
        (["--refine-lora", tmp_path / "nowhere"], "tsdsr", "no such folder"),
    ]
    for more, refine, said in cases:
        words = words_of(room, out, refine=refine)
        assert run(infer.command_line, [*words, *(str(word) for word in more)]) == REFUSED, said
        assert said in last_line(capsys)
    assert not out.exists()


def test_a_gated_id_offline_is_one_clear_line(room: Path, tmp_path: Path) -> None:
    command = [sys.executable, "infer.py", *words_of(room, tmp_path / "out", "--refine", "tsdsr", refine=None)]
    command += ["--refine-model", "stabilityai/stable-diffusion-3-medium-diffusers"]
    where = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=False, env=where)
    assert done.returncode == REFUSED
    (line,) = [one for one in done.stderr.splitlines() if one.startswith("refused:")]
    assert "is not in the Hub's cache" in line
    assert "accept its licence on its page" in line
    assert "Traceback" not in done.stderr


# The curve of strengths


@pytest.fixture
def strengths(room: Path, tmp_path: Path) -> Path:
    for strength in (0, 0.5, 1):
        assert call(room, tmp_path / "curve" / str(strength), "--refine-strength", strength) == DONE
    return tmp_path / "curve"


def test_the_curve_from_a_folder_of_strengths(room: Path, strengths: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["evaluate", "--sr", str(strengths), "--hr", str(room / "hr"), "--curve", str(tmp_path / "curve.svg")]
    capsys.readouterr()
    assert run(fusion_main.main, [*words, "--json"]) == DONE
    document = json.loads(capsys.readouterr().out)
    rows = document["curve"]
    assert [row["strength"] for row in rows] == [0, 0.5, 1]
    assert document["perception"] == "texture_gap"
    # On the line between two images the squared error is a parabola: its middle lies below the mean of its ends.
    errors = [np.mean([(pixels(strengths / s / n) - pixels(room / "hr" / n).astype(float)) ** 2 for n in ("a.png",)])
              for s in ("0", "0.5", "1")]  # fmt: skip
    assert errors[1] < (errors[0] + errors[2]) / 2
    alone = [*words[:2], str(strengths / "0.5"), *words[3:5], "--json"]
    assert run(fusion_main.main, alone) == DONE
    mean = json.loads(capsys.readouterr().out)["mean"]
    assert {key: rows[1][key] for key in mean} == mean
    picture = ElementTree.parse(tmp_path / "curve.svg").getroot()
    labels = {element.text for element in picture.iter() if element.tag.endswith("text")}
    assert {"0", "0.5", "1", "psnr_y, dB (higher is better)"} <= labels
    assert len([element for element in picture.iter() if element.tag.endswith("circle")]) == 3
    assert not re.search(r"(href|src|url)", (tmp_path / "curve.svg").read_text())
    assert run(fusion_main.main, words) == DONE
    assert capsys.readouterr().out.splitlines()[0].split() == ["strength", "psnr_y", "ssim_y", "texture_gap"]


def test_folders_that_are_no_strengths_are_refused(room: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["evaluate", "--hr", str(room / "hr"), "--curve", str(tmp_path / "curve.svg"), "--sr"]
    for name in ("none", "0.5"):
        (tmp_path / "s" / name).mkdir(parents=True)
    assert run(fusion_main.main, [*words, str(tmp_path / "s")]) == REFUSED
    assert "two different strengths" in last_line(capsys)
    assert not (tmp_path / "curve.svg").exists()


def test_the_texture_gap_is_the_energy_of_what_an_lr_image_cannot_hold(room: Path) -> None:
    truth = read_rgb(room / "hr" / "a.png").double()
    coarse = truth.mean(dim=(-1, -2), keepdim=True)
    # Both parts scale alike: contrast halved is a quarter of the energy, 6.02 dB less.
    assert texture_gap((truth - coarse) / 2 + coarse, truth) == pytest.approx(20 * np.log10(2), abs=1e-6)
    assert texture_gap(truth, truth) == 0
