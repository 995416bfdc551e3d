"""Run folders of train.py -> their curves and what came of them, as HTML."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fusion.studio.views.charts import Line, curves, figure, keyline, table
from fusion.training.loop.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ORDER = ("val", "loss", "train")  # validation first
_MOST_POINTS = 5000  # of a curve that are kept in memory


@dataclass(frozen=True)
class RunLog:
    """One run: curve -> (steps, values), and its summary where it has ended."""

    scalars: dict[str, tuple[list[int], list[float]]]
    summary: dict[str, Any]

    @property
    def last_step(self) -> int:
        """How far it has come."""
        return max((steps[-1] for steps, _ in self.scalars.values()), default=0)


def read_run(folder: Path) -> RunLog:
    """Its event files, repeated stretches of resumed runs replaced, and its summary."""
    run = RunFolder(folder)
    scalars: dict[str, tuple[list[int], list[float]]] = {}
    if run.logs.is_dir():
        # One of every other kind, the least that can be asked for: only scalars are wanted.
        events = EventAccumulator(str(run.logs), {"scalars": _MOST_POINTS, "images": 1, "histograms": 1, "tensors": 1})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            points = events.Scalars(tag)
            scalars[tag] = [point.step for point in points], [point.value for point in points]
    return RunLog(scalars, _summary(run.summary))


def runs_page(runs: Mapping[str, RunLog], smoothing: float) -> str:
    """A table of the runs and a chart for each curve that any of them has."""
    tags = sorted({tag for run in runs.values() for tag in run.scalars}, key=_place)
    charts, constant = [], []
    for tag in tags:
        lines = [
            Line(name, *run.scalars[tag], colour)
            for colour, (name, run) in enumerate(runs.items())
            if tag in run.scalars
        ]
        values = {value for line in lines for value in line.values}
        if len(values) == 1:
            constant.append([tag, f"{values.pop():.6g}"])
            continue
        weight = 0.0 if tag.startswith("val/") else smoothing
        charts.append(figure(tag, "smoothed" if weight else "", curves(lines, weight)))
    drawn = f'<div class="charts">{"".join(charts)}</div>' if charts else "<p>Nothing is logged yet.</p>"
    never_changed = f"<p></p>{table(['never changed', 'value'], constant)}" if constant else ""
    return f"{keyline(list(runs))}{_overview(runs)}<p></p>{drawn}{never_changed}"


def _overview(runs: Mapping[str, RunLog]) -> str:
    head = ["run", "step", "state", "best step", "scores, dB"]
    rows = []
    for name, run in runs.items():
        scores = run.summary.get("scores", {})
        told = ", ".join(f"{who} {score['psnr_y']:.3f}" for who, score in scores.items() if "psnr_y" in score)
        state = "ended" if run.summary else "under way, or stopped"
        rows.append([name, f"{run.last_step:,}", state, run.summary.get("best_step", ""), told])
    return table(head, rows)


def _place(tag: str) -> tuple[int, bool, str]:
    first = tag.partition("/")[0]
    return (_ORDER.index(first) if first in _ORDER else len(_ORDER)), "bicubic" in tag, tag


def _summary(path: Path) -> dict[str, Any]:
    """Empty while the run goes on."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
