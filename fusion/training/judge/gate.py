"""Scores of fused and base on the same held-out images -> may the fused image replace the base?

A paired bootstrap over images: regions of one image are averaged first, since they are not independent samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fusion.training.judge.scores import gain
from fusion.training.settings import FEWEST_IMAGES
from fusion.training.sources.sampling import Purpose, draw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from fusion.training.sources.batch import TrainBatch


def half_of(batches: Iterable[TrainBatch], image_of: Callable[[str], str], which: int) -> Iterator[TrainBatch]:
    """Of the held-out items those of every other image: one half chooses the weights, the other is the gate's."""
    images: dict[str, int] = {}
    for batch in batches:
        if images.setdefault(image_of(batch.items[0]), len(images)) % 2 == which:
            yield batch


@dataclass(frozen=True)
class GateDecision:
    """Mean gain in dB with its confidence interval, and whether it lies above zero."""

    gain_db: float
    low_db: float
    high_db: float
    images: int
    passed: bool
    reason: str


def paired_bootstrap(
    fused: Mapping[str, float],
    base: Mapping[str, float],
    image_of: Mapping[str, str],
    *,
    confidence: float,
    resamples: int,
    seed: int,
    rival: str = "the base",
    otherwise: str = "the base is shipped",
) -> GateDecision:
    """Scores by item (PSNR), and the image that each item is part of -> the decision."""
    if set(fused) != set(base) or not fused:
        raise ValueError("fused and base must be scored on the same items, and on at least one")
    gains: dict[str, list[float]] = {}
    for item, score in fused.items():
        difference = gain(score, base[item])
        if math.isfinite(difference):  # else one of the two is equal to HR, and no number says by how much it is better
            gains.setdefault(image_of[item], []).append(difference)
    if not gains:
        return GateDecision(0.0, 0.0, 0.0, 0, *_judge(0, 0.0, rival, otherwise))
    gain_N = np.array([np.mean(gains[image]) for image in sorted(gains)])
    chance = draw(seed, Purpose.BOOTSTRAP)
    means_R = gain_N[chance.integers(len(gain_N), size=(resamples, len(gain_N)))].mean(axis=1)
    tail = (1 - confidence) / 2
    low, high = (float(value) for value in np.quantile(means_R, [tail, 1 - tail]))
    passed, reason = _judge(len(gain_N), low, f"{rival} at {confidence:.0%} confidence", otherwise)
    return GateDecision(float(gain_N.mean()), low, high, len(gain_N), passed, reason)


def _judge(images: int, low: float, than: str, otherwise: str) -> tuple[bool, str]:
    if images < FEWEST_IMAGES:
        return (
            False,
            f"{images} held-out images prove nothing, at least {FEWEST_IMAGES} are needed: {otherwise}",
        )
    if not low > 0:
        return False, f"not better than {than}: {otherwise}"
    return True, f"better than {than}"
