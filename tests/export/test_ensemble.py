"""An ensemble and its fusion as one ONNX file, against infer.py's own tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import infer
from fusion.__main__ import main
from fusion.inference.ensemble import Place, run_tile
from fusion.network import ExpertSlot, FusionSR
from fusion.network.save import FILE_NAME, save_model
from fusion.network.settings import BandsSettings, FusionSettings, GatingSettings, RefineSettings
from imaging import command
from tests.export.parts import needs
from tests.fusion.parts import stir
from tests.inference.parts import weights_file


def run(*words: object) -> int:
    return command.run(main, ["export", *(str(word) for word in words)])


def agrees(out: Path, model: str, experts: list[str]) -> bool:
    import onnxruntime

    lr_BCHW = torch.rand(1, 3, 21, 34)
    ensemble = infer.build(model, experts, device="cpu")
    wanted = run_tile(ensemble, lr_BCHW, Place("x", 0, 0, 21, 34))
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"data": lr_BCHW.numpy()})
    return bool(np.abs(found[0] - wanted.numpy()).max() < 1e-4)


def saved_fusion(folder: Path, channels: dict[str, int], *, bands: bool = False) -> Path:
    """A small random model with the phases that are on by default, and one more if wanted."""
    torch.manual_seed(0)
    settings = FusionSettings(
        experts=tuple(ExpertSlot(name=name, channels=count) for name, count in channels.items()),
        context_width=8,
        bands=BandsSettings(enabled=bands),
        gating=GatingSettings(width=8),
        refine=RefineSettings(width=8, blocks=1),
    )
    save_model(stir(FusionSR(settings), 0.02), folder / FILE_NAME)
    return folder


@pytest.mark.slow
def test_two_experts_and_their_fusion(tmp_path: Path) -> None:
    needs("onnx", "onnxscript", "onnxruntime")
    experts = [str(weights_file(tmp_path, name, seed)) for seed, name in enumerate(("near", "far"))]
    channels = {Path(one).stem: infer.open_experts([one])[0].identity.channels for one in experts}
    model = saved_fusion(tmp_path / "fusion", channels)
    out = tmp_path / "all.onnx"
    assert run(out, "--model", model, "--experts", ",".join(experts)) == 0
    assert agrees(out, str(model), experts)


@pytest.mark.slow
def test_a_phase_without_an_onnx_form_is_refused_by_its_operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("onnx", "onnxscript", "onnxruntime")
    expert = weights_file(tmp_path, "near")
    model = saved_fusion(tmp_path / "fusion", {"near": 0}, bands=True)  # rings of the image's spectrum
    assert run(tmp_path / "all.onnx", "--model", model, "--experts", expert) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "fft" in line
    assert not (tmp_path / "all.onnx").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_without_a_fusion_model_the_plain_mean(count: int, tmp_path: Path) -> None:
    needs("onnx", "onnxscript", "onnxruntime")
    experts = [str(weights_file(tmp_path, name, seed)) for seed, name in enumerate(("near", "far")[:count])]
    assert run(tmp_path / "all.onnx", "--model", "none", "--experts", ",".join(experts)) == 0
    assert agrees(tmp_path / "all.onnx", "none", experts)


def test_a_folder_of_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("onnx", "onnxscript", "onnxruntime")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "a.png").write_bytes(b"")
    assert run(tmp_path / "all.onnx", "--model", "none", "--experts", f"images:{tmp_path / 'closed'}") == 2
    assert "a folder of images" in capsys.readouterr().err
