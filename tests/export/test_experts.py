"""Experts -> ONNX, ncnn and safetensors, run by onnxruntime, ncnn and spandrel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from spandrel import ModelLoader

from experts.catalog import load_catalog
from experts.native.edsr import EDSR
from experts.open import open_expert
from experts.spec import Padding
from fusion.training.loop.export import export_weights
from imaging.onnx_graph import check
from tests.experts.test_architectures import save
from tests.export.parts import needs, run

Capsys = pytest.CaptureFixture[str]
ODD = (37, 19)


def opened(file: Path | str, features: str = "find"):
    return open_expert(str(file), load_catalog(), device=torch.device("cpu"), features=features)


def image(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("architecture", ["EDSR", "Compact", "SPAN", "SwinIR", "HiT_SRF", "MSG", "FreqNet", "SSM"])
def test_onnx_of_a_size_that_the_command_did_not_try(architecture: str, tmp_path: Path) -> None:
    needs("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    weights, out = save(architecture, tmp_path / "net.safetensors"), tmp_path / "net.onnx"
    assert run("export", weights, "--to", "onnx", out, "--features", "--json") == 0
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["data"]
    lr_BCHW, expert = image(*ODD), opened(weights)
    sr, feat = session.run(["output", "features"], {"data": lr_BCHW.numpy()})
    wanted = expert.run(lr_BCHW)
    assert wanted.feat_BCHW is not None
    assert np.abs(sr - wanted.sr_BCHW.numpy()).max() < 1e-4
    assert feat.shape == tuple(wanted.feat_BCHW.shape)


@pytest.mark.parametrize("mode", ["reflect", "symmetric", "zeros"])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (16, 17)])
def test_the_padding_in_the_graph_is_the_runner_s(mode: str, size: tuple[int, int]) -> None:
    needs("onnx", "onnxruntime")
    import onnxruntime

    from experts.pad import pad_right_bottom
    from imaging.onnx_graph.sides import padding_graph

    graph = padding_graph(mode, multiple=8, minimum=16)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    lr_BCHW = image(*size)
    wanted = pad_right_bottom(lr_BCHW, Padding(multiple=8, minimum=16, mode=mode))
    assert np.array_equal(session.run(None, {"data": lr_BCHW.numpy()})[0], wanted.numpy())


def test_ncnn_has_upscayl_s_names(tmp_path: Path) -> None:
    needs("onnx", "ncnn", "pnnx")
    import ncnn

    weights, out = save("Compact", tmp_path / "net.safetensors"), tmp_path / "small-x4.param"
    assert run("export", weights, "--to", "ncnn", out) == 0
    network = ncnn.Net()
    network.opt.use_vulkan_compute = False
    assert network.load_param(str(out)) == 0
    assert network.load_model(str(out.with_suffix(".bin"))) == 0
    lr_BCHW, extractor = image(*ODD), network.create_extractor()
    extractor.input("data", ncnn.Mat(lr_BCHW[0].numpy()))
    code, answer = extractor.extract("output")
    assert code == 0
    # ncnn may round to half precision, as it does in Upscayl.
    assert np.abs(np.array(answer) - opened(weights).run(lr_BCHW).sr_BCHW[0].numpy()).max() < 1e-2


def test_safetensors_open_in_spandrel(tmp_path: Path) -> None:
    weights = save("SPAN", tmp_path / "net.safetensors")
    assert run("export", weights, "--to", "safetensors", tmp_path / "out.safetensors") == 0
    network, lr_BCHW = ModelLoader().load_from_file(tmp_path / "out.safetensors").eval(), image(*ODD)
    with torch.no_grad():
        assert torch.equal(network.model(lr_BCHW), opened(weights).run(lr_BCHW).sr_BCHW)


@pytest.mark.parametrize(("img_range", "res_scale"), [(255.0, 1.0), (1.0, 1.0), (255.0, 0.1)])
def test_edsr_opens_in_spandrel_as_an_rcan(img_range: float, res_scale: float, tmp_path: Path) -> None:
    edsr = EDSR(num_feat=12, num_block=2, img_range=img_range, res_scale=res_scale)
    values = {"num_feat": 12, "num_block": 2, "img_range": img_range, "res_scale": res_scale}
    origin = {"steps": 7}
    export_weights(
        tmp_path / "e.safetensors",
        edsr.state_dict(),
        architecture="EDSR",
        hyperparameters=values,
        provenance=origin,
    )
    out = tmp_path / "out.safetensors"
    assert run("export", tmp_path / "e.safetensors", "--to", "safetensors", out) == 0
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["provenance"]) == origin
    network = ModelLoader().load_from_file(out).eval()
    assert network.architecture.id == "RCAN"
    lr_BCHW = image(*ODD)
    with torch.no_grad():
        assert torch.allclose(network(lr_BCHW.clone()), edsr(lr_BCHW).clamp(0, 1), atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "form", "words"),
    [
        ("SAFMN", "onnx", "adaptive_max_pool2d"),
        ("SwinIR", "ncnn", "multiples of 8"),
        ("DAT", "ncnn", "ncnn has no layer"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line(
    architecture: str, form: str, words: str, tmp_path: Path, capsys: Capsys
) -> None:
    needs("onnx", "onnxscript", "onnxruntime", "ncnn", "pnnx")
    weights = save(architecture, tmp_path / "net.safetensors")
    ending = {"onnx": "onnx", "ncnn": "param"}[form]
    assert run("export", weights, "--to", form, tmp_path / f"out.{ending}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_a_graph_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys) -> None:
    needs("onnx", "onnxscript", "onnxruntime")
    monkeypatch.setattr(check, "TOLERANCE", -1.0)  # no difference is small enough
    weights = save("Compact", tmp_path / "net.safetensors")
    assert run("export", weights, "--to", "onnx", tmp_path / "out.onnx") == 2
    assert "from torch's output" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


def test_without_the_packages_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    weights = save("Compact", tmp_path / "net.safetensors")
    assert run("export", weights, "--to", "onnx", tmp_path / "out.onnx") == 2
    assert "championship-sr[export]" in capsys.readouterr().err


@pytest.fixture
def exported(tmp_path: Path) -> tuple[str, Path]:
    needs("onnx", "onnxscript", "onnxruntime")
    weights, out = save("EDSR", tmp_path / "net.safetensors"), tmp_path / "net2.onnx"
    assert run("export", weights, "--to", "onnx", out, "--features") == 0
    return weights, out


def test_an_onnx_file_is_an_expert_with_its_features(exported: tuple[str, Path], capsys: Capsys) -> None:
    weights, file = exported
    lr_BCHW = torch.cat([image(*ODD), image(*ODD).flip(-1)])  # its batch is fixed to one: image by image
    found, wanted = opened(file).run(lr_BCHW), opened(weights).run(lr_BCHW)
    assert found.feat_BCHW is not None
    assert wanted.feat_BCHW is not None
    torch.testing.assert_close(found.sr_BCHW, wanted.sr_BCHW, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.feat_BCHW, wanted.feat_BCHW, atol=1e-4, rtol=1e-5)
    capsys.readouterr()
    assert run("check", file, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["architecture"], report["tap"]) == ("ONNX", "features")


def test_an_inner_value_is_tapped_by_its_name(exported: tuple[str, Path], tmp_path: Path, capsys: Capsys) -> None:
    import onnx

    _, file = exported
    graph = onnx.load(file).graph
    inner = next(node.output[0] for node in graph.node if node.op_type == "Conv")
    text = "experts:\n  - {{name: mine, weights: [{{file: net2.onnx}}], tap: {{module: '{}'}}}}\n"
    config = tmp_path / "mine.yaml"
    config.write_text(text.format(inner))
    expert = open_expert("mine", load_catalog(config), device=torch.device("cpu"))
    output = expert.run(image(*ODD))
    assert output.feat_BCHW is not None
    assert output.feat_BCHW.shape[-2:] == ODD
    config.write_text(text.format("nowhere"))
    assert run("check", "mine", "--config", config) == 2
    assert "has no value 'nowhere'" in capsys.readouterr().err


def test_an_onnx_file_of_one_size_is_refused(exported: tuple[str, Path], tmp_path: Path, capsys: Capsys) -> None:
    import onnx

    model = onnx.load(exported[1])
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 64
    onnx.save(model, tmp_path / "fixed.onnx")
    assert run("check", tmp_path / "fixed.onnx") == 2
    assert "takes images of 64x64 only" in capsys.readouterr().err


def test_an_onnx_file_runs_in_fp32_only(exported: tuple[str, Path], capsys: Capsys) -> None:
    assert run("check", exported[1], "--precision", "bf16") == 2
    assert "may not run in bf16" in capsys.readouterr().err
