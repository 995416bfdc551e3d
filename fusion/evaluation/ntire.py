"""A result and its truth -> the six measures of NTIRE's perceptual track; their averages -> the score.

As the challenge's toolkit has it (github.com/zhengchen1999/NTIRE2025_ImageSR_x4 and NTIRE2026_ImageSR_x4: eval.py and
the README's "Weighted score for Perception Quality Track"): pyiqa's default models of these names, on whole RGB images
in [0, 1] without cutting a border, and the score computed from the measures' averages over the images.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import redirect_stdout
from functools import partial
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch

from imaging.device import best_device
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    Measure = Callable[[Tensor, Tensor], float]

SCORE, PREFIX = "ntire", "iqa_"
# pyiqa's name -> what its average adds to the score: each at most 1, the more the better.
SHARES: dict[str, Callable[[float], float]] = {
    "lpips": lambda value: 1 - value,
    "dists": lambda value: 1 - value,
    "clipiqa": lambda value: value,
    "maniqa": lambda value: value,
    "musiq": lambda value: value / 100,
    "niqe": lambda value: max(0.0, (10 - value) / 10),
}
_WITH_TRUTH = ("lpips", "dists")
_CANNOT_LOAD = (OSError, EOFError, UnpicklingError, RuntimeError, ValueError)  # no network, damaged or other files


class NotScoredError(Exception):
    """One image that one measure cannot be taken of."""


def ntire_measures() -> dict[str, Measure]:
    """The six, by name with a prefix; refused where pyiqa or one of its weights is not there."""
    try:
        pyiqa = importlib.import_module("pyiqa")
    except ImportError as error:
        cure = "pip install 'championship-sr[iqa]' in an environment of its own (its licence is non-commercial)"
        raise Refusal(f"the NTIRE perceptual score needs pyiqa ({error})", where="--ntire", cure=cure) from None
    device = torch.device(best_device())
    return {PREFIX + name: partial(_measured, name, _open(pyiqa, name, device), device) for name in SHARES}


def ntire_score(averages: Mapping[str, float]) -> float:
    """From the averages over all images: NIQE is cut off at 10 once, not image by image."""
    return sum(share(averages[PREFIX + name]) for name, share in SHARES.items())


def _open(pyiqa: Any, name: str, device: torch.device) -> Any:
    """One of pyiqa's models. It prints what it loads, where --json wants one document: that goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            return pyiqa.create_metric(name, device=device)
    except _CANNOT_LOAD as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        cure = f"fetch its weights once with a network: python -c \"import pyiqa; pyiqa.create_metric('{name}')\""
        raise Refusal(f"pyiqa cannot load {name} ({reason})", where="--ntire", cure=cure) from None


def _measured(name: str, metric: Any, device: torch.device, sr_BCHW: Tensor, hr_BCHW: Tensor) -> float:
    images = (sr_BCHW, hr_BCHW) if name in _WITH_TRUTH else (sr_BCHW,)
    try:
        with torch.no_grad(), redirect_stdout(sys.stderr):
            return float(metric(*(image_BCHW.to(device) for image_BCHW in images)))
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:  # images too small, memory
        raise NotScoredError(f"{name}: {next(iter(str(error).splitlines()), type(error).__name__)}") from error
