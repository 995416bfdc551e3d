"""`python -m fusion train-all`: experts' configs, images, minutes -> all trained in that time.

For a machine that is available for a short while: it times each expert's steps there, plans how many fit the budget,
trains side by side from the weights that exist already, and resumes where an earlier call with the same arguments was
stopped. Where time is left, the experts' cache is extracted and their fusion trained, then a refiner on its images.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.train_all.collect import Run, collect
from fusion.train_all.session import Session, train_runs
from fusion.training.settings import TrainSettings
from imaging.command import DONE, FAILURES_LISTED, CommandParser, output_folder, print_json
from imaging.device import best_device
from imaging.paths import CONFIGS as CONFIGS_FOLDER
from imaging.settings import load_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

log = logging.getLogger(__name__)
CONFIGS = tuple(CONFIGS_FOLDER / f"expert_{name}.yaml" for name in ("edsr_s", "msg", "freqnet", "ssm"))
# A GPU needs larger patches to be busy, and crops cut by other processes to be kept so.
ON_GPU = ("data.patch=64", "data.workers=3")
FUSION_NAME, REFINER_NAME = "fusion", "refiner"
LEAST_FUSION_SECONDS = 60.0  # with less time left, neither fusion nor refiner is begun in this call


def main(arguments: Sequence[str]) -> int:
    """Plan, train, fuse, collect."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or its subprocesses would outlive it
    options = _parser().parse_args(arguments)
    session = Session(options)
    runs = [expert_run(config, options) for config in options.configs]
    try:
        train_runs(session, runs, share=1 - options.fusion_share if options.fusion else 1)
        if options.fusion:
            experts, fusions = list(runs), fuse(session, runs)
            runs += fusions
            if options.refiner:
                runs += refine(session, experts, fusions)
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
        train_runs(session, [fusion], share=0.5 if options.refiner else 1)
    return [fusion]


def refine(session: Session, experts: Sequence[Run], fusions: Sequence[Run]) -> list[Run]:
    """The fusion's images, rendered from the experts' cache, and the refiner trained on them, if there is time."""
    options, images = session.options, session.options.work / "fused"
    settings = load_settings(TrainSettings, options.refiner)
    words = ("--config", str(options.refiner), "--cache", str(images), "device=auto")
    refiner = Run(
        REFINER_NAME,
        (*words, _word("run", str(options.work / REFINER_NAME))),
        options.work / REFINER_NAME,
        settings.export.name,
    )
    if refiner.finished:
        return [refiner]
    fusion = fusions[0].finished if fusions else None
    if fusion is None or session.deadline - time.monotonic() < options.least_fusion:
        log.info("no refiner in this call: %s", "the fusion is not finished" if fusion is None else "no time")
        return []
    files = ",".join(str(one.finished) for one in experts)
    render = [sys.executable, "-m", "fusion", "render", "--model", str(fusion), "--experts", files]
    render += ["--hr", str(options.work / "images"), "--cache", str(options.work / "cache"), "--out", str(images)]
    if session.run_pool({"render": render}, 1)["render"].code == 0:
        train_runs(session, [refiner], share=1)
    return [refiner]


def _linked(folders: Sequence[Path], where: Path) -> Path:
    """One folder that holds them all, in order: extract takes one."""
    where.mkdir(parents=True, exist_ok=True)
    for number, folder in enumerate(folders):
        link = where / f"{number:02d}"
        if not link.exists():
            link.symlink_to(folder, target_is_directory=True)
    return where


def _word(key: str, value: str | list[str]) -> str:
    """One setting as the command line reads it; JSON is YAML that leaves no path in doubt."""
    return f"{key}={json.dumps(value)}"


def _place(text: str) -> Path:
    """Absolute: the subprocesses run in the checkout's root."""
    return Path(text).resolve()


def _target(text: str) -> Path:
    return output_folder(str(_place(text)))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m fusion train-all", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings of all experts")
    parser.add_argument(
        "--hr", type=_place, required=True, action="append", metavar="DIR", help="images; may be repeated"
    )
    parser.add_argument("--minutes", type=float, required=True, help="time budget of all runs together, over all calls")
    parser.add_argument(
        "--slice", type=float, metavar="MINUTES", help="of one call; repeat the call until all runs are finished"
    )
    parser.add_argument(
        "--out", type=_target, required=True, metavar="DIR", help="where the models and the report are written"
    )
    parser.add_argument(
        "--work", type=_target, default=_place("runs/all"), metavar="DIR", help="runs, plan, cache, logs"
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
    parser.add_argument(
        "--refiner", type=_place, metavar="FILE", help="then this refiner config, on the fusion's images"
    )
    parser.add_argument(
        "--fusion-share", type=float, default=0.35, metavar="SHARE", help="of the minutes, the refiner's with it"
    )
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
