"""An ONNX model and the function that it stands for -> the largest difference over five sizes, or a refusal.

Legend: B batch (1), C channels, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from imaging.onnx_graph.packages import require
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

SIZES = ((24, 32), (33, 47), (40, 17), (1, 1), (9, 50))  # odd ones, long ones, a single pixel
TOLERANCE = 1e-4


def check_onnx(path: Path, reference: Callable[[Tensor], Sequence[Tensor]], *, where: str) -> float:
    """Run the file by onnxruntime and compare all its outputs."""
    ort = require("onnxruntime")
    try:
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised, and said in one line
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def run(lr_BCHW: Tensor) -> list[Tensor]:
            return [torch.from_numpy(one) for one in session.run(None, {name: lr_BCHW.numpy()})]

        return largest_difference(run, reference, SIZES, where=where)
    except tuple(runtime_errors(ort)) as error:
        what = f"onnxruntime cannot run it: {str(error).strip().splitlines()[0][:300]}"
        raise Refusal(what, where=where, cure="export another expert, or use it here") from error


def runtime_errors(ort: Any) -> list[type[Exception]]:
    """What onnxruntime raises: it has classes of its own, which share no base but Exception."""
    errors = vars(ort.capi.onnxruntime_pybind11_state).values()
    return [one for one in errors if isinstance(one, type) and issubclass(one, Exception)]


def largest_difference(
    run: Callable[[Tensor], Sequence[Tensor]],
    reference: Callable[[Tensor], Sequence[Tensor]],
    sizes: Iterable[tuple[int, int]],
    *,
    where: str,
) -> float:
    """Over all sizes and outputs; more than the tolerance, or another shape, is refused."""
    largest = 0.0
    for height, width in sizes:
        lr_BCHW = torch.from_numpy(np.random.default_rng(height * width).random((1, 3, height, width), np.float32))
        for found, wanted in zip(run(lr_BCHW.clone()), reference(lr_BCHW.clone()), strict=True):
            what = None
            if found.shape != wanted.shape:
                what = f"gives {tuple(found.shape)} where torch gives {tuple(wanted.shape)}"
            else:
                # Of features, whose range is anything, relative to it.
                difference = float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))
                largest = max(largest, difference)
                if not difference <= TOLERANCE:
                    what = f"is {difference:.1e} from torch's output, allowed are {TOLERANCE:.0e}"
            if what is not None:
                raise Refusal(f"for {height}x{width} it {what}", where=where, cure="export another expert")
    return largest
