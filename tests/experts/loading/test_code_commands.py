"""A user's own network in every command, imported with its code pinned, in records, and as a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cache_tools.__main__ import main as cache_main
from cache_tools.format.store import ExpertIdentityRecord, Store
from experts.__main__ import main
from experts.open import open_experts
from experts.run import NetworkExpert
from experts.words import parse_code_word, split_words
from imaging import command
from imaging.refusal import Refusal
from infer import command_line
from tests.cache.parts import write_images
from tests.experts.loading.parts import NETWORKS, opened, weights_of


def run(*words: object) -> int:
    return command.run(main, [str(word) for word in words])


def test_the_same_words_in_every_command(code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    word = f"code:{code}:Net(width=8,scale=4):{weights_of(code)}"
    hr = write_images(tmp_path / "hr", [(12, 14), (16, 12)])
    capsys.readouterr()
    assert run("check", word, "--trust-code", "--json") == 0
    assert "Net(scale=4, width=8)" in json.loads(capsys.readouterr().out)["code"]
    assert run("run", word, "-i", hr, "-o", tmp_path / "run", "--trust-code") == 0
    words = ["--experts", f"{word},edsr-s", "--hr", hr, "--out", tmp_path / "cache", "--device", "cpu"]
    assert command.run(cache_main, [str(one) for one in ("extract", *words)]) == 2
    assert command.run(cache_main, [str(one) for one in ("plan", *words, "--trust-code", "--no-timing")]) == 0
    assert command.run(cache_main, [str(one) for one in ("extract", *words, "--trust-code")]) == 0
    recorded = Store(tmp_path / "cache").manifest.recipe.experts
    assert [one.code for one in recorded] == [opened(word).identity.code, None]
    words = ["-i", hr, "-o", tmp_path / "out", "--model", "none", "--experts", word, "--trust-code", "--device", "cpu"]
    assert command.run(command_line, [str(one) for one in words]) == 0
    (sidecar, _) = sorted((tmp_path / "out").glob("*.png.json"))
    assert json.dumps(opened(word).identity.code) in sidecar.read_text()


def test_import_pins_code_and_weights(
    code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrained = tmp_path / "pretrained"
    monkeypatch.setenv("CHAMPIONSHIP_SR_PRETRAINED", str(pretrained))
    word = f"code:{code}:Net(multiple=4):{weights_of(code, name='mine.pth')}"
    assert run("import", word) == 2
    assert run("import", word, "--trust-code", "--licence", "MIT") == 0
    out = capsys.readouterr().out
    assert f"{pretrained / 'mine.pth'}: use it by --catalog {pretrained / 'mine.yaml'} and the name mine\n" in out
    files = ["mine.pth", "mine.pth.json", "mine.yaml", "net.py"]
    assert sorted(path.name for path in pretrained.iterdir()) == files
    code.unlink()
    (expert,) = open_experts(["mine"], config=pretrained / "mine.yaml")
    assert isinstance(expert, NetworkExpert)
    assert (expert.padding.multiple, expert.identity.tap) == (4, "body")
    assert json.loads((pretrained / "mine.pth.json").read_text())["code"] == expert.identity.code
    (pretrained / "net.py").write_text(NETWORKS + "\n# changed\n")
    with pytest.raises(Refusal, match="the code has changed"):
        open_experts(["mine"], config=pretrained / "mine.yaml")


def test_no_weights_file_can_carry_its_code(code: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert run("export", f"code:{code}:Net:{weights_of(code)}", "--trust-code", "--to", "safetensors", out) == 2
    line = "refused: expert weights: is built by its own code, which no weights file can carry; export it --to onnx\n"
    assert capsys.readouterr().err.endswith(line)
    assert not out.exists()


def test_records_without_code_are_as_they_were(tmp_path: Path) -> None:
    plain = {
        "name": "a", "architecture": "EDSR", "tap": "t", "channels": 3, "weights_sha256": "0", "precision": "fp32",
        "tiling": "whole",
    }  # fmt: skip
    record = ExpertIdentityRecord.model_validate(plain)
    assert record.model_dump() == plain
    assert json.loads(record.model_dump_json()) == plain
    assert ExpertIdentityRecord.model_validate({**plain, "code": "x"}).model_dump()["code"] == "x"
    (expert,) = open_experts(["edsr-s"])
    assert "code" not in expert.identity.document()


def test_words_are_split_outside_of_brackets() -> None:
    assert split_words("a,code:n.py:Net(d=[6, 6],e={'f': (1, 2)}):w.pth,,b") == [
        "a",
        "code:n.py:Net(d=[6, 6],e={'f': (1, 2)}):w.pth",
        "b",
    ]
    code, weights = parse_code_word("code:C:/x/n.py:Net(d=[6, 6], e='f'):C:/w.pth")
    assert (code.file, code.name, code.arguments, weights) == ("C:/x/n.py", "Net", {"d": [6, 6], "e": "f"}, "C:/w.pth")
    for wrong in ("code:n.py", "code:n.py:Net", "code:n.py:Net(4):w.pth", "code:n.py:Net(a=b):w.pth", "code:n:Net:w"):
        with pytest.raises(Refusal, match=r"write code:net\.py:Net"):
            parse_code_word(wrong)
