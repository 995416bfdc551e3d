"""`python -m fusion bench-budget --model DIR --lr DIR --hr DIR --record FILE`: the budget's curve through infer.py.

Real runs of the command line on real files: what is planned, what it took, and how good the written images are.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.inference.cost import INFER
from fusion.evaluation.folders import evaluate
from imaging.atomic import write_text
from imaging.command import DONE, CommandParser, output_file, print_json
from imaging.metrics import BORDER
from imaging.refusal import Refusal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

log = logging.getLogger(__name__)
SHARES = (0.01, 0.25, 0.4, 0.5, 0.6, 0.75, 1.0)


@dataclass(frozen=True)
class Point:
    """One run: what was allowed and spent (shares of the full cost), seconds of the whole run, mean Y-PSNR."""

    budget: float
    spent: float
    seconds: float
    psnr: float
    share: dict[str, float]


def main(arguments: Sequence[str]) -> int:
    """Run, score, write the table."""
    parser = CommandParser(prog="python -m fusion bench-budget", description=__doc__)
    add = parser.add_argument
    add("--model", required=True, help="as infer.py's; with budget.json beside it, or --budget-model")
    add("--experts", help="as infer.py's")
    add("--budget-model", "--budget-head", type=Path, metavar="FILE")
    add("--lr", type=Path, nargs="+", required=True, help="folders of LR images")
    add("--hr", type=Path, nargs="+", required=True, help="folders of true images, in the same order")
    add("--tile", default="auto", help="as infer.py's")
    add("--shares", type=float, nargs="*", default=list(SHARES), help="budgets to try")
    add("--record", type=output_file, metavar="FILE", help="write the tables as Markdown")
    add("--json", action="store_true", help="print one JSON document")
    words = parser.parse_args(arguments)
    if len(words.lr) != len(words.hr):
        raise Refusal("as many LR as HR folders are needed", where="--lr and --hr", cure="give them in pairs")
    found = {
        _name(hr): [_run(words, lr, hr, share) for share in words.shares]
        for lr, hr in zip(words.lr, words.hr, strict=True)
    }
    if words.record is not None:
        write_text(words.record, as_text(found, words.tile, list(arguments)))
    if words.json:
        print_json({name: [vars(point) for point in points] for name, points in found.items()})
    else:
        sys.stdout.write(as_text(found, words.tile, list(arguments)))
    return DONE


def as_text(found: dict[str, list[Point]], tile: str, arguments: list[str]) -> str:
    """The curves as Markdown; the last budget of each is what the others are held against."""
    lines = ["# Budgeted inference", "", f"Recorded {date.today().isoformat()} by", ""]
    lines += [f"    python -m fusion bench-budget {shlex.join(arguments)}", ""]
    lines += [
        f"Real runs of infer.py (`--tile {tile}`), scored on the files written: Y-PSNR, 4 border pixels left out.",
        "",
    ]
    lines += ["`spent` is the plans' share of the cost of all experts everywhere; seconds are those of the whole run,"]
    lines += ["fusion, reading and writing included, start-up not.", ""]
    for name, points in found.items():
        full = points[-1].psnr
        head = "| budget | spent | seconds | Y-PSNR | against all experts | images' mean share of tiles |"
        lines += [f"## {name}", "", head, "|---|---|---|---|---|---|"]
        for one in points:
            runs = ", ".join(f"{expert} {share:.0%}" for expert, share in one.share.items())
            spent, lost = f"{one.spent:.1%} | {one.seconds:.1f}", f"{one.psnr:.3f} | {one.psnr - full:+.3f}"
            lines.append(f"| {one.budget:.0%} | {spent} | {lost} | {runs} |")
        lines.append("")
    return "\n".join(lines)


def _run(words: argparse.Namespace, lr: Path, hr: Path, share: float) -> Point:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(INFER), "-i", str(lr), "-o", folder, "--model", words.model, "-t", words.tile]
        command += ["--ext", "png", "--budget", str(share), "--json"]
        command += ["--experts", words.experts] if words.experts else []
        command += ["--budget-model", str(words.budget_model)] if words.budget_model else []
        begun = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            last = " ".join(done.stderr.strip().splitlines()[-1:])[:300]
            raise Refusal(f"infer.py failed ({last})", where=shlex.join(command), cure="run it alone")
        document: dict[str, Any] = json.loads(done.stdout)
        log.info("%s at %.0f%%: %.0f s", lr, 100 * share, time.perf_counter() - begun)
        scores = evaluate(Path(folder), hr, space="y", border=BORDER, lpips=False, ntire=False)
    plans = list(document["plans"].values())
    names = plans[0]["share"]
    return Point(
        budget=share,
        spent=sum(plan["seconds"] for plan in plans) / sum(plan["full_seconds"] for plan in plans),
        seconds=document["seconds"],
        psnr=scores.means()["psnr_y"],
        share={name: sum(plan["share"][name] for plan in plans) / len(plans) for name in names},
    )


def _name(hr: Path) -> str:
    """`bench/Set14/HR` -> Set14."""
    return hr.parent.name if hr.name.upper() == "HR" else hr.name
