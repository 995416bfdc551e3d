"""One call of train-all: its clock, the plan it shares with earlier calls, and runs that are planned and trained."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from typing import TYPE_CHECKING

from fusion.train_all.subprocess_pool import run_subprocesses
from fusion.train_all.time_budget import StepPlan, plan_steps
from fusion.training.dry_run import Probe
from imaging.atomic import write_text
from imaging.device import best_device
from imaging.refusal import Refusal
from imaging.settings import Settings, parse_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from fusion.train_all.collect import Run
    from fusion.train_all.subprocess_pool import Ended

log = logging.getLogger(__name__)
CLOSING_SECONDS = 5.0  # of each call, left for stopping what runs and copying the files


class TrainAllPlan(Settings):
    """Kept between calls: the arguments they must share, the seconds used up, the steps of each run."""

    minutes: float
    words: tuple[str, ...]
    used: float = 0.0
    runs: dict[str, StepPlan] = {}


class Session:
    """One call: its clock, the plan of earlier calls, and the failures of this one."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.begun, self.options = time.monotonic(), options
        self.troubles: dict[str, str] = {}
        # What may not change between calls, or the runs would refuse to resume.
        words = [*options.configs, options.initial_weights, options.fusion, *options.fusion_set, *options.overrides]
        words += ["--dihedral"] if options.dihedral else []
        words += ["--refiner", options.refiner] if options.refiner else []
        self._file = options.work / "plan.json"
        self.plan = TrainAllPlan(minutes=options.minutes, words=tuple(str(word) for word in words))
        if self._file.is_file():
            before = parse_settings(
                TrainAllPlan, json.loads(self._file.read_text(encoding="utf-8")), where=str(self._file)
            )
            if (before.minutes, before.words) != (self.plan.minutes, self.plan.words):
                raise Refusal("was planned with other settings", where=self._file, cure="repeat them, or give --work")
            self.plan = before
        self.call_seconds = 60 * (options.slice or options.minutes)
        self.deadline = self.begun + min(self.call_seconds, self.left) - CLOSING_SECONDS

    @property
    def left(self) -> float:
        """Seconds left of the whole plan."""
        return self.plan.minutes * 60 - self.plan.used - (time.monotonic() - self.begun)

    def remember(self, runs: dict[str, StepPlan]) -> None:
        """Add to the plan."""
        self.plan = self.plan.model_copy(update={"runs": {**self.plan.runs, **runs}})
        self._write(self.plan)

    def close(self) -> None:
        """Write down what this call used of the time."""
        self._write(self.plan.model_copy(update={"used": self.plan.minutes * 60 - self.left}))

    def _write(self, plan: TrainAllPlan) -> None:
        write_text(self._file, plan.model_dump_json(indent=2) + "\n")

    def run_pool(self, commands: dict[str, list[str]], at_once: int) -> dict[str, Ended]:
        """Run commands until this call's deadline; a failure is recorded and does not stop the others."""
        ended = run_subprocesses(commands, folder=self.options.work, at_once=at_once, deadline=self.deadline)
        self.troubles |= {name.partition(".")[0]: one.trouble for name, one in ended.items() if one.trouble}
        return ended


def train_runs(session: Session, runs: Sequence[Run], *, share: float) -> None:
    """Every unfinished run until the deadline; one without a plan is timed by a probe first."""
    train, options = [sys.executable, "train.py"], session.options
    at_once = min(options.at_once or (len(runs) if best_device() != "cpu" else 1), len(runs))
    new = [one for one in runs if one.name not in session.plan.runs]
    probing = {f"{one.name}.probe": [*train, "--probe", str(options.probe), *one.words] for one in new}
    timed = {name.partition(".")[0]: one for name, one in session.run_pool(probing, at_once).items() if one.code == 0}
    seconds = share * session.left / math.ceil(max(len(timed), 1) / at_once)
    calls = math.ceil(session.left / session.call_seconds)
    session.remember({name: _plan(one, seconds, calls, options.most_steps) for name, one in timed.items()})
    commands = {}
    for one in runs:
        plan = session.plan.runs.get(one.name)
        if plan is not None and not one.finished:
            log.info("%s: %s", one.name, " ".join(plan.words()))
            commands[one.name] = [*train, "--resume", "auto", *one.words, *plan.words()]
    session.run_pool(commands, at_once)


def _plan(ended: Ended, seconds: float, calls: int, most: int | None) -> StepPlan:
    probe = Probe(**json.loads(ended.output))
    return plan_steps(seconds, probe, begin=ended.seconds - probe.counted, calls=calls, most=most)
