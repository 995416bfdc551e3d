"""`python -m benchmarks.mutation --out FILE`: small changes to the code, one at a time -> how many the tests notice.

mutmut makes the changes and runs the tests (what and with which: [tool.mutmut] in pyproject.toml); here they are
sampled, since all of them take hours, and counted. Its folder `mutants/` keeps what was tried.
"""

from __future__ import annotations

import json
import random
import resource
import shlex
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.atomic import write_text
from imaging.command import DONE, CommandParser, output_file, run
from imaging.paths import ROOT
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    Results = dict[str, int | None]  # mutant -> exit code of its tests, None where it was not tried

FIRST = "fusion.training.judge.gate"  # few and fast, tried in full: mutmut makes the mutants of all files on the way
FAILED = {1, 3}  # pytest's exit codes: tests failed, or could not even be collected
SURVIVED = {0, 5, 33}  # all passed, or no test comes by
MEMORY = 8 << 30  # of a process: some changes make an endless loop that fills a list
NOTES = "\n## Notes\n"


def main(arguments: Sequence[str]) -> int:
    """Try a sample of each file's mutants and write the table."""
    parser = CommandParser(prog="python -m benchmarks.mutation", description=__doc__)
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE", help="Markdown; its notes are kept")
    parser.add_argument("--sample", type=int, default=30, metavar="N", help="mutants tried of each file, at random")
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--count-only", action="store_true", help="of what was tried already")
    words = parser.parse_args(arguments)
    if not words.count_only:
        _try(f"{FIRST}.*")
        _try(*sampled(tried(ROOT), words.sample, words.seed))
    notes = words.out.read_text(encoding="utf-8").partition(NOTES)[2] if words.out.is_file() else ""
    write_text(words.out, as_text(tried(ROOT), shlex.join(arguments)) + (NOTES + notes if notes else ""))
    return DONE


def tried(folder: Path) -> Results:
    """Every mutant, and what mutmut noted of it beside the mutated files."""
    found: Results = {}
    for path in sorted((folder / "mutants").rglob("*.meta")):
        found |= json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
    if not found:
        raise Refusal("holds no mutants", where=folder / "mutants", cure="run without --count-only")
    return found


def sampled(results: Results, count: int, seed: int) -> list[str]:
    """So many mutants of each file, the same for the same code and seed; not those of FIRST."""
    chosen: list[str] = []
    for module, names in _by_module(results).items():
        if module != FIRST:
            chosen += random.Random(seed).sample(sorted(names), min(count, len(names)))  # noqa: S311
    return chosen


def as_text(results: Results, words: str) -> str:
    """The table, and the names of those that no test failed for."""
    lines = ["# Mutation testing", "", f"Counted {date.today().isoformat()} by", ""]
    lines += [f"    python -m benchmarks.mutation {words}", ""]
    lines += ["Noticed: a test fails. Out of time: neither failed nor passed; endless loops, or a busy machine.", ""]
    lines += ["| file | mutants | tried | noticed | out of time | survived |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {module.replace('.', '/')}.py | {_row(names, results)} |" for module, names in _by_module(results).items()
    ]
    lines += [f"| all | {_row(list(results), results)} |", "", "Survivors, each shown by `mutmut show NAME`:", ""]
    lines += [f"- `{name}`" for name, code in results.items() if code in SURVIVED]
    return "\n".join(lines) + "\n"


def _row(names: Sequence[str], results: Results) -> str:
    codes = [code for code in (results[name] for name in names) if code is not None]
    failed, survived = (sum(code in kind for code in codes) for kind in (FAILED, SURVIVED))
    share = f"{failed / len(codes):.1%}" if codes else "-"
    return f"{len(names)} | {len(codes)} | {failed} ({share}) | {len(codes) - failed - survived} | {survived}"


def _by_module(results: Results) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(results):
        found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _try(*names: str) -> None:
    """Have mutmut run the tests of these mutants; what it says goes to the screen."""
    program = Path(sys.executable).with_name("mutmut")
    if not program.is_file():
        raise Refusal("is not installed", where="mutmut", cure="pip install 'championship-sr[mutation]'")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    code = subprocess.run([program, "run", *names], cwd=ROOT).returncode
    if code:
        raise Refusal(f"ended with {code}", where="mutmut run", cure="see what it said above")


if __name__ == "__main__":
    raise SystemExit(run(main, sys.argv[1:]))
