"""`python -m fusion export`: an ensemble's experts and their fusion -> one ONNX file, checked on five sizes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fusion.export.graph import ExpertGraph, ensemble_graph
from fusion.inference.ensemble import Place, run_tile
from fusion.inference.model_selection import DEFAULT, model_sha256
from imaging.atomic import atomic_path
from imaging.command import DONE, CommandParser, output_file, print_json
from imaging.hashes import file_sha256
from imaging.onnx_graph.check import SIZES, check_onnx
from imaging.onnx_graph.join import describe
from imaging.onnx_graph.packages import require
from imaging.refusal import Refusal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fusion.inference.ensemble import Ensemble
    from fusion.network import FusionSR


class OpenedEnsemble(NamedTuple):
    """What only a front door can open: the ensemble, its fusion model, and each expert's graph by name.

    `graph_of(name, features)` gives the expert's checked ONNX graph and how many channels of features it has.
    """

    ensemble: Ensemble
    fusion: FusionSR | None
    graph_of: Callable[[str, bool], tuple[Any, int]]


class OpenEnsemble(Protocol):
    """Opens what the command line names, on the CPU."""

    def __call__(self, model: str, experts: str | None, catalog: Path | None, *, trust_code: bool) -> OpenedEnsemble:
        """As `infer.build`, from the words."""
        ...


def main(arguments: Sequence[str], *, open_ensemble: OpenEnsemble) -> int:
    """Open, export each expert, join, check, write; the file appears only if all of it holds."""
    options = _parse(arguments)
    out: Path = options.output
    if out.suffix != ".onnx":
        raise Refusal("is not a .onnx name", where=out, cure="name the output FILE.onnx")
    onnx = require("onnx", "onnxruntime", "onnxscript")
    opened = open_ensemble(options.model, options.experts, options.catalog, trust_code=options.trust_code)
    ensemble, fusion = opened.ensemble, opened.fusion
    graphs: list[ExpertGraph] = []
    for name in ensemble.names:
        featured = fusion is not None and fusion.settings.channels_of(name) > 0
        graphs.append(ExpertGraph(name, *opened.graph_of(name, featured)))
    graph = ensemble_graph(fusion, graphs)
    document = {"experts": ensemble.identity["experts"], "fusion": None, "scale": ensemble.scale}
    if fusion is not None:
        document["fusion"] = {"verdict": fusion.record.verdict, "sha256": model_sha256(fusion)}
    describe(graph, document)

    def in_torch(lr_BCHW: Tensor) -> list[Tensor]:
        place = Place("check", 0, 0, lr_BCHW.shape[-2], lr_BCHW.shape[-1])
        return [run_tile(ensemble, lr_BCHW, place)[None]]

    with atomic_path(out) as temporary:
        onnx.save(graph, str(temporary))
        difference = check_onnx(temporary, in_torch, where=f"the ensemble {', '.join(ensemble.names)}")
    sizes = [f"{height}x{width}" for height, width in SIZES]
    made = {
        "file": str(out),
        "experts": list(ensemble.names),
        "fusion": document["fusion"],
        "largest_difference": difference,
        "sizes": sizes,
        "bytes": out.stat().st_size,
        "sha256": file_sha256(out),
    }
    if options.json:
        print_json(made)
    else:
        names = ", ".join(ensemble.names)
        sys.stdout.write(f"{out}: {names}, within {difference:.1e} of torch on {', '.join(sizes)}\n")
    return DONE


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(prog="python -m fusion export", description=__doc__)
    parser.add_argument("output", type=output_file, metavar="OUT.onnx")
    parser.add_argument("--model", default=DEFAULT, help="as infer.py --model (default)")
    parser.add_argument("--experts", help="as infer.py --experts: a,b,c")
    parser.add_argument("--catalog", type=Path, metavar="FILE", help="a YAML file with further experts")
    parser.add_argument("--trust-code", action="store_true", help="run the Python file of a code: expert")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args(arguments)
