"""`python -m fusion evaluate --sr DIR --hr DIR`: scores of finished images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.evaluation.folders import evaluate, lines_of
from imaging.command import DONE, FAILURES_LISTED, print_json
from imaging.metrics import BORDER

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Score and print; images that do not pair are listed and make the exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m fusion evaluate", description="PSNR, SSIM, LPIPS of a folder")
    parser.add_argument("--sr", type=Path, required=True, help="folder of results")
    parser.add_argument("--hr", type=Path, required=True, help="folder of true images")
    parser.add_argument("--space", choices=["y", "rgb"], default="y", help="luma, or all channels")
    parser.add_argument("--border", type=int, default=BORDER, help="pixels cut off on each side")
    parser.add_argument("--lpips", action="store_true", help="also LPIPS (needs the AlexNet file)")
    parser.add_argument("--ntire", action="store_true", help="also the NTIRE perceptual score (needs pyiqa)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    words = parser.parse_args(arguments)
    found = evaluate(words.sr, words.hr, space=words.space, border=words.border, lpips=words.lpips, ntire=words.ntire)
    if words.json:
        print_json({"mean": found.means(), "images": found.scores, "failures": found.failures})
    else:
        sys.stdout.write("\n".join(lines_of(found, list(found.means()))) + "\n")
        sys.stderr.write("".join(f"not scored: {line}\n" for line in found.failures))
    return FAILURES_LISTED if found.failures else DONE
