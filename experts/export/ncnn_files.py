"""An opened expert -> name.param and name.bin for ncnn, with the blob names that Upscayl's custom models have.

Legend: B batch (1), C channels, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from experts.export.graph import ImageGraph
from imaging.onnx_graph.check import SIZES, largest_difference
from imaging.onnx_graph.join import DATA, OUTPUT
from imaging.onnx_graph.packages import require
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor

    from experts.run import NetworkExpert

TRACED = ((32, 48), (40, 56))  # two sizes: pnnx calls a side free that differs between them
_NET = "net"
_CURE = "export another expert, or --to onnx"


def write_ncnn(expert: NetworkExpert, param: Path, binary: Path) -> float:
    """Convert, name the blobs, compare with torch on five sizes; the largest difference."""
    where = f"expert {expert.name}"
    least = expert.padding.minimum
    if expert.padding.multiple > 1:
        what = f"needs sides that are multiples of {expert.padding.multiple}, and ncnn's programs cut tiles of any size"
        raise Refusal(what, where=where, cure=_CURE)
    with tempfile.TemporaryDirectory() as scratch:
        _convert(expert, Path(scratch), where)
        text = (Path(scratch) / f"{_NET}.ncnn.param").read_text(encoding="utf-8")
        _refuse_unknown(text, where)
        param.write_text(_with_blob_names(text), encoding="utf-8")
        binary.write_bytes((Path(scratch) / f"{_NET}.ncnn.bin").read_bytes())
    sizes = [(max(height, least), max(width, least)) for height, width in SIZES]
    network = _open(param, binary, where)

    def run(lr_BCHW: Tensor) -> list[Tensor]:
        extractor = network.create_extractor()
        extractor.input(DATA, require("ncnn").Mat(np.ascontiguousarray(lr_BCHW[0].numpy())))
        code, answer = extractor.extract(OUTPUT)
        if code:
            raise Refusal(f"ncnn cannot run it: code {code}", where=where, cure=_CURE)
        return [torch.from_numpy(np.array(answer))[None]]

    return largest_difference(run, lambda lr_BCHW: [expert.run(lr_BCHW).sr_BCHW], sizes, where=where)


def _convert(expert: NetworkExpert, folder: Path, where: str) -> None:
    """torch's trace -> pnnx, in a process of its own: it ends the process where it meets what it does not know."""
    require("pnnx", "ncnn")
    network = ImageGraph(expert, None).eval()
    first, second = (torch.rand(1, 3, *size) for size in TRACED)
    with _quiet(), torch.no_grad():
        try:
            torch.jit.save(torch.jit.trace(network, first, check_trace=False), str(folder / f"{_NET}.pt"))
        except (RuntimeError, TypeError, ValueError) as error:
            what = f"cannot be traced: {str(error).strip().splitlines()[0][:200]}"
            raise Refusal(what, where=where, cure=_CURE) from error
    given = (("inputshape", first), ("inputshape2", second))
    shapes = [f"{name}=[{','.join(map(str, one.shape))}]f32" for name, one in given]
    words = [require("pnnx").EXEC_PATH, f"{_NET}.pt", *shapes, "fp16=0"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode or not (folder / f"{_NET}.ncnn.bin").is_file():
        lines = (done.stderr or done.stdout).strip().splitlines()
        what = lines[-1][:200] if lines else f"code {done.returncode}"
        raise Refusal(f"pnnx cannot convert it: {what}", where=where, cure=_CURE)


def _refuse_unknown(text: str, where: str) -> None:
    """pnnx writes what ncnn has no layer for under torch's own name, which has a dot or colons."""
    kinds = {line.split()[0] for line in text.splitlines()[2:]}
    unknown = sorted(kind for kind in kinds if re.search(r"\.|::", kind))
    if unknown:
        raise Refusal(f"ncnn has no layer for {', '.join(unknown[:4])}", where=where, cure=_CURE)


def _with_blob_names(text: str) -> str:
    """pnnx's names of the first and the last blob -> Upscayl's."""
    return re.sub(r"(?<=\s)out0(?=\s|$)", OUTPUT, re.sub(r"(?<=\s)in0(?=\s|$)", DATA, text))


def _open(param: Path, binary: Path, where: str) -> Any:
    network = require("ncnn").Net()
    # As exact as ncnn can be: what is compared is the network, not a rounding to half precision.
    for setting in ("use_vulkan_compute", "use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
        setattr(network.opt, setting, False)
    if network.load_param(str(param)) or network.load_model(str(binary)):
        raise Refusal("ncnn cannot open what pnnx made", where=where, cure=_CURE)
    return network


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Tracing warns of every size that a network looks at; what it makes is checked by running."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
