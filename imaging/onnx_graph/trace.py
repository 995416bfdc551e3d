"""A torch module of an image -> an ONNX graph whose height and width are free, or a refusal with the operator's name.

Legend: B batch (1), C channels, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from typing import TYPE_CHECKING, Any

import torch

from imaging.onnx_graph.packages import require
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import Tensor, nn

OPSET = 20
LONGEST = 1 << 16  # cells of a side; only a bound that torch.export asks for
_OPERATOR = re.compile(r"torch\.ops\.([\w.]+)|op='([\w.]+)'|operator '?([\w:.]+)'?", re.IGNORECASE)


def trace(
    module: nn.Module,
    inputs: Sequence[Tensor],
    *,
    where: str,
    names: Sequence[str],
    outputs: Sequence[str],
    cells: Sequence[int],
    least: int = 1,
) -> Any:
    """The module, run on `inputs`, as an ONNX model with inputs `names` and `outputs`.

    The last two sides of input i are free multiples of `cells[i]`: all in the same proportion to the first input's.
    """
    require("onnx", "onnxscript")
    rows, columns = torch.export.Dim("h", min=least, max=LONGEST), torch.export.Dim("w", min=least, max=LONGEST)
    shapes = tuple(
        {one.dim() - 2: cell * rows, one.dim() - 1: cell * columns} for one, cell in zip(inputs, cells, strict=True)
    )
    with _quietly(), _refusing(where):
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
            output_names=list(outputs),
            # A module takes the image, and all further inputs as one list.
            dynamic_shapes=shapes if len(shapes) == 1 else (shapes[0], shapes[1:]),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def record(
    module: nn.Module, inputs: Sequence[Tensor], *, where: str, names: Sequence[str], outputs: Sequence[str]
) -> Any:
    """As `trace`, by torch's older exporter: it writes down what one run does, and what that run computed from the size
    of its image stays as it was. Faster, and right for many networks that the newer one gives up on."""
    onnx = require("onnx")
    written = io.BytesIO()
    axes = {name: {2: f"{name}_h", 3: f"{name}_w"} for name in (*names, *outputs)}
    with _quietly(), _refusing(where):
        torch.onnx.export(
            module.eval(),
            tuple(inputs),
            written,  # pyright: ignore[reportArgumentType] (this exporter takes a stream)
            dynamo=False,
            opset_version=OPSET,
            input_names=list(names),
            output_names=list(outputs),
            dynamic_axes=axes,
        )
    return onnx.load_from_string(written.getvalue())


@contextlib.contextmanager
def _refusing(where: str) -> Generator[None]:
    """torch's own errors -> a refusal."""
    try:
        with torch.no_grad():
            yield
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        cure = "export another expert, or use it here"
        raise Refusal(f"cannot be exported: {reason_of(error)}", where=where, cure=cure) from error


def reason_of(error: BaseException) -> str:
    """An exporter's pages -> the operator it could not translate, or the first line that says something."""
    text = "\n".join(_chain(error))
    found = _OPERATOR.search(text)
    if found is not None:
        return f"there is no ONNX form of the operator {next(name for name in found.groups() if name)}"
    if "Constraints violated" in text or "specialized" in text.lower():
        return "its forward fixes the size of the image"
    summary = re.search(r"## Exception summary\s+<class '([\w.]+)'>: (.+)", text)
    return f"{summary[1]}: {summary[2]}"[:200] if summary else text.strip().splitlines()[0][:200]


def _chain(error: BaseException | None) -> Generator[str]:
    while error is not None:
        yield str(error)
        error = error.__cause__


@contextlib.contextmanager
def _quietly() -> Generator[None]:
    """The exporter warns of what its optimizer leaves out and prints hints; what matters is checked by running."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        nowhere = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
