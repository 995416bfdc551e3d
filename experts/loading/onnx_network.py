"""An .onnx file -> a network that runs it by onnxruntime, on the CPU or on CUDA, and gives the values of one node.

Legend: B batch, C channels, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from experts.loading.loaded import LoadedNetwork
from experts.loading.probe import probe_network
from experts.spec import Tap
from imaging.onnx_graph.check import runtime_errors
from imaging.onnx_graph.join import FEATURES
from imaging.onnx_graph.packages import require
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from experts.spec import ExpertSpec

log = logging.getLogger(__name__)

ARCHITECTURE = "ONNX"
_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}


class OnnxNetwork(nn.Module):
    """A session in the place of layers. What it is tapped at is a layer that passes on what the session gave."""

    def __init__(self, path: Path, inner: str | None) -> None:
        super().__init__()
        self.path = path
        self.tapped = tap_name(inner) if inner is not None else None
        self._content = _with_output(path, inner)
        self._inner = inner
        self._session, self._on = _open(self._content, path, "cpu"), "cpu"
        first = self._session.get_inputs()
        if len(first) != 1 or first[0].type not in _TYPES or len(first[0].shape) != 4:
            what = f"takes {', '.join(f'{one.type} {one.shape}' for one in first)}, not one image"
            raise Refusal(what, where=path, cure="use a model from an RGB image to an RGB image")
        self._input, self._dtype = first[0].name, _TYPES[first[0].type]
        self._batch = first[0].shape[0] if isinstance(first[0].shape[0], int) else None
        fixed = [side for side in first[0].shape[2:] if isinstance(side, int)]
        if fixed:
            what = f"takes images of {first[0].shape[2]}x{first[0].shape[3]} only"
            raise Refusal(what, where=path, cure="export it again with free height and width")
        if self.tapped is not None:
            self.add_module(self.tapped, nn.Identity())

    def forward(self, lr_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) -> what the file gives for it; image by image where its batch is fixed."""
        parts = lr_BCHW.split(1) if self._batch == 1 else (lr_BCHW,)
        answers = [self._run(part) for part in parts]
        if self.tapped is not None:
            self.get_submodule(self.tapped)(torch.cat([answer[1] for answer in answers]))
        return torch.cat([answer[0] for answer in answers])

    def _run(self, lr_BCHW: Tensor) -> list[Tensor]:
        where = lr_BCHW.device
        if where.type != self._on:
            self._session, self._on = _open(self._content, self.path, where.type), where.type
        names = [self._session.get_outputs()[0].name, *([] if self._inner is None else [self._inner])]
        given = {self._input: lr_BCHW.detach().to("cpu", self._dtype).numpy()}
        try:
            answers = self._session.run(names, given)
        except tuple(runtime_errors(require("onnxruntime"))) as error:
            # As torch's own layers refuse a size: whoever tries sizes expects that.
            raise RuntimeError(str(error).strip().splitlines()[0][:300]) from error
        return [torch.from_numpy(answer).float().to(where) for answer in answers]


def load_onnx_network(path: Path, spec: ExpertSpec, *, features: bool) -> LoadedNetwork:
    """Open the file, find by running it which sizes and range it takes; its weights are not seen, hence not counted."""
    inner = None
    if features and spec.features:
        inner = spec.tap.module if spec.tap is not None else _known_output(path)
    network = OnnxNetwork(path, inner).eval()
    try:
        probed = probe_network(network, None, path, spec.padding)
    except RuntimeError as error:
        raise Refusal(f"cannot be run: {error}", where=path, cure="export it again with free sizes") from error
    return LoadedNetwork(network, ARCHITECTURE, 0, probed.padding, probed.call, scale=probed.scale)


def onnx_tap(network: OnnxNetwork, spec: ExpertSpec) -> Tap | None:
    """The spec's tap under the name of the layer that stands for the inner output."""
    if network.tapped is None:
        return None
    return (spec.tap or Tap(module="")).model_copy(update={"module": network.tapped})


def tap_name(inner: str) -> str:
    """A value's name -> a layer's, which may hold no dots."""
    return inner.replace(".", "_")


def _known_output(path: Path) -> str | None:
    """`python -m experts export --features` calls them so."""
    session = _open(path.read_bytes(), path, "cpu")
    return FEATURES if FEATURES in [one.name for one in session.get_outputs()] else None


def _with_output(path: Path, inner: str | None) -> bytes:
    """The file's content; a value inside of it becomes an output as well."""
    content = path.read_bytes()
    if inner is None or inner in [one.name for one in _open(content, path, "cpu").get_outputs()]:
        return content
    onnx = require("onnx")
    model = onnx.load_from_string(content)
    known = [name for node in model.graph.node for name in node.output if name]
    if inner not in known:
        near = [name for name in known if re.search(re.escape(inner.strip("/")), name)][:3] or known[-3:]
        raise Refusal(f"has no value '{inner}'", where=path, cure=f"name one of its values, such as {', '.join(near)}")
    model.graph.output.append(onnx.ValueInfoProto(name=inner))
    return model.SerializeToString()


def _open(content: bytes, path: Path, device: str) -> Any:
    """A session; where onnxruntime has no CUDA, the CPU, said once."""
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and said in one line
    providers = ["CPUExecutionProvider"]
    if device == "cuda":
        if "CUDAExecutionProvider" in ort.get_available_providers():
            providers.insert(0, "CUDAExecutionProvider")
        else:
            log.warning("%s: this onnxruntime has no CUDA: it runs on the CPU", path)
    try:
        return ort.InferenceSession(content, options, providers=providers)
    except tuple(runtime_errors(ort)) as error:
        what = f"onnxruntime cannot open it: {str(error).strip().splitlines()[0][:200]}"
        raise Refusal(what, where=path, cure="export it again") from error
