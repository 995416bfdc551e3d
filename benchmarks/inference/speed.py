"""`python -m fusion bench-speed --before CHECKOUT --images DIR --out FILE`: the default, then and now, in turns.

Each round runs infer.py of an older checkout, of this one in fp32, of this one as it chooses itself and, with `--also`,
of this one with other options, on the same images. What counts is the ratio of seconds of computing within a round, so
that other work on the machine meets all alike.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from imaging.atomic import write_text
from imaging.command import DONE, CommandParser, output_file
from imaging.paths import ROOT
from imaging.refusal import Refusal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

log = logging.getLogger(__name__)
BEFORE, FP32, AUTO = "before", "now, fp32", "now, auto"


def main(arguments: Sequence[str]) -> int:
    """Run in turns and write the table."""
    parser = CommandParser(prog="python -m fusion bench-speed", description=__doc__)
    parser.add_argument("--before", type=Path, required=True, metavar="CHECKOUT", help="an older checkout of this")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="LR images")
    also = "one more row: this checkout with these options of infer.py, as in --also=--compile"
    parser.add_argument("--also", action="append", default=[], metavar="OPTIONS", help=also)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE", help="a Markdown file")
    words = parser.parse_args(arguments)
    programs = {
        BEFORE: [words.before / "infer.py", "--precision", "fp32"],
        FP32: [ROOT / "infer.py", "--precision", "fp32"],
        AUTO: [ROOT / "infer.py"],
        **{f"now, {options}": [ROOT / "infer.py", *shlex.split(options)] for options in words.also},
    }
    rounds = [
        {name: _seconds(program, words.images) for name, program in programs.items()} for _ in range(words.rounds)
    ]
    write_text(words.out, _page(words, rounds))
    log.info("written to %s", words.out)
    return DONE


def _seconds(program: Sequence[Path | str], images: Path) -> float:
    """Of computing, as infer.py itself measures it: without start-up."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *map(str, program), "-i", str(images), "-o", folder, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(program[0]).parent, check=False)
    if done.returncode != DONE:
        where, cure = str(program[0]), "run it by hand"
        raise Refusal((done.stderr.splitlines() or ["ended without a word"])[-1], where=where, cure=cure)
    seconds = float(json.loads(done.stdout)["seconds"])
    log.info("%s: %.2f s", " ".join(command[1:4]), seconds)
    return seconds


def _page(words: argparse.Namespace, rounds: Sequence[dict[str, float]]) -> str:
    also = "".join(f" --also={shlex.quote(options)}" for options in words.also)
    lines = [
        f"Recorded {date.today().isoformat()}, torch {torch.__version__}, {torch.get_num_threads()} threads,",
        f"{_processor()}, by",
        "",
        f"    python -m fusion bench-speed --before CHECKOUT --images DIR{also} --rounds {words.rounds} --out FILE",
        "",
        "| what | median seconds | times faster, median of the rounds | least | most |",
        "|---|---|---|---|---|",
    ]
    for name in rounds[0]:
        ratios = np.array([one[BEFORE] / one[name] for one in rounds])
        median = np.median([one[name] for one in rounds])
        lines.append(f"| {name} | {median:.2f} | {np.median(ratios):.2f} | {ratios.min():.2f} | {ratios.max():.2f} |")
    return "\n".join(lines) + "\n"


def _processor() -> str:
    known = torch.cpu.get_capabilities()
    has = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if known.get(name)]
    return f"{known.get('architecture')} with {', '.join(has) or 'none of the known extensions'}"
