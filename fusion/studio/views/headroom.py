"""A cache -> what `python -m fusion analyze` finds in it, as charts; run apart, so that it can be ended at any time."""

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
from fusion.studio.views.charts import bars, figure, heat, keyline
from imaging.paths import ROOT
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from fusion.studio.jobs.job_queue import Ticket

_EVERY_S = 0.2
_KINDS = ("experts", "oracles", "blends")
_EXPERT, _ORACLE, _BLEND = range(3)  # their colours


@dataclass
class HeadroomNews:
    """How long it has taken, and in the end what was found."""

    seconds: float = 0.0
    found: dict[str, Any] | None = None


def find_headroom(cache: Path, ticket: Ticket) -> None:
    """The work of a ticket: the command's own JSON."""
    news = ticket.news = HeadroomNews()
    began = time.perf_counter()
    command = [sys.executable, "-m", "fusion", "analyze", str(cache), "--json"]
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=complaints, stdin=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                ticket.check()
                news.seconds = time.perf_counter() - began
                time.sleep(_EVERY_S)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            complaints.seek(0)
            last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
            what = " ".join(last).removeprefix("refused: ").replace(f"{cache.parent}/", "")
            raise Refusal(what or "failed", where="analysis", cure="`python -m fusion analyze` tells more")
        said.seek(0)
        news.found = json.loads(said.read())


def headroom_page(found: dict[str, Any]) -> str:
    """Who is how good, what blends and oracles reach, who errs with whom."""
    experts: list[str] = found["experts"]
    psnr = {name: score["psnr_y"] for name, score in found["scores"].items()}
    marked = dict.fromkeys(psnr, _BLEND) | dict.fromkeys(experts, _EXPERT) | dict.fromkeys(ORACLES, _ORACLE)
    weights = dict(zip(experts, found["weights"][LEAST_SQUARES], strict=True))
    charts = [
        figure("PSNR on Y, dB", "bars do not begin at 0", keyline(_KINDS) + bars(psnr, "{:.3f}".format, marked, False)),
        figure(
            "Least-squares weights", f"fitted on {found['fitted_on']}", bars(weights, "{:.3f}".format, marked, True)
        ),
        figure("Correlation of the errors", "1: they always err together", heat(experts, found["correlation"])),
    ]
    if found["loss_without"]:
        loss = bars(found["loss_without"], "{:.4f}".format, marked, True)
        charts.append(figure("Lost by leaving one out", "dB", loss))
    return f'<p class="verdict">{escape(found["sentence"])}</p><div class="charts wide">{"".join(charts)}</div>'
