"""An opened expert -> a file of another program, written under its name only once it gives the same images."""

from __future__ import annotations

import json
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experts.call import without_meshgrid_warning
from experts.export.edsr_as_rcan import edsr_as_rcan
from experts.export.forms import ENDINGS
from experts.export.graph import expert_graph
from experts.export.ncnn_files import write_ncnn
from experts.folded_tail import unfold_upsampler
from experts.loading.load import load_network
from experts.loading.onnx_network import OnnxNetwork
from experts.loading.student import is_plain
from experts.loading.weights import ARCHITECTURE_KEY, HYPERPARAMETERS_KEY, read_state_file
from experts.native.edsr import EDSR
from experts.run import NetworkExpert
from experts.spec import ExpertSpec, WeightsSource
from imaging.atomic import atomic_path
from imaging.hashes import file_sha256
from imaging.onnx_graph.check import SIZES, check_onnx, largest_difference
from imaging.onnx_graph.join import FEATURES, describe
from imaging.onnx_graph.packages import require
from imaging.refusal import Refusal
from imaging.tensors.safe import write_safetensors

if TYPE_CHECKING:
    from torch import Tensor

    from experts.export.forms import Form
    from experts.spec import Expert

PROVENANCE_KEY = "provenance"  # of what was trained here: by what, on what


@dataclass(frozen=True)
class Exported:
    """What was written, as which architecture, and how far it is from the expert over all sizes that it was run on."""

    files: list[str]
    form: Form
    expert: str
    architecture: str
    features: int
    largest_difference: float
    sizes: list[str]
    sha256: list[str]


def export_expert(expert: Expert, form: Form, out: Path, *, features: bool = False) -> Exported:
    """Write `out` (for ncnn also its .bin), or nothing."""
    if out.suffix != ENDINGS[form]:
        raise Refusal(f"is not a {ENDINGS[form]} name", where=out, cure=f"name the output FILE{ENDINGS[form]}")
    network = require_network(expert)
    if features and (form != "onnx" or network.tap is None):
        raise Refusal("has no features to export", where=f"expert {expert.name}", cure="leave --features out")
    files = [out] if form != "ncnn" else [out, out.with_suffix(".bin")]
    architecture = expert.identity.architecture
    with ExitStack() as stack, without_meshgrid_warning():
        written = [stack.enter_context(atomic_path(file)) for file in files]
        if form == "onnx":
            difference = _write_onnx(network, written[0], features=features)
        elif form == "ncnn":
            difference = write_ncnn(network, *written)
        else:
            difference, architecture = _write_safetensors(network, written[0])
    return Exported(
        files=[str(file) for file in files],
        form=form,
        expert=expert.name,
        architecture=architecture,
        features=expert.identity.channels if features else 0,
        largest_difference=difference,
        sizes=[f"{height}x{width}" for height, width in SIZES],
        sha256=[file_sha256(file) for file in files],
    )


def require_network(expert: Expert) -> NetworkExpert:
    """The expert as one with layers; a folder of images and an .onnx file have none."""
    where = f"expert {expert.name}"
    if not isinstance(expert, NetworkExpert):
        raise Refusal("is a folder of images, which no file can compute", where=where, cure="name a model's weights")
    if isinstance(expert.network, OnnxNetwork):
        raise Refusal("is an ONNX file already", where=where, cure="export the weights that it was made from")
    unfold_upsampler(expert.network)
    return expert


def checked_graph(expert: NetworkExpert, file: Path, *, features: bool) -> tuple[Any, float]:
    """The expert's graph, saved at `file` and compared: by the quicker exporter, else by the one that reasons.

    The first records one run; where that run depended on its size, the comparison shows it.
    """
    refusals: list[Refusal] = []
    for by_recording in (True, False):
        made = _try_graph(expert, file, features=features, by_recording=by_recording)
        if not isinstance(made, Refusal):
            return made
        refusals.append(made)
    # The second names operators by their full names, where it gets as far as that.
    raise refusals[1] if "operator" in str(refusals[1]) else refusals[0]


def _try_graph(expert: NetworkExpert, file: Path, *, features: bool, by_recording: bool) -> tuple[Any, float] | Refusal:
    """By one exporter: the graph and its difference, or why not."""
    onnx = require("onnx", "onnxruntime", "onnxscript")
    try:
        graph = expert_graph(expert, features=features, by_recording=by_recording)
        describe(graph, graph_document(expert, features=features))
        onnx.save(graph, str(file))
        return graph, check_onnx(file, reference(expert, features=features), where=f"expert {expert.name}")
    except Refusal as refusal:
        return refusal


def graph_document(expert: NetworkExpert, *, features: bool) -> dict[str, Any]:
    """What the graph's metadata says of it."""
    identity = expert.identity.document()
    return {
        "expert": {key: identity[key] for key in ("name", "architecture", "weights_sha256")},
        "scale": expert.scale,
        **({FEATURES: identity["channels"]} if features else {}),
    }


def reference(expert: NetworkExpert, *, features: bool) -> Any:
    """What the graph stands for, in torch."""

    def run(lr_BCHW: Tensor) -> list[Tensor]:
        output = expert.run(lr_BCHW)
        return [output.sr_BCHW, output.feat_BCHW] if features and output.feat_BCHW is not None else [output.sr_BCHW]

    return run


def _write_onnx(expert: NetworkExpert, file: Path, *, features: bool) -> float:
    return checked_graph(expert, file, features=features)[1]


def _write_safetensors(expert: NetworkExpert, file: Path) -> tuple[float, str]:
    """The tensors under the names by which they were recognised; what leaves no trace in them goes into the header.

    EDSR, which spandrel lacks, becomes an RCAN. Returns the difference and the architecture that was written.
    """
    network, architecture = expert.network, expert.identity.architecture
    if expert.spec.code is not None:
        what, cure = "is built by its own code, which no weights file can carry", "export it --to onnx"
        raise Refusal(what, where=f"expert {expert.name}", cure=cure)
    if isinstance(network, EDSR):
        network, architecture = edsr_as_rcan(network), "RCAN"
    header = {ARCHITECTURE_KEY: architecture}
    origin = read_state_file(Path(expert.spec.weights[0].file)).header.get(PROVENANCE_KEY)
    if origin is not None:
        header[PROVENANCE_KEY] = origin
    hyperparameters: dict[str, Any] = getattr(network, "hyperparameters", {})
    if hyperparameters:
        header[HYPERPARAMETERS_KEY] = json.dumps({k: v for k, v in hyperparameters.items() if is_plain(v)})
    with tempfile.TemporaryDirectory() as scratch:
        # Under a name by whose ending it can be read back.
        candidate = Path(scratch) / f"{expert.name}.safetensors"
        write_safetensors(candidate, network.state_dict(), header)
        spec = ExpertSpec(name=expert.name, weights=(WeightsSource(file=str(candidate)),))
        state = read_state_file(candidate)
        loaded = load_network(state, spec)
        shutil.copyfile(candidate, file)
    again = NetworkExpert(
        spec,
        loaded.network,
        architecture=loaded.architecture,
        tap=None,
        padding=expert.padding,
        weights_sha256=state.sha256,
        device=torch.device("cpu"),
        call=loaded.call,
        scale=loaded.scale,
    )
    run, wanted = reference(again, features=False), reference(expert, features=False)
    return largest_difference(run, wanted, SIZES, where=f"expert {expert.name}"), architecture
