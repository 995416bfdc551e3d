"""Runs of train.py, finished or not -> the best file of each in one folder, with a report."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imaging.atomic import atomic_path, write_text
from imaging.tensors.safe import read_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

REPORT = "report.json"


@dataclass(frozen=True)
class Run:
    """One run of train.py: its name, its arguments, its folder, and the name of the file it ends in."""

    name: str
    words: tuple[str, ...]
    folder: Path
    model: str

    @property
    def summary(self) -> dict[str, Any] | None:
        """Its summary, once it is finished."""
        path = self.folder / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def finished(self) -> Path | None:
        """The model's file, once the run is finished."""
        return self.folder / f"{self.model}.safetensors" if self.summary else None

    @property
    def best(self) -> tuple[Path, float] | None:
        """The best weights so far, by what their task judges by, and their Y-PSNR on held-out images."""
        scored = [(path, *scores_of(path)) for path in sorted((self.folder / "best").glob("step_*.safetensors"))]
        found = max(scored, key=lambda one: one[1], default=None)
        return None if found is None else (found[0], found[2])


def scores_of(file: Path) -> tuple[float, float]:
    """Merit and Y-PSNR in the header of a `best/` file, of an expert, a fusion or a refiner."""
    header, _ = read_safetensors(file, cure="train it again")
    details = json.loads(header["provenance"]) if "provenance" in header else json.loads(header["training"])["details"]
    psnr = float(details["psnr_y"])
    return float(details.get("merit", psnr)), psnr


def collect(runs: Sequence[Run], troubles: Mapping[str, str], out: Path) -> dict[str, Any]:
    """Copy each run's file, or the best so far of an unfinished one, and report which is which and what failed."""
    report: dict[str, Any] = {}
    for one in runs:
        best = one.best
        file = one.finished or (best[0] if best else None)
        target = out / f"{one.name}.safetensors"
        if file is not None:
            with atomic_path(target) as temporary:
                shutil.copyfile(file, temporary)
        report[one.name] = {
            "over": one.finished is not None,
            "file": None if file is None else target.name,
            "psnr_y": None if best is None else best[1],
            "trouble": troubles.get(one.name),
            "summary": one.summary,
        }
    write_text(out / REPORT, json.dumps(report, indent=2) + "\n")
    return report
