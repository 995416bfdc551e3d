"""Experts given by file: what caches and models say of them opens them again, wherever their files are now."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import train
from cache_tools.__main__ import main as cache_command
from cache_tools.format.store import Manifest, Store
from experts.__main__ import main as experts_command
from experts.loading.find_file import find_file, note_place
from fusion.network.network import load_model
from fusion.network.save import read_header, save_model
from imaging.command import DONE, REFUSED, run
from imaging.hashes import file_sha256
from infer import build, command_line
from tests.experts.parts import save_network, small_network
from tests.inference.parts import save_photos
from tests.training.parts import fusion_document, write_config, write_pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PAGE = Path(__file__).resolve().parents[2] / "docs" / "experts.md"
CODE = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.up = torch.nn.Sequential(torch.nn.Conv2d(6, 48, 3, padding=1), torch.nn.PixelShuffle(4))

    def forward(self, x):
        return self.up(self.body(x))
"""


def words_of(*words: object) -> list[str]:
    return [str(word) for word in words]


def train_fusion(folder: Path, experts: str, *more: str) -> Path:
    """A cache of these experts, and a fusion trained from it."""
    hr = write_pictures(folder / "hr", 12)
    words = ["extract", "--experts", experts, "--hr", str(hr), "--out", str(folder / "cache"), *more]
    assert run(cache_command, words) == DONE
    document = fusion_document(folder / "cache", folder / "run", steps=1, checkpoint={"every": 1})
    assert run(train.main, ["--config", str(write_config(folder / "c.yaml", document)), *more]) == DONE
    return folder / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose one expert is a user's file in a folder of its own, the other one ships."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "mine").mkdir()
    save_network(small_network("EDSR"), folder / "mine" / "4x_mine.pth")
    train_fusion(folder, f"{folder / 'mine' / '4x_mine.pth'},edsr-s")
    save_photos(folder / "in", 1)
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, whose file was last opened in its own folder."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    note_place(tmp_path / "mine" / "4x_mine.pth", file_sha256(tmp_path / "mine" / "4x_mine.pth"))
    return tmp_path


@pytest.fixture
def elsewhere(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same on a machine that has never opened the file, which is no longer where it was."""
    monkeypatch.setenv("XDG_DATA_HOME", str(place / "nothing"))
    (place / "moved").mkdir()
    return (place / "mine" / "4x_mine.pth").rename(place / "moved" / "renamed.pth")


def upscale(place: Path, *more: object) -> int:
    words = words_of("--model", place / "run", "-i", place / "in", "-o", place / "out", "--device", "cpu", *more)
    return run(command_line, words)


def test_the_loop_in_the_docs_works_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = re.search(r"## The whole loop.*?```\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert lines is not None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    save_network(small_network("EDSR"), tmp_path / "models" / "4x_mine.pth")
    write_pictures(tmp_path / "photos", 44, (64, 64))
    save_photos(tmp_path / "small", 2)
    commands: dict[str, Callable[[Sequence[str]], int]] = {
        "-m experts": experts_command,
        "-m cache_tools": cache_command,
        "train.py": train.main,
        "infer.py": command_line,
    }
    small = ["steps=2", "data.workers=0", "data.patch=8", "data.batch=2", "device=cpu", "precision=fp32"]
    for line in lines[1].strip().splitlines():
        name = next(one for one in commands if line.startswith(f"python {one} "))
        words = shlex.split(line.removeprefix(f"python {name} "))
        assert run(commands[name], words + (small if name == "train.py" else [])) == DONE, line
    assert len(list((tmp_path / "out").glob("*.png"))) == len(list((tmp_path / "out_cheap").glob("*.png"))) == 2


def test_the_file_is_found_where_it_was_and_no_path_is_stored(place: Path) -> None:
    assert upscale(place) == DONE
    assert (place / "run" / "budget.json").is_file(), "training timed the expert without being told its file"
    spec = Store(place / "cache").manifest.expert_specs["4x_mine"]
    assert (spec.architecture, spec.weights[0].file) == ("EDSR", "4x_mine.pth")
    assert spec.tap is not None and spec.padding is not None and spec.hyperparameters["num_feat"] == 16
    header = read_header(place / "run")
    assert set(header["training"]["expert_specs"]) == {"4x_mine", "edsr-s"}
    shared = json.dumps(header) + (place / "cache" / "manifest.json").read_text() + (place / "out/image0.png").name
    assert str(place) not in shared and str(place) not in (place / "out" / "image0.png").read_bytes().decode("latin-1")


def test_a_file_that_is_gone_is_one_line_with_file_hash_and_option(
    place: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sha256 = Store(place / "cache").manifest.expert_specs["4x_mine"].weights[0].sha256
    assert upscale(place) == REFUSED
    said = capsys.readouterr().err
    assert "4x_mine.pth" in said and str(sha256) in said and "--experts" in said
    words = ["--config", str(place / "c.yaml"), "--fit-budget", str(place / "run" / "model.safetensors")]
    assert run(train.main, words) == REFUSED
    assert "4x_mine.pth" in caplog.text and "data.experts" in caplog.text


def test_it_is_found_beside_the_model_in_pretrained_or_by_its_hash(
    place: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upscale(place, "--experts", f"{elsewhere},edsr-s") == DONE, "named by hand, under another file name"
    monkeypatch.setenv("XDG_DATA_HOME", str(place / "nothing again"))
    assert upscale(place) == REFUSED
    for folder, name in ((place / "run", "4x_mine.pth"), (place / "run", "other.pth"), (place / "weights", "a.pth")):
        monkeypatch.setenv("XDG_DATA_HOME", str(place / folder.name / name))
        monkeypatch.setenv("CHAMPIONSHIP_SR_PRETRAINED", str(place / "weights"))
        folder.mkdir(exist_ok=True)
        shutil.copy(elsewhere, folder / name)
        assert upscale(place) == DONE, f"{folder.name}/{name}"
        (folder / name).unlink()


def test_another_file_of_that_name_is_passed_over(place: Path, elsewhere: Path) -> None:
    save_network(small_network("EDSR", 1), place / "run" / "4x_mine.pth")
    assert upscale(place) == REFUSED
    shutil.copy(elsewhere, place / "run" / "z.pth")
    assert upscale(place) == DONE


def test_a_model_of_before_is_opened_by_option_or_catalog(
    place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = load_model(place / "run")
    assert model.record.expert_specs
    model.record = model.record.model_copy(update={"expert_specs": {}})
    save_model(model, place / "run" / "model.safetensors")
    assert upscale(place) == REFUSED
    said = capsys.readouterr().err
    assert "4x_mine" in said and "--experts" in said and "--catalog" in said
    assert upscale(place, "--experts", f"{place / 'mine' / '4x_mine.pth'},edsr-s") == DONE
    catalog = tmp_path / "mine.yaml"
    catalog.write_text("experts: [{name: 4x_mine, weights: [{file: mine/4x_mine.pth}]}]")
    assert upscale(place, "--catalog", catalog) == DONE


def test_a_manifest_of_before_reads_and_keeps_its_fingerprint(place: Path) -> None:
    manifest = Store(place / "cache").manifest
    old = {key: value for key, value in json.loads(manifest.model_dump_json()).items() if key != "expert_specs"}
    read = Manifest.model_validate(old)
    assert read.expert_specs == {} and read.recipe.fingerprint == manifest.fingerprint


def test_training_takes_a_catalog(place: Path, elsewhere: Path) -> None:
    catalog = place / "moved" / "mine.yaml"
    catalog.write_text("experts: [{name: 4x_mine, weights: [{file: renamed.pth}]}]")
    (place / "run" / "budget.json").unlink()
    words = ["--config", str(place / "c.yaml"), "--fit-budget", str(place / "run" / "model.safetensors")]
    assert run(train.main, [*words, "--catalog", str(catalog)]) == DONE
    assert (place / "run" / "budget.json").is_file()


def test_code_is_found_too_but_runs_only_when_it_is_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(CODE)
    torch.manual_seed(0)
    space: dict[str, object] = {}
    exec(compile(CODE, "net.py", "exec"), space)
    network = space["Net"]()  # type: ignore[operator]
    torch.save(network.state_dict(), tmp_path / "net.pth")
    train_fusion(tmp_path, f"code:{tmp_path / 'net.py'}:Net:{tmp_path / 'net.pth'},edsr-s", "--trust-code")
    save_photos(tmp_path / "in", 1)
    assert upscale(tmp_path) == REFUSED
    assert "--trust-code" in capsys.readouterr().err
    assert upscale(tmp_path, "--trust-code") == DONE


def test_subsets_by_name_open_too(place: Path) -> None:
    ensemble = build(str(place / "run"), ["4x_mine"], device="cpu")
    assert ensemble.names == ("4x_mine",)


def test_merged_and_repacked_caches_keep_the_specs(place: Path, tmp_path: Path) -> None:
    words = ["repack", str(place / "cache"), "--out", str(tmp_path / "small"), "--experts", "4x_mine"]
    assert run(cache_command, words) == DONE
    assert set(Store(tmp_path / "small").manifest.expert_specs) == {"4x_mine"}
    words = ["extract", "--sequential", "--hr", str(place / "hr"), "--out", str(tmp_path / "one")]
    assert run(cache_command, [*words, "--experts", f"{place / 'mine' / '4x_mine.pth'},edsr-s"]) == DONE
    assert set(Store(tmp_path / "one").manifest.expert_specs) == {"4x_mine", "edsr-s"}


@pytest.mark.skipif(os.name == "nt", reason="names there are text")
def test_a_file_name_that_is_no_utf8_is_stored_as_text_and_found_by_its_bytes(place: Path, tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/4x_\xff.pth"))
    shutil.copy(place / "mine" / "4x_mine.pth", odd)
    words = ["extract", "--hr", str(place / "hr"), "--out", str(tmp_path / "odd"), "--experts", str(odd)]
    assert run(cache_command, words) == DONE
    (spec,) = Store(tmp_path / "odd").manifest.expert_specs.values()
    weights = spec.weights[0]
    assert "\\xff" in weights.file and weights.sha256 is not None
    assert find_file(weights.file, weights.sha256, weights.bytes, []) == odd
