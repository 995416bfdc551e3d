"""A cache -> what `python -m fusion analyze` finds in it, as charts; run in a process of its own, to be cancellable."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from fusion.evaluation.headroom import LEAST_SQUARES, ORACLES
from fusion.studio.views.charts import bar_chart, figure, heatmap, legend
from imaging.paths import ROOT
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from fusion.studio.jobs.job_queue import QueuedJob

_POLL_S = 0.2
_KINDS = ("experts", "oracles", "blends")
_EXPERT, _ORACLE, _BLEND = range(3)  # their colours


@dataclass
class HeadroomStatus:
    """Seconds so far, and in the end the analysis."""

    seconds: float = 0.0
    found: dict[str, Any] | None = None


def find_headroom(cache: Path, job: QueuedJob) -> None:
    """The work of a job; the result is the command's own JSON."""
    status = job.status = HeadroomStatus()
    started = time.perf_counter()
    command = [sys.executable, "-m", "fusion", "analyze", str(cache), "--json"]
    # Files, not pipes: nobody reads while we poll, and a full pipe would block the command for ever.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                job.check()
                status.seconds = time.perf_counter() - started
                time.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            stderr.seek(0)
            last = stderr.read().decode(errors="replace").strip().splitlines()[-1:]
            # A visitor sees the command's own line, without this machine's folders.
            what = " ".join(last).removeprefix("refused: ").replace(f"{cache.parent}/", "")
            raise Refusal(what or "failed", where="analysis", cure="`python -m fusion analyze` tells more")
        stdout.seek(0)
        status.found = json.loads(stdout.read())


def headroom_page(found: dict[str, Any]) -> str:
    """PSNR of experts, blends and oracles, least-squares weights, correlation of the errors, loss without an expert."""
    experts: list[str] = found["experts"]
    psnr = {name: score["psnr_y"] for name, score in found["scores"].items()}
    colours = dict.fromkeys(psnr, _BLEND) | dict.fromkeys(experts, _EXPERT) | dict.fromkeys(ORACLES, _ORACLE)
    weights = dict(zip(experts, found["weights"][LEAST_SQUARES], strict=True))
    scores = bar_chart(psnr, "{:.3f}".format, colours, zero=False)
    shares = bar_chart(weights, "{:.3f}".format, colours, zero=True)
    charts = [
        figure("PSNR on Y, dB", "bars do not start at 0", legend(_KINDS) + scores),
        figure("Least-squares weights", f"fitted on {found['fitted_on']}", shares),
        figure("Correlation of the errors", "1: the same errors", heatmap(experts, found["correlation"])),
    ]
    if found["loss_without"]:
        loss = bar_chart(found["loss_without"], "{:.4f}".format, colours, zero=True)
        charts.append(figure("Lost by leaving one out", "dB", loss))
    return f'<p class="verdict">{escape(found["sentence"])}</p><div class="charts wide">{"".join(charts)}</div>'
