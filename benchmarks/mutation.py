"""`python -m benchmarks.mutation --out FILE`: small changes to the code, one at a time -> how many the tests notice.

mutmut makes the changes and runs the tests (what and with which: [tool.mutmut] in pyproject.toml); here they are
sampled, since all of them take hours, and counted. Its folder `mutants/` keeps what was tried.
"""

from __future__ import annotations

import argparse
import random
import re
import shlex
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.atomic import write_text
from imaging.command import DONE, run
from imaging.paths import ROOT
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    Results = dict[str, str]  # mutant -> what became of it

FIRST = "fusion.training.judge.gate.*"  # few and fast, tried in full: mutmut makes the mutants of all files on the way
NOTICED, NOT_TRIED = {"killed", "timeout", "segfault"}, "not checked"
NOTES = "\n## Notes\n"


def main(arguments: Sequence[str]) -> int:
    """Try a sample of each file's mutants and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="Markdown; its notes are kept")
    parser.add_argument("--sample", type=int, default=30, metavar="N", help="mutants tried of each file, at random")
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="a checkout where this has run: its rates too")
    parser.add_argument("--count-only", action="store_true", help="of what was tried already")
    words = parser.parse_args(arguments)
    if not words.count_only:
        _mutmut("run", FIRST)
        _mutmut("run", *sampled(_results(ROOT), words.sample, words.seed))
    before = {} if words.before is None else _results(words.before)
    notes = words.out.read_text(encoding="utf-8").partition(NOTES)[2] if words.out.is_file() else ""
    text = as_text(_results(ROOT), before, shlex.join(arguments))
    write_text(words.out, text + (NOTES + notes if notes else ""))
    return DONE


def sampled(results: Results, count: int, seed: int) -> list[str]:
    """So many mutants of each file, the same for the same code and seed; not those of FIRST."""
    chosen: list[str] = []
    for module, names in _by_module(results).items():
        if f"{module}.*" != FIRST:
            chosen += random.Random(seed).sample(sorted(names), min(count, len(names)))  # noqa: S311
    return chosen


def as_text(now: Results, before: Results, words: str) -> str:
    """The table, and each survivor's change."""
    lines = ["# Mutation testing", "", f"Recorded {date.today().isoformat()} by", ""]
    lines += [f"    python -m benchmarks.mutation {words}", ""]
    lines += ["Noticed: a test fails, or the run does not end. A sample of each file's mutants was tried.", ""]
    rows = [["file", "mutants", "noticed", *["noticed before"] * bool(before)], ["---"] * (3 + bool(before))]
    for module, names in _by_module(now).items():
        rows.append([f"{module.replace('.', '/')}.py", *_cells(names, now, before)])
    rows.append(["all", *_cells(list(now), now, before)])
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", "## Survivors", ""]
    survivors = [name for name, fate in now.items() if fate not in NOTICED | {NOT_TRIED}]
    lines += [f"- `{name.partition('__mutmut_')[0]}`: {change(_mutmut('show', name))}" for name in survivors]
    return "\n".join(lines) + "\n"


def _cells(names: Sequence[str], now: Results, before: Results) -> list[str]:
    """How many there are, and for each run how many of those tried were noticed."""
    cells = [str(len(names))]
    for results in (now, before) if before else (now,):
        tried = [name for name in names if results.get(name, NOT_TRIED) != NOT_TRIED]
        noticed = sum(results[name] in NOTICED for name in tried)
        cells.append(f"{noticed} of {len(tried)}, {noticed / len(tried):.0%}" if tried else "")
    return cells


def change(diff: str) -> str:
    """A unified diff -> what was and what became of it, in one line."""
    gone, come = (
        " ".join(line[1:].strip() for line in re.findall(rf"^\{sign}(?!\{sign}\{sign}).*", diff, re.MULTILINE))
        for sign in "-+"
    )
    return f"`{gone}` to `{come}`"


def _by_module(results: Results) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(results):
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _results(folder: Path) -> Results:
    """Every mutant, and what became of it."""
    lines = _mutmut("results", "--all", "true", folder=folder).splitlines()
    return dict(line.strip().rsplit(": ", 1) for line in lines if "__mutmut_" in line)


def _mutmut(*words: str, folder: Path = ROOT) -> str:
    """What mutmut says; what it says of a run goes to the screen."""
    program = Path(sys.executable).with_name("mutmut")
    if shutil.which(program) is None:
        raise Refusal("is not installed", where="mutmut", cure="pip install 'championship-sr[mutation]'")
    shown = words[0] == "run"
    done = subprocess.run([program, *words], cwd=folder, stdout=None if shown else subprocess.PIPE, text=True)
    if done.returncode:
        raise Refusal(f"ended with {done.returncode}", where=f"mutmut {words[0]}", cure="see what it said above")
    return "" if shown else done.stdout


if __name__ == "__main__":
    raise SystemExit(run(main, sys.argv[1:]))
