"""python -m experts, as a user runs it: what it prints, what it leaves, its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experts.__main__ import main
from imaging import command
from tests.experts.loading.test_fetch import Server, server  # noqa: F401 (a fixture)
from tests.experts.parts import save_network, small_network

Capsys = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAMPIONSHIP_SR_PRETRAINED", str(tmp_path / "pretrained"))
    return tmp_path / "pretrained"


def run(*words: str | Path) -> int:
    return command.run(main, [str(word) for word in words])


def test_list_shows_what_is_there(pretrained: Path, capsys: Capsys) -> None:
    assert run("list", "--json") == 0
    experts = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert not experts["drct-l"]["present"]
    pretrained.mkdir()
    (pretrained / "DRCT-L_X4.pth").write_bytes(b"x")
    assert run("list") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "drct-l" in line]
    assert line.startswith("here")
    assert "MIT" in line


def test_check_tells_what_one_run_shows(tmp_path: Path, capsys: Capsys) -> None:
    path = save_network(small_network("EDSR"), tmp_path / "m.safetensors")
    assert run("check", path, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sr_shape"] == [1, 3, 256, 256]
    assert report["feature_shape"] == [1, 16, 64, 64]
    assert report["parameters"] == sum(p.numel() for p in small_network("EDSR").parameters())
    assert len(report["sha256"]) == 64
    assert run("check", path) == 0
    assert "conv_after_body" in capsys.readouterr().out


def test_import_copies_with_a_record(tmp_path: Path, pretrained: Path, capsys: Capsys) -> None:
    path = save_network(small_network("EDSR"), tmp_path / "m.safetensors")
    assert run("import", path, "--licence", "MIT", "--json") == 0
    record = json.loads(capsys.readouterr().out)
    copy = pretrained / "m.safetensors"
    assert copy.read_bytes() == path.read_bytes()
    assert json.loads((pretrained / "m.safetensors.json").read_text()) == record
    assert record["licence"] == "MIT"
    assert record["architecture"] == "EDSR"
    assert sorted(p.name for p in pretrained.iterdir()) == ["m.safetensors", "m.safetensors.json"]
    assert run("import", path) == 0
    (tmp_path / "other").mkdir()
    other = save_network(small_network("EDSR", seed=9), tmp_path / "other" / "m.safetensors")
    assert run("import", other) == 2
    assert "already there" in capsys.readouterr().err


def test_a_bad_file_is_not_imported(tmp_path: Path, pretrained: Path, capsys: Capsys) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"no weights")
    assert run("import", tmp_path / "m.safetensors") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "m.safetensors" in err
    assert not pretrained.exists()


def test_fetch_by_a_users_config(
    server: Server,  # noqa: F811
    tmp_path: Path,
    pretrained: Path,
    capsys: Capsys,
) -> None:
    server.behaviour.content = save_network(small_network("EDSR"), tmp_path / "m.safetensors").read_bytes()
    server.behaviour.cut_after = [20_000]
    config = tmp_path / "mine.yaml"
    source = {"file": "mine.safetensors", "url": server.url, "page": "http://example.org", "licence": "MIT"}
    config.write_text(json.dumps({"experts": [{"name": "mine", "weights": [source]}]}))
    assert run("fetch", "mine", "--config", config, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (pretrained / "mine.safetensors").read_bytes() == server.behaviour.content
    assert record["source"] == server.url
    assert run("check", "mine", "--config", config) == 0


def test_refusals_are_one_line_and_code_2(capsys: Capsys) -> None:
    for words in (
        ("check", "hat_l"),
        ("check", "hat-l"),
        ("fetch", "hat-l"),
        ("check", "a/b.pth"),
        ("import", "../x.pth"),
    ):
        assert run(*words) == 2, words
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("refused: ")
        assert captured.err.count("\n") == 1
        assert "Traceback" not in captured.err


def test_from_a_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experts", "check", "no-such"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("refused: ")


def test_run_upscales_a_folder_and_lists_what_it_could_not(
    tmp_path: Path, capsys: Capsys, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_network(small_network("EDSR"), tmp_path / "m.safetensors")
    source = tmp_path / "in"
    (source / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.jpg"):
        Image.new("RGB", (7, 5), (10, 200, 30)).save(source / name)
    (source / "broken.png").write_bytes(b"not an image")
    (source / "moving.gif").write_bytes(b"GIF89a")
    assert run("run", path, "-i", source, "-o", tmp_path / "out", "--json") == 1
    done = json.loads(capsys.readouterr().out)
    assert len(done["refused"]) == 1
    assert "broken.png" in done["refused"][0]
    assert "1 file not read" in caplog.text and "moving.gif" in caplog.text
    with Image.open(tmp_path / "out" / "sub" / "b.png") as picture:
        assert picture.size == (28, 20)
    assert run("run", path, "-i", source / "a.png", "-o", source) == 1
    assert "would overwrite" in caplog.text


def test_run_keeps_transparency_and_grey(tmp_path: Path, capsys: Capsys) -> None:
    path = save_network(small_network("EDSR"), tmp_path / "m.safetensors")
    picture = Image.new("RGBA", (8, 6), (10, 200, 30, 255))
    picture.paste((10, 200, 30, 0), (0, 0, 4, 6))
    (tmp_path / "in").mkdir()
    picture.save(tmp_path / "in" / "a.png")
    picture.convert("LA").save(tmp_path / "in" / "b.png")
    assert run("run", path, "-i", tmp_path / "in", "-o", tmp_path / "out") == 0
    assert capsys.readouterr().out == f"2 images written to {tmp_path / 'out'}, 0 refused\n"
    # However it is interpolated, it is equal where all pixels around are.
    theirs = np.asarray(picture.getchannel("A").resize((32, 24), Image.Resampling.NEAREST))
    for name, mode in (("a.png", "RGBA"), ("b.png", "LA")):
        with Image.open(tmp_path / "out" / name) as written:
            assert written.mode == mode
            alpha = np.asarray(written.getchannel("A"))
        assert alpha.shape == theirs.shape
        np.testing.assert_array_equal(alpha[:, :8], theirs[:, :8])
        np.testing.assert_array_equal(alpha[:, 24:], theirs[:, 24:])


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, capsys: Capsys) -> None:
    path = save_network(small_network("EDSR"), tmp_path / "m.safetensors")
    for name in ("cuda:99", "abacus"):
        assert run("check", path, "--device", name) == 2
        assert f"device {name}" in capsys.readouterr().err
