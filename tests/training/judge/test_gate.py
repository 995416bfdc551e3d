"""The gate by its laws: who decides is the mean over images, how surely is the bootstrap, and too few prove nothing."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap

from fusion.training.judge.gate import FEWEST_IMAGES, paired_bootstrap
from fusion.training.sources.sampling import Purpose, draw


def scores(gains: list[float], each: int = 1) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """`each` regions an image, all of its gain; the base's own scores are of no importance."""
    items = [(f"i{n}r{r}", n) for n in range(len(gains)) for r in range(each)]
    base = {item: 20.0 + 3 * n for item, n in items}
    return {item: base[item] + gains[n] for item, n in items}, base, {item: f"i{n}" for item, n in items}


@settings(max_examples=60, deadline=None)
@given(
    gains=st.lists(st.floats(-1, 1), min_size=1, max_size=12),
    each=st.integers(1, 3),
    confidence=st.sampled_from([0.5, 0.9, 0.95]),
    seed=st.integers(0, 5),
)
def test_the_decision_is_that_of_numpys_quantiles(gains: list[float], each: int, confidence: float, seed: int) -> None:
    fused, base, image_of = scores(gains, each)
    found = paired_bootstrap(fused, base, image_of, confidence=confidence, resamples=300, seed=seed)
    gain_N = np.array([gains[int(name[1:])] for name in sorted(set(image_of.values()))])
    drawn = draw(seed, Purpose.BOOTSTRAP).integers(len(gain_N), size=(300, len(gain_N)))
    means = sorted(float(np.mean([gain_N[n] for n in row])) for row in drawn)
    low, high = (np.percentile(means, 100 * share) for share in ((1 - confidence) / 2, (1 + confidence) / 2))
    assert (found.gain_db, found.images) == (pytest.approx(np.mean(gains)), len(gains))
    assert (found.low_db, found.high_db) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))
    assert found.passed is (len(gains) >= FEWEST_IMAGES and found.low_db > 0)


def test_regions_of_an_image_are_averaged_first() -> None:
    """One image of many good regions outvotes nobody."""
    gains = {"a1": 1.0, "a2": 3.0, "b1": -4.0, "c1": 0.0, "d1": 0.0, "e1": 0.0}
    base = dict.fromkeys(gains, 30.0)
    fused = {item: 30.0 + gain for item, gain in gains.items()}
    found = paired_bootstrap(fused, base, {item: item[0] for item in gains}, confidence=0.9, resamples=50, seed=0)
    assert (found.images, found.gain_db) == (5, pytest.approx((2 - 4) / 5))


@pytest.mark.parametrize(
    ("gain", "images", "passed", "says"),
    [
        (0.1, FEWEST_IMAGES, True, "^better than the base at 90% confidence$"),
        (
            0.1,
            FEWEST_IMAGES - 1,
            False,
            "^4 held-out images prove nothing, at least 5 are needed: ",
        ),
        (0.0, FEWEST_IMAGES, False, "^not better than the base at 90% confidence: the base is shipped$"),
    ],
)
def test_the_reason_is_said(gain: float, images: int, passed: bool, says: str) -> None:
    found = paired_bootstrap(*scores([gain] * images), confidence=0.9, resamples=20, seed=0)
    assert found.passed is passed
    assert re.search(says, found.reason)


def test_scores_of_different_items_are_not_compared() -> None:
    fused, base, image_of = scores([0.1] * 6)
    short = {item: score for item, score in base.items() if item != "i0r0"}
    for pair in ((fused, short), (short, base), ({}, {})):
        with pytest.raises(ValueError, match="scored on the same items, and on at least one"):
            paired_bootstrap(*pair, image_of, confidence=0.9, resamples=20, seed=0)


def test_the_interval_agrees_with_scipy_and_regions_of_an_image_count_once():
    rng = np.random.default_rng(3)
    gain = rng.normal(0.02, 0.05, 30)
    base = {f"i{n}": 30.0 for n in range(30)}
    fused = {f"i{n}": 30.0 + gain[n] for n in range(30)}
    own = {item: item for item in base}
    verdict = paired_bootstrap(fused, base, own, confidence=0.95, resamples=20000, seed=1)
    expected = bootstrap((gain,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(2))
    assert verdict.gain_db == pytest.approx(gain.mean())
    assert (verdict.low_db, verdict.high_db) == pytest.approx(tuple(expected.confidence_interval), abs=1.5e-3)
    few = paired_bootstrap(fused, base, {item: item[-1] for item in base}, confidence=0.95, resamples=500, seed=1)
    assert few.images == 10


@pytest.mark.parametrize(
    ("gain", "images", "passed"), [(0.1, 8, True), (0.0, 8, False), (-0.1, 8, False), (0.1, 4, False)]
)
def test_the_gate(gain, images, passed):
    base = {str(n): 30.0 + n for n in range(images)}
    fused = {item: score + gain for item, score in base.items()}
    verdict = paired_bootstrap(fused, base, {item: item for item in base}, confidence=0.95, resamples=200, seed=0)
    assert verdict.passed is passed
