"""Files of the native refiner: those that are refused, and one in the command, with its record and --verify."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import infer
from fusion.inference.report.provenance import read_manifest
from fusion.refinement.native.network import ARCHITECTURE, NativeRefinerNetwork
from fusion.refinement.native.open import open_native
from fusion.training.loop.export import export_weights
from imaging.command import DONE, FAILURES_LISTED, REFUSED, run
from imaging.refusal import Refusal
from tests.inference.parts import photo, pixels, weights_file
from tests.refinement.native import small_file
from tests.refinement.parts import CPU, need_diffusion

need_diffusion()


def test_files_that_are_no_refiner_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refusal, match="holds MSG, not NativeRefiner"):
        open_native(str(small_file(tmp_path / "a.safetensors", architecture="MSG")), CPU)
    with pytest.raises(Refusal, match="no such file"):
        open_native(str(tmp_path / "b.safetensors"), CPU)
    with pytest.raises(Refusal, match="is a folder, not a refiner's file"):
        open_native(str(tmp_path), CPU)
    network = NativeRefinerNetwork((8, 16))
    for name, settings, said in (("c", {"widths": [8, 8]}, "does not fit"), ("d", {"widths": 8}, "cannot be built")):
        path = tmp_path / f"{name}.safetensors"
        weights = network.state_dict()
        export_weights(path, weights, architecture=ARCHITECTURE, hyperparameters=settings, provenance={})
        with pytest.raises(Refusal, match=said):
            open_native(str(path), CPU)
    monkeypatch.setattr("fusion.refinement.native.open.find_pretrained", lambda _: None)
    with pytest.raises(Refusal, match=r"weights are missing.*configs/refiner\.yaml"):
        open_native(None, CPU)


def test_the_command_its_record_and_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = small_file(tmp_path / "small.safetensors")
    (tmp_path / "lr").mkdir()
    photo_file = tmp_path / "lr" / "a.png"
    Image.fromarray(photo(30, 41, seed=1)).save(photo_file)
    plain = ["--model", str(weights_file(tmp_path)), "--device", "cpu", "-i", str(photo_file)]
    native = [*plain, "--refine", "native", "--refine-model", str(file)]

    def call(name: str, *words: str, base: list[str] = native) -> np.ndarray:
        assert run(infer.command_line, [*base, "-o", str(tmp_path / name), *words]) == DONE
        return pixels(tmp_path / name / "a.png")

    fused, first = call("fused", base=plain), call("first", "--report", "--json")
    document = json.loads(capsys.readouterr().out)
    np.testing.assert_array_equal(call("zero", "--refine-strength", "0"), fused)
    np.testing.assert_array_equal(call("again", "--refine-seed", "0"), first)
    assert (call("other", "--refine-seed", "1") != first).any()
    assert document["refined"]["a"]["change_rms"] > 1
    assert 'alt="refined"' in (tmp_path / "first" / "report.html").read_text()
    manifest = read_manifest(tmp_path / "first" / "a.png")
    assert manifest["options"]["refine"] == {"strength": 1.0, "colour": "wavelet", "seed": 0}
    assert manifest["refine"]["weights"].keys() == {"small.safetensors"}
    for seed, code in (("0", DONE), ("1", FAILURES_LISTED)):
        words = [*native, "--refine-seed", seed, "--verify", str(tmp_path / "first" / "a.png")]
        assert run(infer.command_line, words) == code
    assert run(infer.command_line, [*native, "-o", str(tmp_path / "dry"), "--dry-run"]) == DONE
    assert run(infer.command_line, [*native, "-o", str(tmp_path / "dry"), "--refine-lora", "x"]) == REFUSED


def test_without_the_extra_the_refusal_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    for module in ("fusion.refinement.open", "fusion.refinement.native.network"):
        monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name == "diffusers" else known(name))
    from fusion.refinement.open import open_refiner

    for attempt in (lambda: open_refiner("native", None, None, CPU), NativeRefinerNetwork):
        with pytest.raises(Refusal, match=r"championship-sr\[diffusion\]"):
            attempt()
