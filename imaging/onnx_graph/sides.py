"""A padding rule -> ONNX models that continue an image to the size a network needs, and cut its answer back.

Written out node by node: a range over a length that no exporter has to follow.
"""

from __future__ import annotations

from typing import Any, Literal

from imaging.onnx_graph.packages import require
from imaging.onnx_graph.trace import OPSET

Continuation = Literal["reflect", "symmetric", "zeros", "edge"]

PADDED = "padded"
_HEADER = f'<ir_version: 10, opset_import: ["" : {OPSET}]>'

_WANTED = """
    length_{axis} = Shape<start = {axis}, end = {next}>(image_{axis})
    at_least_{axis} = Max(length_{axis}, minimum)
    beyond_{axis} = Add(at_least_{axis}, multiple_less_one)
    cells_{axis} = Div(beyond_{axis}, multiple)
    wanted_{axis} = Mul(cells_{axis}, multiple)
    end_{axis} = Squeeze(wanted_{axis})
    position_{axis} = Range(zero, end_{axis}, one)
"""
# As `mirrored_positions` in experts/pad.py: 0, 1, ..., n-1, then back and forth between the ends.
_MIRRORED = """
    less_{axis} = Sub(length_{axis}, {less})
    twice_{axis} = Mul(less_{axis}, two)
    period_{axis} = Max(twice_{axis}, one_1)
    swing_{axis} = Mod(position_{axis}, period_{axis})
    last_{axis} = Sub(period_{axis}, {first})
    back_{axis} = Sub(last_{axis}, swing_{axis})
    inside_{axis} = Less(swing_{axis}, length_{axis})
    index_{axis} = Where(inside_{axis}, swing_{axis}, back_{axis})
"""
_EDGE = """
    last_{axis} = Sub(length_{axis}, one_1)
    index_{axis} = Min(position_{axis}, last_{axis})
"""
_GATHERED = """
    image_{next} = Gather<axis = {axis}>(image_{axis}, index_{axis})
"""
_ZEROS = """
    length = Shape<start = 2, end = 4>(image_2)
    at_least = Max(length, minimum)
    beyond = Add(at_least, multiple_less_one)
    cells = Div(beyond, multiple)
    wanted = Mul(cells, multiple)
    added = Sub(wanted, length)
    before = Constant<value_ints = [0, 0]>()
    pads = Concat<axis = 0>(before, added)
    nothing = Constant<value_float = 0.0>()
    axes = Constant<value_ints = [2, 3]>()
    image_4 = Pad<mode = "constant">(image_2, pads, nothing, axes)
"""


def padding_graph(mode: Continuation, *, multiple: int = 1, minimum: int = 1) -> Any:
    """`data` -> `padded`: to the right and below, to a multiple and at least the minimum."""
    symmetric = mode == "symmetric"
    words = {"less": "zero_1" if symmetric else "one_1", "first": "one_1" if symmetric else "zero_1"}
    body = _ZEROS
    if mode != "zeros":
        steps = _WANTED + (_EDGE if mode == "edge" else _MIRRORED) + _GATHERED
        body = "".join(steps.format(axis=axis, next=axis + 1, **words) for axis in (2, 3))
    constants = {"minimum": minimum, "multiple": multiple, "multiple_less_one": multiple - 1}
    constants |= {"two": 2, "zero_1": 0, "one_1": 1}
    lines = [f"{name} = Constant<value_ints = [{value}]>()" for name, value in constants.items()]
    lines += [f"{name} = Constant<value_int = {value}>()" for name, value in (("zero", 0), ("one", 1))]
    lines = ["image_2 = Identity(data)", *lines, body, f"{PADDED} = Identity(image_4)"]
    return _model(f"(float[1, c, h, w] data) => (float[1, c, ph, pw] {PADDED})", lines)


def mean_graph(inputs: list[str]) -> Any:
    """Images -> `output`, their mean."""
    given = ", ".join(f"float[1, 3, h, w] {name}" for name in inputs)
    return _model(f"({given}) => (float[1, 3, h, w] output)", [f"output = Mean({', '.join(inputs)})"])


def cutting_graph(scale: int) -> Any:
    """`large` and `data` -> `cut`: the part of `large` that is `scale` times the image."""
    return _model(
        "(float[1, c, lh, lw] large, float[1, 3, h, w] data) => (float[1, c, ch, cw] cut)",
        [
            "size = Shape<start = 2, end = 4>(data)",
            f"scale = Constant<value_ints = [{scale}]>()",
            "ends = Mul(size, scale)",
            "starts = Constant<value_ints = [0, 0]>()",
            "axes = Constant<value_ints = [2, 3]>()",
            "cut = Slice(large, starts, ends, axes)",
        ],
    )


def _model(signature: str, lines: list[str]) -> Any:
    body = "\n".join(lines)
    return require("onnx").parser.parse_model(f"{_HEADER}\nsides {signature} {{\n{body}\n}}")
