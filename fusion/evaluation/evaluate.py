"""`python -m fusion evaluate --sr DIR --hr DIR`: scores of finished images, or of one folder per strength a curve."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.evaluation.curve import draw, table, trace
from fusion.evaluation.folders import evaluate, lines_of
from imaging.atomic import write_text
from imaging.command import DONE, FAILURES_LISTED, CommandParser, json_number, print_json
from imaging.metrics import BORDER

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence


def main(arguments: Sequence[str]) -> int:
    """Score and print; images that do not pair are listed and make the exit code 1."""
    parser = CommandParser(prog="python -m fusion evaluate", description="PSNR, SSIM, LPIPS of a folder")
    parser.add_argument("--sr", type=Path, required=True, help="folder of results")
    parser.add_argument("--hr", type=Path, required=True, help="folder of true images")
    parser.add_argument("--space", choices=["y", "rgb"], default="y", help="luma, or all channels")
    parser.add_argument("--border", type=int, default=BORDER, help="pixels cut off on each side")
    parser.add_argument("--lpips", action="store_true", help="also LPIPS (needs the AlexNet file)")
    parser.add_argument("--ntire", action="store_true", help="also the NTIRE perceptual score (needs pyiqa)")
    parser.add_argument(
        "--curve", type=Path, metavar="FILE.svg", help="--sr holds folders named by strengths: draw them"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    words = parser.parse_args(arguments)
    if words.curve is not None:
        return _curve(words)
    found = evaluate(words.sr, words.hr, space=words.space, border=words.border, lpips=words.lpips, ntire=words.ntire)
    if words.json:
        images = {name: _finite(scores) for name, scores in found.scores.items()}
        document = {"mean": _finite(found.means()), "images": images, "equal_to_truth": found.equal()}
        print_json({**document, "failures": found.failures})
    else:
        sys.stdout.write("\n".join(lines_of(found, list(found.means()))) + "\n")
        sys.stderr.write("".join(f"not scored: {line}\n" for line in found.failures))
    return FAILURES_LISTED if found.failures else DONE


def _finite(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: json_number(value) for name, value in scores.items()}


def _curve(words: argparse.Namespace) -> int:
    found = trace(words.sr, words.hr, space=words.space, border=words.border, lpips=words.lpips, ntire=words.ntire)
    write_text(words.curve, draw(found, f"psnr_{words.space}"))
    if words.json:
        rows = [{"strength": strength, **row} for strength, row in found.rows.items()]
        document = {"curve": rows, "perception": found.perception, "svg": words.curve, "left_out": found.left_out}
        print_json({**document, "failures": found.failures})
    else:
        sys.stdout.write("\n".join(table(found)) + "\n")
        sys.stderr.write("".join(f"not scored: {line}\n" for line in found.failures))
    return FAILURES_LISTED if found.failures else DONE
