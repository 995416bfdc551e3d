"""Run folders of train.py -> their curves and scores, as HTML; needs no gradio."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fusion.studio.views.charts import Line, figure, legend, line_chart, table
from fusion.training.loop.run_folder import RunFolder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_ORDER = ("val", "loss", "train")  # of the charts, by the first part of a tag: what decides about a run comes first
_MOST_POINTS = 5000  # of a curve that are kept in memory


@dataclass(frozen=True)
class RunLog:
    """One run: curve -> (steps, values), and its summary where it has ended."""

    scalars: dict[str, tuple[list[int], list[float]]]
    summary: dict[str, Any]

    @property
    def last_step(self) -> int:
        """The last step that was logged."""
        return max((steps[-1] for steps, _ in self.scalars.values()), default=0)


def read_run(folder: Path) -> RunLog:
    """Its event files, repeated stretches of resumed runs replaced, and its summary."""
    run = RunFolder(folder)
    scalars: dict[str, tuple[list[int], list[float]]] = {}
    if run.logs.is_dir():
        # 1 is the least that can be asked of the kinds that are not wanted (0 would mean all).
        events = EventAccumulator(str(run.logs), {"scalars": _MOST_POINTS, "images": 1, "histograms": 1, "tensors": 1})
        events.Reload()
        for tag in cast("list[str]", events.Tags()["scalars"]):
            points = events.Scalars(tag)
            scalars[tag] = [point.step for point in points], [point.value for point in points]
    return RunLog(scalars, _summary(run.summary))


def runs_page(runs: Mapping[str, RunLog], smoothing: float) -> str:
    """A table of the runs and a chart for each curve that any of them has."""
    tags = sorted({tag for run in runs.values() for tag in run.scalars}, key=_order_of)
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
        # Validation is not smoothed: its few points are means over many images already.
        weight = 0.0 if tag.startswith("val/") else smoothing
        charts.append(figure(tag, "smoothed" if weight else "", line_chart(lines, weight)))
    drawn = f'<div class="charts">{"".join(charts)}</div>' if charts else "<p>Nothing is logged yet.</p>"
    never_changed = f"<p></p>{table(['never changed', 'value'], constant)}" if constant else ""
    return f"{legend(list(runs))}{_overview(runs)}<p></p>{drawn}{never_changed}"


def _overview(runs: Mapping[str, RunLog]) -> str:
    head = ["run", "step", "state", "best step", "scores, dB"]
    rows = []
    for name, run in runs.items():
        scores = run.summary.get("scores", {})
        scores_text = ", ".join(f"{who} {score['psnr_y']:.3f}" for who, score in scores.items() if "psnr_y" in score)
        state = "ended" if run.summary else "running, or stopped"
        rows.append([name, f"{run.last_step:,}", state, run.summary.get("best_step", ""), scores_text])
    return table(head, rows)


def _order_of(tag: str) -> tuple[int, bool, str]:
    first = tag.partition("/")[0]
    return (_ORDER.index(first) if first in _ORDER else len(_ORDER)), "bicubic" in tag, tag


def _summary(path: Path) -> dict[str, Any]:
    """Empty while the run goes on, and while it is being written."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
