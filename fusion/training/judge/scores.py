"""Predictions and truths of whole images -> a table of PSNR and SSIM on Y: contender by image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imaging.command import json_number
from imaging.metrics import is_of_one_colour, psnr, ssim
from imaging.names import counted
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from torch import Tensor


def gain(decibels: float, than: float) -> float:
    """The difference in dB: none between two that are both infinite."""
    return 0.0 if decibels == than else decibels - than


@dataclass
class ScoreTable:
    """contender -> image -> (PSNR in dB, SSIM), in the order in which they were added.

    No mean counts an image of one colour (a black region of a photo), nor one that a contender has exactly: its PSNR is
    infinite for one and anything for the next. The same images are left out for all contenders.
    """

    rows: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    of_one_colour: set[str] = field(default_factory=set)

    def add(self, contender: str, item: str, sr_BCHW: Tensor, hr_BCHW: Tensor) -> None:
        """Score one image of one contender as the literature does: Y, 8 bits, 4 border pixels off."""
        sr_BCHW = sr_BCHW.detach().float().cpu()
        score = (float(psnr(sr_BCHW, hr_BCHW)), float(ssim(sr_BCHW, hr_BCHW)))
        self.rows.setdefault(contender, {})[item] = score
        if is_of_one_colour(hr_BCHW):
            self.of_one_colour.add(item)

    @property
    def left_out(self) -> set[str]:
        """The items that no mean counts."""
        scores = [(item, decibels) for row in self.rows.values() for item, (decibels, _) in row.items()]
        return self.of_one_colour | {item for item, decibels in scores if math.isinf(decibels)}

    def scored(self, contender: str) -> dict[str, tuple[float, float]]:
        """Its scores on the items that count; on all, where none would remain."""
        left_out, row = self.left_out, self.rows[contender]
        return {item: score for item, score in row.items() if item not in left_out} or row

    def decibels(self, contender: str) -> dict[str, float]:
        """Its PSNR by item."""
        return {item: score[0] for item, score in self.scored(contender).items()}

    def require_scores(self) -> None:
        """Refuses where no item counts: for commands that have nothing but the scores to give."""
        items = {item for row in self.rows.values() for item in row}
        if items <= self.left_out:
            what = f"nothing to score: {counted(len(items), 'item')} of one colour or equal to HR"
            raise Refusal(what, where="scores", cure="give images that show something")

    def mean(self, contender: str) -> tuple[float, float]:
        """(PSNR, SSIM), averaged over the images."""
        scores = self.scored(contender).values()
        return sum(s[0] for s in scores) / len(scores), sum(s[1] for s in scores) / len(scores)

    def merit(self, contender: str) -> float:
        """By what the best weights are chosen, higher is better: here PSNR."""
        return self.mean(contender)[0]

    def text(self, judged: str) -> str:
        """The table as aligned text, the judged row marked, with its distance to every other row."""
        own = self.mean(judged)[0]
        width = max(24, *(len(contender) for contender in self.rows))
        lines = [f"{'':<{width + 2}}{'images':>7}{'PSNR-Y':>9}{'SSIM-Y':>9}{'ours':>9}"]
        for contender in self.rows:
            scores = self.scored(contender)
            mean_psnr, mean_ssim = self.mean(contender)
            same = len(scores) == len(self.scored(judged))
            ahead = "" if contender == judged or not same else f"{gain(own, mean_psnr):+9.3f}"
            mark = "* " if contender == judged else "  "
            lines.append(f"{mark}{contender:<{width}}{len(scores):>7}{mean_psnr:>9.3f}{mean_ssim:>9.4f}{ahead}")
        if self.left_out:
            lines.append(f"  left out: {counted(len(self.left_out), 'item')} of one colour or equal to HR")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, dict[str, float | None]]:
        """Means only, for JSON."""
        means = {contender: self.mean(contender) for contender in self.rows}
        return {
            contender: {"psnr_y": json_number(round(decibels, 4)), "ssim_y": round(ssim_y, 5)}
            for contender, (decibels, ssim_y) in means.items()
        }
