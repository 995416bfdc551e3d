"""`python -m fusion distil`: an ensemble's images, rendered once -> a student trained on them, shipped if it is better.

Every part goes on where it was stopped: the same command again renders what is missing and trains from the last
checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cache_tools.storage.item_cache import add_local_cache_arguments, set_local_cache
from fusion.distillation.render import add_teacher_arguments, check_images
from fusion.training.loop.loop import train
from fusion.training.settings import TrainSettings
from fusion.training.sources.cache import at_cache_scale
from imaging.atomic import atomic_path
from imaging.command import DONE, FAILURES_LISTED, CommandParser, output_file, output_folder, print_json
from imaging.device import choose_device
from imaging.hashes import file_sha256
from imaging.paths import find_shipped
from imaging.refusal import Refusal
from imaging.settings import load_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from fusion.distillation.render import Render
    from fusion.training.tasks.task import Task

log = logging.getLogger(__name__)

CONFIG = Path("configs/distil_fast.yaml")
FILE_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def main(
    arguments: Sequence[str],
    *,
    render: Render,
    make_task: Callable[[TrainSettings, int, int], Task],
    is_expert: Callable[[str], bool],
) -> int:
    """Render, train, judge, ship."""
    options = _parse(arguments)
    set_local_cache(options)
    out: Path = options.out
    if out.suffix != ".safetensors":
        raise Refusal("is not a .safetensors name", where=out, cure="name the output FILE.safetensors")
    check_images(options, "fusion distil")
    work: Path = options.work or out.with_name(f"{out.stem}_distil")
    settings = _settings(options, work, is_expert)  # before the rendering: a mistyped setting costs nothing
    render(options, work / "teacher", device=choose_device(options.device))
    settings = at_cache_scale(settings)
    summary = train(settings, lambda rank, world: make_task(settings, rank, world), resume=True)
    if not summary:  # a process of several that is not the first
        return DONE
    passed = bool(summary["gate"]["passed"])
    if passed:
        with atomic_path(out) as temporary:
            shutil.copyfile(settings.run / summary["model"], temporary)
    _tell(options, out, settings.run, summary, passed)
    return DONE if passed else FAILURES_LISTED


def _settings(options: argparse.Namespace, work: Path, is_expert: Callable[[str], bool]) -> TrainSettings:
    """The config, the command line's settings, and what the command itself decides."""
    own = ["task=distil", f"run={work / 'run'}", f"data.cache={work / 'teacher'}"]
    if options.catalog is not None:
        own.append(f"data.catalog={options.catalog}")
    student = options.student
    if student is not None:
        is_file = Path(student).suffix.lower() in FILE_ENDINGS or is_expert(student)
        name, values = ("file", {"file": student}) if is_file else (student, {})
        # The config's settings are those of the config's network: another one has its own defaults.
        own.append(f"network={json.dumps({'name': name, 'settings': values})}")
    return load_settings(TrainSettings, find_shipped(options.config), [*own, *options.overrides])


def _tell(options: argparse.Namespace, out: Path, run: Path, summary: dict[str, object], passed: bool) -> None:
    gate = summary["gate"]
    assert isinstance(gate, dict)
    if options.json:
        print_json({**summary, "shipped": str(out) if passed else None, "sha256": file_sha256(out) if passed else None})
        return
    interval = f"{gate['gain_db']:+.3f} dB, {gate['low_db']:+.3f} to {gate['high_db']:+.3f}, {gate['images']} images"
    shipped = f"{out}: " if passed else f"{out} is not written: "
    sys.stdout.write(f"{shipped}{gate['reason']} ({interval}); the run is in {run}\n")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(prog="python -m fusion distil", description=__doc__)
    add = parser.add_argument
    add("overrides", nargs="*", metavar="section.key=value", help="settings of the training to change")
    add_teacher_arguments(parser)
    add("--student", metavar="FILE|ARCH", help="a weights file or an expert to go on from; or SPAN, MSG, EDSR, ...")
    add("--out", type=output_file, required=True, metavar="FILE.safetensors")
    add("--config", type=Path, default=CONFIG, help=f"the training's plan ({CONFIG})")
    add("--work", type=output_folder, metavar="DIR", help="where cache and run are kept (FILE_distil beside --out)")
    add("--json", action="store_true", help="print one JSON document")
    add_local_cache_arguments(parser)
    return parser.parse_args(arguments)
