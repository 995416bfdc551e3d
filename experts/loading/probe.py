"""A network of unknown habits -> its range of values and the sizes it takes, found by running it on small images.

Legend: B batch, C channels, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from experts.call import NetworkCall, call_in_255, call_plainly
from experts.loading.probe_image import probe_image
from experts.pad import padded_length
from experts.spec import Padding
from imaging.refusal import Refusal
from imaging.scale import SCALES

if TYPE_CHECKING:
    from pathlib import Path

MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
COMFORTABLE = 32  # LR pixels a side that every network should take, once its multiple is right
SMALL_SIDES = (1, 8, 16, 24)  # tried in this order for the smallest image that the network takes
FAR, NEAR = 0.1, 0.25  # mean error to the enlarged input that is no upscaling; share of it that proves the other range


@dataclass(frozen=True)
class Probed:
    """How to run the network."""

    call: NetworkCall
    padding: Padding
    scale: int


@torch.no_grad()
def probe_network(
    network: nn.Module, value_range: Literal[1, 255] | None, where: Path, padding: Padding | None
) -> Probed:
    """One forward where the padding is given, else as many as it takes to find which sizes work; all of them small."""
    trouble: Exception | None = None
    for multiple in (padding.multiple,) if padding else MULTIPLES:
        try:
            height, width = _probe_size(multiple, padding)
            sr_BCHW = _checked(network(probe_image(height, width)), height, width, where)
        except (RuntimeError, ValueError, AssertionError, IndexError) as error:  # how layers refuse a size
            trouble = trouble or error
            continue
        if sr_BCHW is not None:
            call = _call_for_range(network, value_range, sr_BCHW, height, width)
            minimum = _smallest(network, multiple, height, where) if padding is None else padding.minimum
            return Probed(call, padding or Padding(multiple=multiple, minimum=minimum), sr_BCHW.shape[-1] // width)
    if trouble is not None:
        raise trouble
    raise Refusal(
        "gives no image of 2, 3 or 4 times its input at any size tried", where=where, cure="use such an RGB model"
    )


def _probe_size(multiple: int, padding: Padding | None) -> tuple[int, int]:
    """Two odd numbers of multiples: what works on these needs no larger multiple."""
    count = max(1, -(-max(COMFORTABLE, padding.minimum if padding else 1) // multiple)) | 1
    return multiple * count, multiple * (count + 2)


def _checked(sr_BCHW: object, height: int, width: int, where: Path) -> Tensor | None:
    """The output if it is right, None if its size may be the input's fault; what no size can mend is refused."""
    if not isinstance(sr_BCHW, Tensor):
        cure = "return the image alone, for example by a class of your own around it"
        raise Refusal(f"its forward gives a {type(sr_BCHW).__name__}, not a tensor", where=where, cure=cure)
    if sr_BCHW.dim() != 4 or sr_BCHW.shape[:2] != (1, 3):
        what = f"its forward gives {tuple(sr_BCHW.shape)} for (1, 3, {height}, {width})"
        raise Refusal(what, where=where, cure="use a model from RGB to RGB")
    rows, columns = sr_BCHW.shape[-2:]
    if any((rows, columns) == (scale * height, scale * width) for scale in SCALES):
        if not bool(torch.isfinite(sr_BCHW).all()):
            raise Refusal("its forward gives NaN or infinity", where=where, cure="check the weights and the arguments")
        return sr_BCHW
    if rows % height == 0 and columns % width == 0 and rows // height == columns // width:
        raise Refusal(f"scale is {rows // height}", where=where, cure="use a model of 2x, 3x or 4x")
    return None


def _call_for_range(
    network: nn.Module, value_range: Literal[1, 255] | None, sr_BCHW: Tensor, height: int, width: int
) -> NetworkCall:
    """0-1 unless the YAML sets 255, or only 0-255 gives an image that looks like its input."""
    if value_range is not None:
        return call_in_255 if value_range == 255 else call_plainly
    lr_BCHW = probe_image(height, width)
    size = sr_BCHW.shape[-2:]
    enlarged_BCHW = nn.functional.interpolate(lr_BCHW, size=size, mode="bilinear", align_corners=False)
    error = float((sr_BCHW - enlarged_BCHW).abs().mean())
    if error <= FAR:
        return call_plainly
    in_255 = float((call_in_255(network, lr_BCHW) - enlarged_BCHW).abs().mean())
    return call_in_255 if in_255 < NEAR * error and in_255 <= FAR else call_plainly


def _smallest(network: nn.Module, multiple: int, works: int, where: Path) -> int:
    """The smallest side of a few that the network takes; pooling layers and mirrored borders need some pixels."""
    sides = dict.fromkeys(padded_length(one, Padding(multiple=multiple)) for one in SMALL_SIDES)
    return next((side for side in sides if side < works and _takes(network, side, where)), works)


def _takes(network: nn.Module, side: int, where: Path) -> bool:
    """Whether a square image of that side works; one that is too small is refused by the network in its own way."""
    try:
        return _checked(network(probe_image(side, side)), side, side, where) is not None
    except (RuntimeError, ValueError, AssertionError, IndexError, Refusal):
        return False
