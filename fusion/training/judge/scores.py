"""Predictions and truths of whole images -> a table of PSNR and SSIM on Y: contender by image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from imaging.metrics import is_of_one_colour, psnr, ssim
from imaging.names import counted
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from torch import Tensor


def gain(decibels: float, than: float) -> float:
    """The difference in dB: none between two images that are both equal to their truth."""
    return 0.0 if decibels == than else decibels - than


@dataclass
class ScoreTable:
    """contender -> image -> (PSNR in dB, SSIM), in the order in which they were added.

    Images of one colour (black regions of photos) are left out: equal to their truth, they have an infinite PSNR.
    """

    rows: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)

    def add(self, contender: str, item: str, sr_BCHW: Tensor, hr_BCHW: Tensor) -> None:
        """Score one image of one contender as the literature does: Y, 8 bits, 4 border pixels off."""
        if is_of_one_colour(hr_BCHW):
            self.left_out.add(item)
            return
        sr_BCHW = sr_BCHW.detach().float().cpu()
        score = (float(psnr(sr_BCHW, hr_BCHW)), float(ssim(sr_BCHW, hr_BCHW)))
        self.rows.setdefault(contender, {})[item] = score

    def require_scores(self) -> None:
        """Refuses where all images are of one colour."""
        if self.left_out and not self.rows:
            cure = "give images that show something"
            raise Refusal(f"{counted(len(self.left_out), 'image')} of one colour, no other", where="scores", cure=cure)

    def mean(self, contender: str) -> tuple[float, float]:
        """(PSNR, SSIM), averaged over the images."""
        self.require_scores()
        scores = self.rows[contender].values()
        return sum(s[0] for s in scores) / len(scores), sum(s[1] for s in scores) / len(scores)

    def merit(self, contender: str) -> float:
        """By what the best weights are chosen, higher is better: here PSNR."""
        return self.mean(contender)[0]

    def text(self, judged: str) -> str:
        """The table as aligned text, the judged row marked, with its distance to every other row."""
        own = self.mean(judged)[0]
        width = max(24, *(len(contender) for contender in self.rows))
        lines = [f"{'':<{width + 2}}{'images':>7}{'PSNR-Y':>9}{'SSIM-Y':>9}{'ours':>9}"]
        for contender, scores in self.rows.items():
            mean_psnr, mean_ssim = self.mean(contender)
            same = len(scores) == len(self.rows[judged])
            ahead = "" if contender == judged or not same else f"{gain(own, mean_psnr):+9.3f}"
            mark = "* " if contender == judged else "  "
            lines.append(f"{mark}{contender:<{width}}{len(scores):>7}{mean_psnr:>9.3f}{mean_ssim:>9.4f}{ahead}")
        if self.left_out:
            lines.append(f"  {counted(len(self.left_out), 'image')} of one colour left out")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Means only, for JSON."""
        return {
            contender: {"psnr_y": round(self.mean(contender)[0], 4), "ssim_y": round(self.mean(contender)[1], 5)}
            for contender in self.rows
        }
