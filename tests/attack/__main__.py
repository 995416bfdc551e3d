"""`python -m tests.attack --out FILE`: 10,000 mutated inputs through every reader -> counts per class, as Markdown."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from imaging.atomic import write_text
from imaging.command import DONE, FAILURES_LISTED, CommandParser, run
from tests.attack.run import HANG, LONGEST_S, MEMORY, OUTCOMES, QUIET, TRACEBACK, Counts, attack
from tests.attack.targets import REQUESTS, REQUESTS_SHARE, TARGETS

if TYPE_CHECKING:
    from collections.abc import Sequence

NOTES = "\n## Notes\n"
_HEAD = f"""\
Of each input one of these becomes:

- **detected**: refused in one line (a request: answered 4xx);
- **harmless**: read, and every value is that of the sound file;
- **another**: read as another sound file. Configs, JPEG, BMP, WebP, TIFF, safetensors from elsewhere and `.pth` of
  before 2020 carry no checksum, so nobody can tell; for images the header reader and the decoder must agree;
- **silent**: read as something else although there is a checksum, or with another size than its header says;
- **traceback**: anything but a refusal is raised, the process ends, the console shows a traceback, or 5xx;
- **hang**: more than {LONGEST_S} seconds.

Every class has a process of its own, with {MEMORY >> 30} GiB of memory beyond what it has at the start. The goal is
0 silent, 0 tracebacks, 0 hangs.
"""


def main(arguments: Sequence[str]) -> int:
    """Attack, count, write; 1 where the goal is missed."""
    parser = CommandParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N", help="in all")
    parser.add_argument("--seed", type=int, default=22)
    parser.add_argument("--only", metavar="CLASS", help="one class, with all N inputs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="Markdown; its notes are kept")
    words = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    shares = {one.name: one.share for one in TARGETS} | {REQUESTS: REQUESTS_SHARE}
    if words.only:
        shares = {words.only: 1000}
    counts: dict[str, Counts] = {}
    for name, share in shares.items():
        began = time.monotonic()
        counts[name] = attack(name, words.inputs * share // 1000, words.seed)
        print(f"{name}: {dict(counts[name].of)} in {time.monotonic() - began:.0f} s", file=sys.stderr)
        print("".join(f"  {one}\n" for one in counts[name].examples), end="", file=sys.stderr)
    text = as_text(counts, shlex.join(arguments))
    print(text)
    if words.out:
        notes = words.out.read_text(encoding="utf-8").partition(NOTES)[2] if words.out.is_file() else ""
        write_text(words.out, text + (NOTES + notes if notes else ""))
    bad = sum(one.of[outcome] for one in counts.values() for outcome in (QUIET, TRACEBACK, HANG))
    return FAILURES_LISTED if bad else DONE


def as_text(counts: dict[str, Counts], command: str) -> str:
    """The record."""
    rows = [("all", sum((one.of for one in counts.values()), start=type(next(iter(counts.values())).of)()))]
    rows = [*((name, one.of) for name, one in counts.items()), *rows]
    lines = ["# Attack", "", f"Counted {date.today().isoformat()} by", "", f"    python -m tests.attack {command}", ""]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}."
    lines += [versions, "", _HEAD, f"| class | inputs | {' | '.join(OUTCOMES)} |", "|---" * (len(OUTCOMES) + 2) + "|"]
    for name, found in rows:
        cells = " | ".join(str(found[outcome]) for outcome in OUTCOMES)
        lines.append(f"| {name} | {found.total()} | {cells} |")
    examples = [f"- {name}: {example}" for name, one in counts.items() for example in one.examples]
    return "\n".join([*lines, *(["", "What missed the goal:", "", *examples] if examples else [])]) + "\n"


if __name__ == "__main__":
    sys.exit(run(main))
