"""A folder of results and a folder of truths -> a score per image and measure; whatever does not pair is listed.

`SR/babyx4.png` or `SR/baby.png` belongs to `HR/baby.png`. PSNR and SSIM on Y or RGB, 8 bits, a border cut off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tqdm import tqdm

from fusion.evaluation.ntire import PREFIX, SCORE, NotScoredError, ntire_measures, ntire_score
from imaging.files import list_images, read_rgb
from imaging.metrics import psnr, ssim
from imaging.metrics.perceptual import lpips_distance
from imaging.names import counted
from imaging.refusal import Refusal
from imaging.resize import crop_to_multiple
from imaging.scale import SCALES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from imaging.metrics import Space

    Measure = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class Evaluation:
    """Scores by image and measure, and what could not be scored."""

    scores: dict[str, dict[str, float]]
    failures: list[str]

    def means(self) -> dict[str, float]:
        """The average of each measure over the images; NTIRE's score is made of these averages.

        An image that is equal to its truth counts in no mean of PSNR, unless all are.
        """
        measures = next(iter(self.scores.values()), {})
        differing = self.without(self.equal()).scores
        means = dict[str, float]()
        for name in measures:
            values = [one[name] for one in (differing if is_psnr(name) else self.scores).values()]
            means[name] = sum(values) / len(values)
        return means | ({SCORE: ntire_score(means)} if any(name.startswith(PREFIX) for name in means) else {})

    def equal(self) -> list[str]:
        """Images equal to their truth, whose PSNR is infinite and in no mean."""
        return [item for item, one in self.scores.items() if math.inf in (one[name] for name in one if is_psnr(name))]

    def without(self, items: Collection[str]) -> Evaluation:
        """The scores of the others; of all, where none would remain."""
        others = {item: one for item, one in self.scores.items() if item not in items}
        return replace(self, scores=others or self.scores)


def is_psnr(measure: str) -> bool:
    """Among the names of `make_measures`."""
    return measure.startswith("psnr")


def evaluate(
    sr: Path,
    hr: Path,
    *,
    space: Space,
    border: int,
    lpips: bool,
    ntire: bool,
    extra: Mapping[str, Measure] | None = None,
) -> Evaluation:
    """Score every truth that has a result; `extra` measures come after those asked for by name."""
    pairs, failures = pair_up(sr, hr)
    measures = make_measures(space=space, border=border, lpips=lpips, ntire=ntire) | dict(extra or {})
    scores: dict[str, dict[str, float]] = {}
    for name, (ours, truth) in tqdm(pairs.items(), desc="scoring", unit="image", disable=None):
        sr_BCHW, hr_BCHW = read_rgb(ours), read_rgb(truth)
        if hr_BCHW.shape != sr_BCHW.shape:
            hr_BCHW = _cropped_as(sr_BCHW, hr_BCHW)
        if hr_BCHW.shape != sr_BCHW.shape:
            failures.append(f"{name}: result is {tuple(sr_BCHW.shape[-2:])}, truth {tuple(hr_BCHW.shape[-2:])}")
            continue
        try:
            scores[name] = {measure: score(sr_BCHW, hr_BCHW) for measure, score in measures.items()}
        except NotScoredError as reason:
            failures.append(f"{name}: {reason}")
    if not scores:
        raise Refusal("no image could be scored", where=sr, cure=failures[0] if failures else "check the folders")
    return Evaluation(scores, failures)


def _cropped_as(sr_BCHW: Tensor, hr_BCHW: Tensor) -> Tensor:
    """The truth, cropped to a multiple of that scale at which it becomes as large as the result."""
    cropped = [crop_to_multiple(hr_BCHW, scale) for scale in reversed(SCALES)]
    return next((one for one in cropped if one.shape == sr_BCHW.shape), cropped[0])


def pair_up(sr: Path, hr: Path) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    """Truth's name -> (result, truth); truths without a result and results without a truth are listed."""
    results = {path.relative_to(sr).with_suffix("").as_posix(): path for path in list_images(sr)}
    pairs: dict[str, tuple[Path, Path]] = {}
    failures: list[str] = []
    for truth in list_images(hr):
        name = truth.relative_to(hr).with_suffix("").as_posix()
        ours = next((results.pop(one) for one in _names_of(name) if one in results), None)
        if ours is None:
            failures.append(f"{name}: no result in {sr}")
        else:
            pairs[name] = (ours, truth)
    failures += [f"{name}: no truth in {hr}" for name in results]
    return pairs, failures


def _names_of(name: str) -> list[str]:
    """What the result of a truth may be called: as it, or with the mark of the scale."""
    return [name, *(f"{name}x{scale}" for scale in reversed(SCALES))]


def make_measures(*, space: Space, border: int, lpips: bool, ntire: bool) -> dict[str, Measure]:
    """The measures asked for."""
    measures: dict[str, Measure] = {
        f"psnr_{space}": lambda sr, hr: float(psnr(sr, hr, border=border, space=space)),
        f"ssim_{space}": lambda sr, hr: float(ssim(sr, hr, border=border, space=space)),
    }
    if lpips:
        measures["lpips"] = lambda sr, hr: float(lpips_distance(sr, hr))
    return measures | (ntire_measures() if ntire else {})


def lines_of(found: Evaluation, names: Sequence[str]) -> list[str]:
    """The table as text: one line per image, the means last."""
    width = max([len(name) for name in found.scores] + [4])
    head = f"{'':<{width}}" + "".join(f"{name:>12}" for name in names)
    rows = [
        f"{item:<{width}}" + "".join(f"{one[name]:>12.4f}" if name in one else f"{'':>12}" for name in names)
        for item, one in found.scores.items()
    ]
    means, equal = found.means(), found.equal()
    some = 0 < len(equal) < len(found.scores)
    note = [f"{counted(len(equal), 'image')} equal to the truth, not in the mean of PSNR"] if some else []
    return [head, *rows, f"{'mean':<{width}}" + "".join(f"{means[name]:>12.4f}" for name in names), *note]
