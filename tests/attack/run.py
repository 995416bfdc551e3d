"""A target and a seed -> what became of each mutated input, counted; run in a process of its own with little memory.

The process reports before and after every input, so that one that hangs or dies is known, counted and passed over.
"""

from __future__ import annotations

import logging
import multiprocessing
import random
import resource
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imaging.refusal import Refusal
from tests.attack.targets import REQUESTS, SILENT, TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection

    from tests.attack.targets import Original, Target

DETECTED, HARMLESS, OTHER, QUIET, TRACEBACK, HANG = "detected", "harmless", "another", "silent", "traceback", "hang"
OUTCOMES = (DETECTED, HARMLESS, OTHER, QUIET, TRACEBACK, HANG)
LONGEST_S = 30
START_S = 600  # imports, sound files and their first reading, on a busy machine
MEMORY = 3 << 30  # bytes of addresses beyond those that the process has when the attack begins
_SHOWN = 6  # examples of each bad outcome that are kept


class Counts:
    """Outcomes of one class, and examples of the bad ones."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()
        self.examples: list[str] = []

    def add(self, outcome: str, example: str) -> None:
        """One more."""
        self.of[outcome] += 1
        if outcome in (QUIET, TRACEBACK, HANG) and len(self.examples) < _SHOWN:
            self.examples.append(f"{outcome}: {example}")


def attack(name: str, count: int, seed: int) -> Counts:
    """`count` inputs of the class of that name."""
    counts, first = Counts(), 0
    while first < count:
        first = _one_process(name, range(first, count), seed, counts)
    return counts


def _one_process(name: str, numbers: range, seed: int, counts: Counts) -> int:
    """Until all are done or one hangs or kills the process; the number that comes next."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(name, numbers, seed, theirs), daemon=True)
    process.start()
    theirs.close()
    current, patience = numbers.start, START_S
    try:
        while True:
            if not ours.poll(patience):
                counts.add(HANG, f"input {current} took more than {patience} s")
                return current + 1
            outcome, number, example = ours.recv()
            current, patience = number, LONGEST_S
            if outcome == "begins":
                continue
            if outcome == "over":
                return numbers.stop
            counts.add(outcome, example)
            current += 1
    except EOFError:
        process.join()
        counts.add(TRACEBACK, f"input {current} ended the process (exit code {process.exitcode})")
        return current + 1
    finally:
        process.kill()
        process.join()


def _worker(name: str, numbers: range, seed: int, report: Connection) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        place = Path(folder)
        outcomes = _of_requests(place, numbers, seed) if name == REQUESTS else _of_files(name, place, numbers, seed)
        for outcome, number, example in outcomes:
            report.send((outcome, number, example))
        report.send(("over", numbers.stop, ""))


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))


def _of_files(name: str, folder: Path, numbers: range, seed: int) -> Iterator[tuple[str, int, str]]:
    target = next(one for one in TARGETS if one.name == name)
    originals = target.originals(folder)
    _limit_memory()
    for original in originals:  # or everything would be refused for want of memory, and nothing be found
        if repr(target.read(original.path)) != original.truth:
            raise RuntimeError(f"{original.path}: the sound file does not read as before")
    for number in numbers:
        rng = random.Random(f"{seed} {name} {number}")
        original = originals[number % len(originals)]
        yield "begins", number, ""
        original.path.write_bytes(target.mutate(original.data, rng))
        outcome, example = outcome_of(target, original)
        original.path.write_bytes(original.data)
        yield outcome, number, f"{original.path.name}, input {number}: {example}"


def outcome_of(target: Target, original: Original) -> tuple[str, str]:
    """What reading the mutated file gives, and how to recognise it."""
    try:
        found: Any = target.read(original.path)
    except Refusal as refusal:
        return (DETECTED, "") if len(str(refusal).splitlines()) == 1 else (TRACEBACK, "a refusal of several lines")
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return TRACEBACK, f"{type(error).__name__}: {str(error)[:200]} ({Path(where.filename).name}:{where.lineno})"
    if found == SILENT:
        return QUIET, SILENT
    if repr(found) == original.truth:
        return HARMLESS, ""
    return (QUIET, "reads as something else") if target.checked(original.path) else (OTHER, "")


def _of_requests(folder: Path, numbers: range, seed: int) -> Iterator[tuple[str, int, str]]:
    """Through the whole server in this process; a traceback is one in the console or an answer of 500."""
    from tests.attack.requests import send_all

    yield from send_all(folder, numbers, seed, _limit_memory)
