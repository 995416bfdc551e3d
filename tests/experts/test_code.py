"""A user's own network as an expert: trusted by name, loaded strictly, its habits found, its trouble in one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

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
from tests.experts.parts import image

NETWORKS = '''
import torch
from torch import nn


class Net(nn.Module):
    """A convolution to features, and a shuffle of them on top of the enlarged input."""

    def __init__(self, width=8, scale=4, value_range=1.0, multiple=1, minimum=1, pair=False, bad=""):
        super().__init__()
        print("this must not reach stdout")
        torch.manual_seed(0)
        self.scale, self.value_range, self.multiple, self.minimum = scale, value_range, multiple, minimum
        self.pair, self.bad = pair, bad
        self.body = nn.Conv2d(3, width, 3, padding=1)
        self.up = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x):
        if self.bad == "raises":
            raise KeyError("a table is missing")
        assert x.shape[-2] % self.multiple == 0 and x.shape[-1] % self.multiple == 0, "not a multiple"
        assert min(x.shape[-2:]) >= self.minimum, "too small"
        base = nn.functional.interpolate(x, scale_factor=self.scale, mode="bilinear")
        mean = 0.45 * self.value_range
        detail = self.up(torch.relu(self.body(x - mean)))
        y = base + 0.01 * detail if self.bad != "nan" else base / 0 * 0
        # Trained for its range: what comes in another is far from any image it knows.
        y = y if self.value_range == 1 or float(x.max()) > 1 else y + 100
        return (y, x) if self.pair else y


class Grey(Net):
    def forward(self, x):
        return super().forward(x)[:, :1]


def make(**arguments):
    return Net(**arguments)


def number():
    return 4


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        raise ZeroDivisionError("of the constructor")
'''


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(NETWORKS)
    return path


def network_of(code: Path, **arguments: Any) -> nn.Module:
    namespace: dict[str, Any] = {"__name__": "made_for_the_test"}
    exec(code.read_text(), namespace)
    return namespace["Net"](**arguments)


def weights_of(code: Path, name: str = "weights.pth", wrap: Any = lambda state: state, **arguments: Any) -> Path:
    path = code.parent / name
    torch.save(wrap(network_of(code, **arguments).state_dict()), path)
    return path


def opened(word: str, **more: Any) -> NetworkExpert:
    (expert,) = open_experts([word], trust_code=True, **more)
    assert isinstance(expert, NetworkExpert)
    return expert


def run(*words: object) -> int:
    return command.run(main, [str(word) for word in words])


def test_a_network_of_ones_own_is_an_expert_with_features(code: Path) -> None:
    expert = opened(f"code:{code}:Net:{weights_of(code)}")
    assert (expert.name, expert.identity.architecture) == ("weights", "Net")
    assert (expert.identity.tap, expert.identity.channels) == ("body", 8)
    lr_BCHW, network = image(13, 9), network_of(code)
    output = expert.run(lr_BCHW)
    with torch.no_grad():
        torch.testing.assert_close(output.sr_BCHW, network(lr_BCHW))
        torch.testing.assert_close(output.feat_BCHW, network.body(lr_BCHW - 0.45))
    sha256 = hashlib.sha256(code.read_bytes()).hexdigest()
    assert expert.identity.code == f"{sha256} Net()"


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"params": {}, "params_ema": state},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 7},
        lambda state: {"model": {"params": {f"netG.{key}": value for key, value in state.items()}}},
    ],
)
def test_wrappers_come_off(code: Path, wrap: Any) -> None:
    expert = opened(f"code:{code}:Net:{weights_of(code, wrap=wrap)}")
    assert torch.equal(expert.network.body.weight, network_of(code).body.weight)


@pytest.mark.parametrize(
    ("arguments", "multiple", "minimum"),
    [("", 1, 1), ("multiple=8", 8, 8), ("minimum=15", 1, 16), ("multiple=2,minimum=5", 2, 8)],
)
def test_the_sizes_that_work_are_found(code: Path, arguments: str, multiple: int, minimum: int) -> None:
    expert = opened(f"code:{code}:Net({arguments}):{weights_of(code)}")
    assert (expert.padding.multiple, expert.padding.minimum) == (multiple, minimum)
    assert expert.run(image(3, 11)).sr_BCHW.shape == (1, 3, 12, 44)


def test_values_from_0_to_255_are_found_and_given(code: Path) -> None:
    word = f"code:{code}:Net(value_range=255):{weights_of(code)}"
    lr_BCHW = image(10, 12)
    with torch.no_grad():
        expected = network_of(code, value_range=255)(lr_BCHW * 255) / 255
    torch.testing.assert_close(opened(word).run(lr_BCHW).sr_BCHW, expected, rtol=0, atol=1e-6)


def trouble(code: Path, name: str, call: str, weights: Path) -> str:
    with pytest.raises(Refusal) as caught:
        opened(f"code:{code}:{name}{call}:{weights}")
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("name", "call", "word"),
    [
        ("Net", "(pair=True)", "gives a tuple, not a tensor"),
        ("Net", "(bad='nan')", "gives NaN or infinity"),
        ("Net", "(bad='raises')", "Net cannot be run (KeyError: 'a table is missing')"),
        ("Net", "(widht=8)", "cannot be built with widht=8 (TypeError"),
        ("Net", "(width=9)", "does not fit Net: size mismatch for body.weight"),
        ("Grey", "", "its forward gives (1, 1, "),
        ("Ned", "", "did you mean 'Net'"),
        ("number", "", "makes a int, not a torch.nn.Module"),
        ("Odd", "", "(ZeroDivisionError: of the constructor)"),
    ],
)
def test_what_is_wrong_with_it_is_one_line(code: Path, name: str, call: str, word: str) -> None:
    assert word in trouble(code, name, call, weights_of(code))


def test_another_scale_and_another_networks_keys_are_refused(code: Path) -> None:
    assert "scale is 1" in trouble(code, "Net", "(scale=1)", weights_of(code, scale=1))
    other = code.parent / "other.pth"
    torch.save({**network_of(code).state_dict(), "extra.weight": torch.zeros(1)}, other)
    assert "extra.weight" in trouble(code, "Net", "", other)
    torch.save({"body.weight": torch.full((8, 3, 3, 3), float("nan"))}, other)
    assert "holds NaN" in trouble(code, "Net", "", other)
    gone = code.parent / "no.pth"
    assert trouble(code, "Net", "", gone) == f"{gone}: the weights of 'no' are missing; put it there, or check the path"


def test_its_weights_may_lie_in_a_folder_of_weights(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights" / "mine").mkdir(parents=True)
    weights_of(code).rename(tmp_path / "weights" / "mine" / "net.pth")
    monkeypatch.setenv("CHAMPIONSHIP_SR_PRETRAINED", str(tmp_path / "weights"))
    assert opened(f"code:{code}:Net:net.pth").run(image(9, 7)).sr_BCHW.shape == (1, 3, 36, 28)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("import no_such_package.deep", "needs the package 'no_such_package', which is not installed"),
        ("class Net(:", "it cannot be run (SyntaxError"),
        ("raise SystemExit(3)", "it cannot be run (SystemExit: 3)"),
    ],
)
def test_code_that_does_not_run_is_one_line(code: Path, text: str, word: str) -> None:
    weights = weights_of(code)
    code.write_text(text)
    assert word in trouble(code, "Net", "", weights)


def test_code_runs_only_where_it_is_trusted_or_pinned(code: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    weights = weights_of(code)
    code.write_text(NETWORKS + f"\nopen({str(marker)!r}, 'w').close()\n")
    sha256 = hashlib.sha256(code.read_bytes()).hexdigest()
    with pytest.raises(Refusal, match=rf"net.py: is Python code that would be run .*--trust-code.*{sha256}"):
        open_experts([f"code:{code}:Net:{weights}"])
    config = tmp_path / "mine.yaml"

    def open_pinned(**pin: str) -> None:
        one = {"name": "mine", "code": {"file": "net.py", "name": "Net", **pin}, "weights": [{"file": "weights.pth"}]}
        config.write_text(json.dumps({"experts": [one]}))
        open_experts(["mine"], config=config)

    with pytest.raises(Refusal, match="would be run"):
        open_pinned()
    assert not marker.exists()
    open_pinned(sha256=sha256)
    assert marker.exists()
    with pytest.raises(Refusal, match="the code has changed"):
        open_pinned(sha256="0" * 64)


def test_weights_that_would_run_code_are_refused_though_the_code_is_trusted(code: Path) -> None:
    path = code.parent / "evil.pth"
    torch.save({"body": Path}, path)
    assert "could run foreign code" in trouble(code, "Net", "", path)


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
    assert "--config" in capsys.readouterr().out
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
