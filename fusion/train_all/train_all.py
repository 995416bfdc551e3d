"""`python -m fusion train-all`: experts' configs, images, minutes -> all trained in that time.

For a machine that is available for a short while: it times each expert's steps there, plans how many fit the budget,
trains side by side from the weights that exist already, and resumes where an earlier call with the same arguments was
stopped. Where time is left, the experts' cache is extracted and their fusion trained.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.train_all.collect import Run, collect
from fusion.train_all.subprocess_pool import run_subprocesses
from fusion.train_all.time_budget import StepPlan, plan_steps
from fusion.training.dry_run import Probe
from fusion.training.settings import TrainSettings
from imaging.atomic import write_text
from imaging.command import DONE, FAILURES_LISTED, print_json
from imaging.device import best_device
from imaging.paths import CONFIGS as CONFIGS_FOLDER
from imaging.refusal import Refusal
from imaging.settings import Settings, load_settings, parse_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion.train_all.subprocess_pool import Ended

log = logging.getLogger(__name__)
CONFIGS = tuple(CONFIGS_FOLDER / f"expert_{name}.yaml" for name in ("edsr_s", "msg", "freqnet", "ssm"))
# A GPU needs larger patches to be busy, and crops cut by other processes to be kept so.
ON_GPU = ("data.patch=64", "data.workers=3")
FUSION_NAME = "fusion"
CLOSING_SECONDS = 5.0  # of each call, left for stopping what runs and copying the files
LEAST_FUSION_SECONDS = 60.0  # with less time left, no fusion is begun in this call


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


def main(arguments: Sequence[str]) -> int:
    """Plan, train, fuse, collect."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or its subprocesses would outlive it
    options = _parser().parse_args(arguments)
    session = Session(options)
    runs = [expert_run(config, options) for config in options.configs]
    try:
        train_runs(session, runs, share=1 - options.fusion_share if options.fusion else 1)
        if options.fusion:
            runs += fuse(session, runs)
    finally:
        session.close()
    report = collect(runs, session.troubles, options.out)
    print_json(report)
    rest = [name for name, one in report.items() if not one["over"]]
    if rest:
        log.info(
            "not finished: %s; the same command resumes them (%.1f minutes left)", ", ".join(rest), session.left / 60
        )
    return FAILURES_LISTED if rest or session.troubles else DONE


def expert_run(config: Path, options: argparse.Namespace) -> Run:
    """train.py's arguments for one expert; its initial weights are its shipped file, if there is one."""
    words = ["device=auto", *(ON_GPU if best_device() != "cpu" else ()), *options.overrides]
    words.append(_word("data.hr", [str(folder) for folder in options.hr]))
    settings = load_settings(TrainSettings, config, words)
    name = settings.export.name
    if settings.network.start_from is None:
        known = None if options.initial_weights is None else options.initial_weights / f"{name}.safetensors"
        if known is not None and known.is_file():
            words.append(_word("network.start_from", str(known)))
        else:
            log.info("%s starts from random weights", name)
    folder = options.work / name
    return Run(name, ("--config", str(config), *words, _word("run", str(folder))), folder, name)


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


def fuse(session: Session, experts: Sequence[Run]) -> list[Run]:
    """The cache of the finished experts and the fusion trained on it, if there is time; nothing otherwise."""
    files, options = [str(one.finished) for one in experts if one.finished], session.options
    cache, folder = options.work / "cache", options.work / FUSION_NAME
    settings = load_settings(TrainSettings, options.fusion, options.fusion_set)
    words = ("--config", str(options.fusion), "--cache", str(cache), "device=auto", *options.fusion_set)
    fusion = Run(FUSION_NAME, (*words, _word("run", str(folder))), folder, settings.export.name)
    if fusion.finished:
        return [fusion]
    if len(files) < len(experts) or session.deadline - time.monotonic() < options.least_fusion:
        log.info("no fusion in this call: %s", "no time" if len(files) == len(experts) else "experts are not finished")
        return []
    where = ["--hr", str(_linked(options.hr, options.work / "images")), "--out", str(cache)]
    where += ["--dihedral"] if options.dihedral else []
    extract = [sys.executable, "-m", "cache_tools", "extract", "--experts", ",".join(files), *where]
    if session.run_pool({"extract": extract}, 1)["extract"].code == 0:
        train_runs(session, [fusion], share=1)
    return [fusion]


def _linked(folders: Sequence[Path], where: Path) -> Path:
    """One folder that holds them all, in order: extract takes one."""
    where.mkdir(parents=True, exist_ok=True)
    for number, folder in enumerate(folders):
        link = where / f"{number:02d}"
        if not link.exists():
            link.symlink_to(folder, target_is_directory=True)
    return where


def _plan(ended: Ended, seconds: float, calls: int, most: int | None) -> StepPlan:
    probe = Probe(**json.loads(ended.output))
    return plan_steps(seconds, probe, begin=ended.seconds - probe.counted, calls=calls, most=most)


def _word(key: str, value: str | list[str]) -> str:
    """One setting as the command line reads it; JSON is YAML that leaves no path in doubt."""
    return f"{key}={json.dumps(value)}"


def _place(text: str) -> Path:
    """Absolute: the subprocesses run in the checkout's root."""
    return Path(text).resolve()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fusion train-all", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of all experts")
    parser.add_argument(
        "--hr", type=_place, required=True, action="append", metavar="DIR", help="images; may be repeated"
    )
    parser.add_argument("--minutes", type=float, required=True, help="time budget of all runs together, over all calls")
    parser.add_argument(
        "--slice", type=float, metavar="MINUTES", help="of one call; repeat the call until all runs are finished"
    )
    parser.add_argument(
        "--out", type=_place, required=True, metavar="DIR", help="where the models and the report are written"
    )
    parser.add_argument(
        "--work", type=_place, default=_place("runs/all"), metavar="DIR", help="runs, plan, cache, logs"
    )
    parser.add_argument(
        "--start",
        dest="initial_weights",
        type=_place,
        default=_place("pretrained"),
        metavar="DIR",
        help="initial weights, by the experts' names",
    )
    parser.add_argument(
        "--scratch", dest="initial_weights", action="store_const", const=None, help="random initial weights"
    )
    parser.add_argument(
        "--configs", type=_place, nargs="+", default=CONFIGS, metavar="FILE", help="one for each expert"
    )
    parser.add_argument("--fusion", type=_place, metavar="FILE", help="train this fusion config afterwards")
    parser.add_argument("--fusion-share", type=float, default=0.35, metavar="SHARE", help="of the minutes")
    parser.add_argument(
        "--fusion-set", nargs="+", default=[], metavar="section.key=value", help="settings of the fusion"
    )
    parser.add_argument(
        "--dihedral",
        action="store_true",
        help="cache all flips and rotations: a better fusion for 8 times the extraction",
    )
    parser.add_argument("--least-fusion", type=float, default=LEAST_FUSION_SECONDS, metavar="SECONDS")
    parser.add_argument("--at-once", type=int, metavar="N", help="runs side by side (all on a GPU, one on a CPU)")
    parser.add_argument("--probe", type=float, default=15.0, metavar="SECONDS", help="for timing each run")
    parser.add_argument("--most-steps", type=int, metavar="N", help="of any run, however much time there is")
    return parser
