"""`python -m fusion bench-pareto --lr DIR --hr DIR --out FOLDER`: quality over CPU time of all that can be run here.

Every expert of the catalog whose weights are here, each preset, and budgets between, by real runs of infer.py on one
thread. `points.json` in the folder is written after every run: a stopped measurement goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from tqdm import tqdm

from benchmarks.inference.cost import INFER
from benchmarks.inference.pareto_picture import Measured, draw, front
from experts.catalog import built_in_catalog
from experts.loading.weights import find_weights
from fusion.evaluation.folders import evaluate
from fusion.inference.model_selection import NONE, ModelPreset, find_preset
from imaging.atomic import write_text
from imaging.command import DONE, CommandParser, output_file, output_folder
from imaging.files.folders import list_images
from imaging.hashes import file_sha256
from imaging.metrics import BORDER
from imaging.refusal import Refusal
from imaging.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)
_LEAST_SECONDS = 0.001
POINTS, TABLE, PICTURE = "points.json", "pareto.md", "pareto.svg"


@dataclass(frozen=True)
class Way:
    """One way to make the images: what it is called, and the words for infer.py."""

    name: str
    kind: str
    words: tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    """Run every way, write points, table and picture."""
    parser = CommandParser(prog="python -m fusion bench-pareto", description=__doc__)
    add = parser.add_argument
    add("--lr", type=Path, required=True, help="a folder of LR images")
    add("--hr", type=Path, required=True, help="the true images")
    add("--presets", nargs="*", default=["default", "strong"], help="as infer.py's --model")
    add("--experts", nargs="*", help="default: all of the catalog whose weights are here")
    add("--budgets", type=float, nargs="*", default=[0.25, 0.5, 0.75], help="for presets with a budget model")
    add("--out", type=output_folder, required=True, metavar="FOLDER", help=f"for {POINTS}, {TABLE} and {PICTURE}")
    add("--picture", type=output_file, metavar="FILE", help=f"the SVG elsewhere than FOLDER/{PICTURE}")
    words = parser.parse_args(arguments)
    points = measure(ways(words.presets, words.experts, words.budgets), words.lr, words.hr, words.out / POINTS)
    write_text(words.out / TABLE, as_text(points, list(arguments)))
    write_text(
        words.picture or words.out / PICTURE, draw(points, front(points), f"{words.hr.parent.name}, Y-PSNR in dB")
    )
    sys.stdout.write(as_text(points, list(arguments)))
    return DONE


def ways(presets: Sequence[str], experts: Sequence[str] | None, budgets: Sequence[float]) -> list[Way]:
    """Experts alone, then presets, then presets under a budget where they have a model for it."""
    known = built_in_catalog().experts
    here = [spec.name for spec in known if find_weights(spec) is not None] if experts is None else experts
    found = [Way(name, "expert", ("--model", NONE, "--experts", name)) for name in here]
    for preset in presets:
        found.append(Way(preset, "preset", ("--model", preset)))
        file = find_preset(preset)
        if file is not None and len(load_settings(ModelPreset, file).experts) == 1:  # nothing to leave out
            continue
        found += [
            Way(f"{preset} at {share:.0%}", "budget", ("--model", preset, "--budget", f"{share:g}"))
            for share in budgets
        ]
    return found


def measure(wanted: Sequence[Way], lr: Path, hr: Path, record: Path) -> list[Measured]:
    """Each way's point; one in the record is taken if words, images and weights are what they were."""
    had = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else []
    known = {point.fingerprint: point for point in map(Measured.model_validate, had)}
    points: list[Measured] = []
    for way in tqdm(wanted, desc="ways", unit="way"):
        mark = fingerprint(way, lr, hr)
        points.append(known.get(mark) or _measure(way, mark, lr, hr))
        write_text(record, json.dumps([one.model_dump() for one in points], indent=1) + "\n")
    return points


def fingerprint(way: Way, lr: Path, hr: Path) -> str:
    """Of the words, the images, and every file of weights, preset and budget that the words stand for."""
    catalog = built_in_catalog()
    named = way.words[way.words.index("--experts") + 1].split(",") if "--experts" in way.words else []
    files = [*list_images(lr), *list_images(hr)]
    preset = find_preset(way.words[1])
    if preset is not None:
        settings = load_settings(ModelPreset, preset)
        named = [*settings.experts]
        beside = [preset.name, settings.fusion or "", settings.budget, *named]
        files += [path for one in beside if (path := preset.parent / one).is_file()]
    found = [find_weights(spec) for name in named if (spec := catalog.find(name)) is not None]
    files += [one[0] for one in found if one is not None]
    marks = [f"{path.name} {file_sha256(path)}" for path in files]
    return hashlib.sha256("\n".join([*way.words, *marks]).encode()).hexdigest()


def as_text(points: Sequence[Measured], arguments: list[str]) -> str:
    """The table as Markdown, from fast to slow."""
    lines = ["# Quality over CPU time", "", f"Recorded {date.today().isoformat()} by", ""]
    lines += [f"    python -m fusion bench-pareto {shlex.join(arguments)}", ""]
    lines += ["Y-PSNR of the files written by infer.py, 4 border pixels left out; CPU seconds of a mean image on one"]
    lines += ["thread, start-up taken off. In bold: nothing else measured is both faster and better.", ""]
    lines += ["| what | CPU seconds an image | Y-PSNR |", "|---|---|---|"]
    best = front(points)
    for one in sorted(points, key=lambda point: point.seconds):
        name = f"**{one.name}**" if one in best else one.name
        lines.append(f"| {name} | {one.seconds:.2f} | {one.psnr:.3f} |")
    return "\n".join(lines) + "\n"


def _measure(way: Way, mark: str, lr: Path, hr: Path) -> Measured:
    """Start-up is what the same words take on an image of 16x16."""
    with tempfile.TemporaryDirectory() as folder:
        tiny, made = Path(folder) / "tiny.png", Path(folder) / "made"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)).save(tiny)
        start_up = _cpu_seconds(way, tiny, Path(folder) / "tiny")
        # Start-up varies by more than a tiny image takes: never zero or less, which has no place on the axis.
        seconds = max(_LEAST_SECONDS, _cpu_seconds(way, lr, made) - start_up)
        scores = evaluate(made, hr, space="y", border=BORDER, lpips=False, ntire=False)
    if scores.failures:
        raise Refusal(scores.failures[0], where=hr, cure="give the true images of these LR images")
    return Measured(
        name=way.name,
        kind=way.kind,
        fingerprint=mark,
        seconds=seconds / len(list_images(lr)),
        psnr=scores.means()["psnr_y"],
    )


def _cpu_seconds(way: Way, source: Path, target: Path) -> float:
    """User and system time of one run of infer.py on one thread."""
    command = [sys.executable, str(INFER), "-i", str(source), "-o", str(target), "--ext", "png", "--device", "cpu"]
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [*command, *way.words],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode != DONE:
            errors.seek(0)
            last = " ".join(errors.read().strip().splitlines()[-1:])[:300]
            raise Refusal(f"infer.py failed ({last})", where=shlex.join([*command, *way.words]), cure="run it alone")
    return usage.ru_utime + usage.ru_stime
