"""A program, started by test_cache_crash.py: kills real extractions and looks at what they left.

It imports torch once and forks: each child runs an extraction of its own and is killed with SIGKILL.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cache_tools.format.store import Store
from cache_tools.write.extract import extract
from cache_tools.write.recipe import ExtractSettings
from cache_tools.write.writer import require_intact
from tests.cache.parts import experts, item_bytes_of, write_images

if TYPE_CHECKING:
    from collections.abc import Callable

    from experts.spec import Expert

SYSTEM_CALLS = ("open", "write", "fsync", "replace", "close", "mkdir")
SIZES = [(8, 8), (8, 12), (12, 8), (9, 8)]


def in_child(work: Callable[[], object]) -> int:
    """Fork; the child works and leaves without any clean-up of its own."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # reported to the parent by the exit code, which it checks
            os._exit(1)
        os._exit(0)
    return child


def killed_by_call(work: Callable[[], object], number: int) -> Callable[[], object]:
    """The same work, killed right before its `number`-th system call of those that change files."""
    seen = [0]

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            seen[0] += 1
            if seen[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments, **keywords)

        return call

    def patched() -> object:
        for name in SYSTEM_CALLS:
            setattr(os, name, counted(getattr(os, name)))
        return work()

    return patched


class Trial:
    """One cache folder in which extractions are killed again and again."""

    def __init__(self, folder: Path, networks: list[Expert], images: Path, name: str) -> None:
        self.root = folder / name
        self._settings = ExtractSettings(out=self.root, hr=images)
        self._networks = networks
        self.committed: set[str] = set()

    def run(self) -> None:
        extract(self._settings, self._networks)

    def look(self) -> None:
        """Nothing that was committed is gone, and every file under a final name is whole."""
        there = {path.name for path in Store(self.root).item_paths()}
        assert self.committed <= there, f"lost {self.committed - there}"
        for path in Store(self.root).item_paths():
            require_intact(path)
        self.committed = there

    def clear(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        self.committed = set()


def finish(trial: Trial, reference: dict[str, bytes], lines: set[str]) -> None:
    """Resume to the end: the same bytes, a complete index, no temporary left."""
    assert os.waitpid(in_child(trial.run), 0)[1] == 0
    trial.look()
    assert item_bytes_of(trial.root) == reference
    assert {entry.id for entry in Store(trial.root).index_lines()} == lines
    assert not list(trial.root.rglob(".*.tmp.*"))


def random_moments(trial: Trial, reference: dict[str, bytes], lines: set[str], kills: int, longest: float) -> int:
    """Kill at random moments, from the first to the last, until `kills` really hit a running extraction."""
    rng = random.Random(0)
    hit = 0
    while hit < kills:
        child = in_child(trial.run)
        time.sleep(rng.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            hit += 1
        else:
            assert status == 0
            longest *= 0.8  # the run was over before its time: other load on the machine had stretched the estimate
        trial.look()
        if len(trial.committed) == len(reference):
            finish(trial, reference, lines)
            trial.clear()
    finish(trial, reference, lines)
    return hit


def every_call(trial: Trial, reference: dict[str, bytes], lines: set[str]) -> int:
    """Kill a one-item extraction before each of its file-changing calls in turn."""
    number = 0
    while True:
        number += 1
        trial.clear()
        status = os.waitpid(in_child(killed_by_call(trial.run, number)), 0)[1]
        trial.look()
        finish(trial, reference, lines)
        if not os.WIFSIGNALED(status):
            assert status == 0
            return number - 1


def timed(trial: Trial) -> float:
    """Seconds of one uninterrupted extraction from nothing."""
    trial.clear()
    begin = time.perf_counter()
    assert os.waitpid(in_child(trial.run), 0)[1] == 0
    return time.perf_counter() - begin


def main() -> None:
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    # tqdm's own lock is shared with forked children: one killed while it holds it would stop all later ones.
    tqdm.set_lock(threading.RLock())
    networks = experts(folder / "weights")
    results: dict[str, int] = {}
    many, one = write_images(folder / "many", SIZES), write_images(folder / "one", SIZES[:1])
    for name, images in (("many", many), ("one", one)):
        reference = Trial(folder, networks, images, f"reference-{name}")
        seconds = min(timed(reference) for _ in range(3))
        reference.look()
        expected = item_bytes_of(reference.root)
        lines = {entry.id for entry in Store(reference.root).index_lines()}
        trial = Trial(folder, networks, images, f"trial-{name}")
        if name == "many":
            results["random"] = random_moments(trial, expected, lines, kills, 1.2 * seconds)
        else:
            results["calls"] = every_call(trial, expected, lines)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
