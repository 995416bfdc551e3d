"""A result and its truth -> the six measures of NTIRE's perceptual track; their averages -> the score.

As the challenge's toolkit has it (github.com/zhengchen1999/NTIRE2025_ImageSR_x4 and NTIRE2026_ImageSR_x4: eval.py and
the README's "Weighted score for Perception Quality Track"): pyiqa's default models of these names, on whole RGB images
in [0, 1] without cutting a border, and the score computed from the measures' averages over the images.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

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


def ntire_measures() -> dict[str, Measure]:
    """The six, by name with a prefix; refused where pyiqa is not installed."""
    try:
        pyiqa = importlib.import_module("pyiqa")
    except ImportError:
        cure = "pip install 'championship-sr[iqa]' in an environment of its own (its licence is non-commercial)"
        raise Refusal("the NTIRE perceptual score needs pyiqa", where="--ntire", cure=cure) from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        PREFIX + name: partial(_measured, pyiqa.create_metric(name, device=device), name in _WITH_TRUTH, device)
        for name in SHARES
    }


def ntire_score(averages: Mapping[str, float]) -> float:
    """From the averages over all images: NIQE is cut off at 10 once, not image by image."""
    return sum(share(averages[PREFIX + name]) for name, share in SHARES.items())


def _measured(metric: Any, with_truth: bool, device: torch.device, sr_BCHW: Tensor, hr_BCHW: Tensor) -> float:
    images = (sr_BCHW, hr_BCHW) if with_truth else (sr_BCHW,)
    with torch.no_grad():
        return float(metric(*(image_BCHW.to(device) for image_BCHW in images)))
