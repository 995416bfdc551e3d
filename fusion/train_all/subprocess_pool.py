"""Commands and a deadline -> how each ended; `at_once` of them run side by side, each with a log of its own."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from imaging.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

log = logging.getLogger(__name__)
_KILL_AFTER = 10.0  # seconds between asking to end and ending


@dataclass(frozen=True)
class Ended:
    """`code` is None where the deadline stopped it; `output` is its stdout; `trouble` the reason where it failed."""

    code: int | None
    seconds: float
    output: str = ""
    trouble: str = ""


@dataclass
class _Running:
    process: subprocess.Popen[bytes]
    begun: float
    log: IO[bytes]
    output: Path


def run_subprocesses(
    commands: Mapping[str, Sequence[str]], *, folder: Path, at_once: int, deadline: float
) -> dict[str, Ended]:
    """Run all in the checkout's root until `deadline` (of time.monotonic); what fails does not stop the others."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting, running, ended = dict(commands), dict[str, _Running](), dict[str, Ended]()
    try:
        while waiting or running:
            late = time.monotonic() >= deadline
            while waiting and len(running) < at_once and not late:
                name = next(iter(waiting))
                running[name] = _begin(waiting.pop(name), folder, name, at_once)
            for name, one in list(running.items()):
                if one.process.poll() is not None:
                    ended[name] = _finished(name, running.pop(name), folder)
            if late:  # what still runs is ended below
                break
            time.sleep(0.1)
    finally:
        _end([one.process for one in running.values()])
        for one in running.values():
            one.log.close()
    stopped = {name: time.monotonic() - one.begun for name, one in running.items()}
    ended |= {name: Ended(None, seconds) for name, seconds in stopped.items()}
    return ended | {name: Ended(None, 0.0) for name in waiting}


def _begin(command: Sequence[str], folder: Path, name: str, at_once: int) -> _Running:
    threads = str(max(1, (os.cpu_count() or 1) // at_once))
    # PyTorch takes every core by default: side by side, processes would fight for them.
    shared_out = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    errors, output = (folder / f"{name}.log").open("ab"), folder / f"{name}.out"
    with output.open("wb") as stdout:
        process = subprocess.Popen(command, cwd=ROOT, env={**shared_out, **os.environ}, stdout=stdout, stderr=errors)
    return _Running(process, time.monotonic(), errors, output)


def _finished(name: str, ended: _Running, folder: Path) -> Ended:
    ended.log.close()
    code, seconds = ended.process.returncode, time.monotonic() - ended.begun
    if code == 0:
        return Ended(code, seconds, ended.output.read_text(encoding="utf-8"))
    path = folder / f"{name}.log"
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
    log.warning("%s ended with code %d: %s (%s)", name, code, lines[-1], path)
    return Ended(code, seconds, trouble=lines[-1])


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask all to end, then wait for each; checkpoints are written whole or not at all."""
    for process in processes:
        process.terminate()
    for process in processes:
        _wait_for(process)


def _wait_for(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_KILL_AFTER)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
