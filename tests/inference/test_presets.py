"""`--model NAME`: a preset of published experts, not fetched, partly fetched, and whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experts.__main__ import main as experts_command
from fusion.budget.run import find_budget_model
from fusion.inference.model_selection import select_model
from fusion.inference.report.provenance import read_manifest
from imaging.command import DONE, REFUSED, run
from imaging.refusal import Refusal
from tests.experts.loading.test_fetch import Server, server  # noqa: F401 (a fixture)
from tests.inference.parts import call, fusion_folder, save_photos, weights_file

BOTH = ("near", "far")
Capsys = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A preset `pair` of two experts that are not there yet, and their fusion."""
    folder = tmp_path / "pretrained"
    monkeypatch.setenv("CHAMPIONSHIP_SR_PRETRAINED", str(folder))
    model = fusion_folder(tmp_path / "model", dict.fromkeys(BOTH, 16)) / "model.safetensors"
    folder.mkdir()
    shutil.copyfile(model, folder / "pair.safetensors")
    (folder / "pair.yaml").write_text("experts: [near, far]\nfusion: pair.safetensors\nbudget: pair_budget.json\n")
    return folder


@pytest.fixture
def catalog(tmp_path: Path, server: Server) -> Path:  # noqa: F811
    for seed, name in enumerate(BOTH):
        path = weights_file(tmp_path / "origin", name, seed)
        server.files[f"/{name}.safetensors"] = path.read_bytes()
    path = tmp_path / "catalog.yaml"
    base = server.url.rpartition("/")[0]
    lines = [
        f"  - {{name: {one}, weights: [{{file: {one}.safetensors, url: {base}/{one}.safetensors}}]}}" for one in BOTH
    ]
    path.write_text("\n".join(["experts:", *lines]) + "\n")
    return path


def upscale(tmp_path: Path, catalog: Path, *more: object) -> int:
    (path,) = save_photos(tmp_path / "in", 1)
    return call("-i", path, "-o", tmp_path / "out", "--model", "pair", "--config", catalog, "--device", "cpu", *more)


@pytest.mark.parametrize(("has", "words", "expected"), [
    (True, (), "bf16"),
    (False, (), "fp32"),
    (True, ("--precision", "fp32"), "fp32"),
    (True, ("--submission",), "fp32"),
])  # fmt: skip
def test_auto_is_bf16_where_the_preset_and_the_processor_have_it(
    tmp_path: Path,
    catalog: Path,
    pretrained: Path,
    monkeypatch: pytest.MonkeyPatch,
    has: bool,
    words: tuple[str, ...],
    expected: str,
) -> None:
    assert run(experts_command, ["fetch", *BOTH, "--catalog", str(catalog)]) == DONE
    found = {"architecture": "x86_64", "avx512_bf16": has}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    upscale(tmp_path, catalog, *words)
    assert precisions_of(tmp_path) == {"fp32"}  # the preset does not allow it
    with (pretrained / "pair.yaml").open("a") as file:
        file.write("fast_precision: bf16\n")
    shutil.rmtree(tmp_path / "out")
    assert upscale(tmp_path, catalog, *words) == DONE
    assert precisions_of(tmp_path) == {expected}
    # What an image was made in is in its record: no option is needed to verify it, on no processor.
    found["avx512_bf16"] = not has
    (image,) = (tmp_path / "out").glob("*.png")
    assert call("--verify", image, "--model", "pair", "--config", catalog, "--device", "cpu") == DONE


def precisions_of(tmp_path: Path) -> set[str]:
    image = next((tmp_path / "out").glob("*.png"))
    manifest = read_manifest(image)
    assert manifest["fusion"].get("precision", "fp32") in {one["precision"] for one in manifest["experts"].values()}
    return {one["precision"] for one in manifest["experts"].values()}


def experts_of(tmp_path: Path) -> tuple[str, ...]:
    (image,) = (tmp_path / "out").glob("*.png")
    return tuple(read_manifest(image)["experts"])


def test_without_weights_the_one_command_is_named_and_after_it_all_is_well(
    tmp_path: Path, pretrained: Path, catalog: Path, capsys: Capsys
) -> None:
    assert upscale(tmp_path, catalog) == REFUSED
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "the weights of near, far are missing" in line
    command = line.partition("`python -m experts ")[2].partition("`")[0]
    assert command == "fetch near far"
    assert run(experts_command, [*command.split(), "--config", str(catalog)]) == DONE
    assert upscale(tmp_path, catalog) == DONE
    assert experts_of(tmp_path) == BOTH


def test_with_a_part_of_the_weights_that_part_works_and_says_so(
    tmp_path: Path, pretrained: Path, catalog: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights_file(pretrained, "far", 1)
    assert upscale(tmp_path, catalog) == DONE
    assert experts_of(tmp_path) == ("far",)
    assert "the weights of near are missing: going on with far alone" in caplog.text
    assert "`python -m experts fetch near`" in caplog.text


def test_experts_chosen_by_hand_must_be_there(tmp_path: Path, pretrained: Path, catalog: Path, capsys: Capsys) -> None:
    weights_file(pretrained, "far", 1)
    assert upscale(tmp_path, catalog, "--experts", "near,far") == REFUSED
    assert "the weights of 'near' are missing" in capsys.readouterr().err
    assert upscale(tmp_path, catalog, "--experts", "edsr-s") == REFUSED
    assert "does not know all of edsr-s" in capsys.readouterr().err


def test_a_mistyped_preset_is_answered_with_the_right_one(pretrained: Path) -> None:
    with pytest.raises(Refusal, match="no such model; did you mean --model pair"):
        select_model("piar", None)
    with pytest.raises(Refusal, match="did you mean --model strong"):
        select_model("strnog", None)  # shipped, not among the user's own
    with pytest.raises(Refusal, match="name a file or folder"):
        select_model("nothing-like-it", None)


def test_its_budget_is_its_own(pretrained: Path) -> None:
    (pretrained / "budget.json").touch()
    with pytest.raises(Refusal, match="no budget model beside it"):
        find_budget_model("pair")
    (pretrained / "pair_budget.json").touch()
    assert find_budget_model("pair") == pretrained / "pair_budget.json"


def test_fast_opens_in_spandrel_without_us_and_runs(tmp_path: Path) -> None:
    """From another folder and without the environment's paths, so that none of our packages could be found."""
    file = ROOT / "pretrained" / "fast.safetensors"
    code = (
        "import sys, torch; from spandrel import ModelLoader; "
        f"model = ModelLoader().load_from_file({str(file)!r}); "
        "assert model.scale == 4 and model(torch.rand(1, 3, 9, 7)).shape == (1, 3, 36, 28); "
        "assert not {'imaging', 'experts', 'fusion', 'championship_sr'} & set(sys.modules); "
        "print(model.architecture.id)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "RCAN"), done.stderr
    (photo,) = save_photos(tmp_path / "in", 1)
    assert call("-i", photo, "-o", tmp_path / "out", "--model", "fast", "--device", "cpu") == DONE
    assert experts_of(tmp_path) == ("fast",)
