"""The public functions on every kind of image, and the examples of docs/api.md."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import championship_sr
import infer
from championship_sr import command
from imaging.paths import ROOT
from imaging.refusal import Refusal

LR_HWC = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
ONE = {"model": "none", "experts": ["edsr-s"], "device": "cpu"}


@pytest.fixture(scope="module")
def large_HWC() -> np.ndarray:
    return championship_sr.upscale(LR_HWC, **ONE)


def test_all_is_sorted_and_complete() -> None:
    assert championship_sr.__all__ == sorted(championship_sr.__all__)
    for name in championship_sr.__all__:
        assert getattr(championship_sr, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        _ = championship_sr.nothing


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, championship_sr; print({'torch', 'numpy', 'PIL'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_levels_are_those_of_infer_py(tmp_path: Path) -> None:
    Image.fromarray(LR_HWC).save(tmp_path / "small.png")
    assert infer.command_line(["-i", f"{tmp_path}/small.png", "-o", f"{tmp_path}/out", "--device", "cpu"]) == 0
    expected_HWC = np.asarray(Image.open(tmp_path / "out" / "small.png"))
    np.testing.assert_array_equal(championship_sr.upscale(LR_HWC, device="cpu"), expected_HWC)
    large = championship_sr.upscale(tmp_path / "small.png", device="cpu")
    np.testing.assert_array_equal(np.asarray(large), expected_HWC)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
def test_numpy_keeps_its_dtype_and_range(dtype: type, large_HWC: np.ndarray) -> None:
    top = 65535 if dtype is np.uint16 else 1
    result_HWC = championship_sr.upscale((LR_HWC * (top / 255)).astype(dtype), **ONE)
    assert result_HWC.dtype == dtype
    assert result_HWC.shape == (80, 96, 3)
    np.testing.assert_allclose(result_HWC.astype(float) / top * 255, large_HWC, atol=0.51)


def test_torch_keeps_dtype_shape_and_batch(large_HWC: np.ndarray) -> None:
    large_CHW = torch.from_numpy(large_HWC).permute(2, 0, 1)
    lr_CHW = torch.from_numpy(LR_HWC).permute(2, 0, 1)
    assert torch.equal(championship_sr.upscale(lr_CHW, **ONE), large_CHW)
    pair_BCHW = torch.stack([lr_CHW, lr_CHW.flip(-1)]).float() / 255
    result_BCHW = championship_sr.upscale(pair_BCHW, **ONE)
    assert result_BCHW.dtype == torch.float32
    assert result_BCHW.shape == (2, 3, 80, 96)
    torch.testing.assert_close(result_BCHW[0], large_CHW / 255, atol=0.51 / 255, rtol=0)


def test_pil_modes_and_alpha(large_HWC: np.ndarray) -> None:
    image = Image.fromarray(LR_HWC)
    np.testing.assert_array_equal(np.asarray(championship_sr.upscale(image, **ONE)), large_HWC)
    seen = image.copy()
    seen.putalpha(Image.fromarray(np.full((20, 24), 77, np.uint8)))
    result = championship_sr.upscale(seen, **ONE)
    assert result.mode == "RGBA"
    np.testing.assert_array_equal(np.asarray(result)[..., :3], large_HWC)
    assert set(np.unique(np.asarray(result)[..., 3])) == {77}
    assert championship_sr.upscale(image.convert("L"), **ONE).mode == "L"
    assert championship_sr.upscale(image.quantize(8), **ONE).mode == "RGB"


def test_a_grey_file_is_as_infer_py_writes_it(tmp_path: Path) -> None:
    Image.fromarray(LR_HWC).convert("L").save(tmp_path / "grey.png")
    words = ["--model", "none", "--experts", "edsr-s", "--device", "cpu"]
    assert infer.command_line(["-i", f"{tmp_path}/grey.png", "-o", f"{tmp_path}/out", *words]) == 0
    large = championship_sr.upscale(str(tmp_path / "grey.png"), **ONE)
    assert large.mode == "L"
    np.testing.assert_array_equal(np.asarray(large), np.asarray(Image.open(tmp_path / "out" / "grey.png")))


def test_tiles_and_tta_are_options(large_HWC: np.ndarray) -> None:
    tiled_HWC = championship_sr.upscale(LR_HWC, tile=0, **ONE)
    np.testing.assert_array_equal(tiled_HWC, large_HWC)
    assert (championship_sr.upscale(LR_HWC, tta=True, **ONE) != large_HWC).any()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (LR_HWC.astype(np.float32), "floats in"),
        (np.full((4, 4, 3), np.nan), "floats in"),
        (np.zeros((4, 4, 5), np.uint8), "1 to 4 channels"),
        (np.zeros((4,), np.uint8), "expected"),
        (np.zeros((4, 4), np.int32), "uint8, uint16 or a float"),
        (torch.zeros(4, 4), "expected"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "uint8 or a float"),
        (Image.new("F", (4, 4)), "mode F"),
    ],
)
def test_what_is_no_image_is_a_value_error(image: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        championship_sr.upscale(image, **ONE)


def test_a_missing_file_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(championship_sr.Refusal, match="missing"):
        championship_sr.upscale(tmp_path / "missing.png", **ONE)


def test_csr_lists_its_commands_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.dispatch(["--help"]) == 0
    listed = capsys.readouterr().out
    for name in ("upscale", "train", "experts", "cache", "fusion", "serve", "images"):
        assert f"\n  {name} " in listed
    assert command.dispatch(["--version"]) == 0
    assert capsys.readouterr().out == f"championship-sr {championship_sr.__version__}\n"
    with pytest.raises(Refusal, match="did you mean 'upscale'"):
        command.dispatch(["upscal"])


@pytest.mark.parametrize("name", ["upscale", "train", "experts", "cache", "images", "serve"])
def test_csr_hands_over_to_the_parsers_that_there_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "serve":
        pytest.importorskip("gradio")
    with pytest.raises(SystemExit, match="0"):
        command.dispatch([name, "--help"])
    assert "usage:" in capsys.readouterr().out


@pytest.mark.slow
def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(LR_HWC).save("photo.png")
    Path("HR").mkdir()
    championship_sr.upscale("photo.png", **ONE).save("HR/photo.png")
    assert command.dispatch(["cache", "extract", "--experts", "edsr-s", "--hr", "HR", "--out", "cache"]) == 0
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) >= 4
    names: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "docs/api.md", "exec"), names)
