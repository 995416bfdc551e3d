"""A user's own network as an expert: trusted by name, loaded strictly, its habits found, its trouble in one line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experts.open import open_experts
from imaging.refusal import Refusal
from tests.experts.loading.parts import NETWORKS, network_of, opened, weights_of
from tests.experts.parts import image


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
