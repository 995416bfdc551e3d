"""A job's status, a model, a list of results -> what the page shows of it, as HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from fusion.studio.jobs.upscaler import UpscaleStatus
from fusion.studio.uploads import user_message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion.inference.ensemble import Ensemble
    from fusion.studio.jobs.job_queue import QueuedJob
    from fusion.studio.jobs.progress import StageProgress

_OVER = {"done": "Done", "cancelled": "Cancelled", "refused": "Refused"}


def progress_card(job: QueuedJob, ahead: int) -> str:
    """Where a job stands: waiting, running stage by stage, or over."""
    if job.state == "waiting":
        return card("Waiting", [f"<p>{ahead} {'job' if ahead == 1 else 'jobs'} before yours.</p>"])
    status = job.status
    if not isinstance(status, UpscaleStatus):  # refused or cancelled before it began
        return card(_OVER.get(job.state, "Starting"), _failures(job, []))
    parts = _messages("note", status.warnings) + _failures(job, status.failures)
    if job.state != "running":
        count = len(status.finished)
        made = f"<p>{count} of {status.images} {'image' if status.images == 1 else 'images'} made.</p>"
        return card(_OVER[job.state], [made, *parts])
    title = f"Image {status.number} of {status.images}: {status.name}" if status.number else "Starting"
    cancelling = ["<p>Cancelling after this step &hellip;</p>"] if job.is_cancelled else []
    stages = [] if status.progress is None or not status.number else [stage_bars(status.progress.stages)]
    return card(title, [*stages, f"<p>{escape(_current_step(status))} &hellip;</p>", *cancelling, *parts])


def refused_card(text: str) -> str:
    """A job that was not accepted."""
    return card("Refused", _messages("bad", [text]))


def card(title: str, parts: Sequence[str]) -> str:
    """A box with a heading, read aloud when it changes."""
    return f'<div class="card" role="status"><h3>{escape(title)}</h3>{"".join(parts)}</div>'


def stage_bars(stages: dict[str, StageProgress]) -> str:
    """A bar for every stage: calls done, seconds taken."""
    rows = "".join(
        f'<span>{escape(name)}</span><i><b style="width:{100 * one.done / max(one.expected, 1):.0f}%"></b></i>'
        f"<em>{one.done}/{one.expected}, {one.seconds:.1f} s</em>"
        for name, one in list(stages.items())  # a copy: the worker's thread adds stages
    )
    return f'<div class="steps">{rows}</div>'


def page_header(ensemble: Ensemble) -> str:
    """The page's title, the model and the device."""
    fusion = ensemble.identity["fusion"]
    verdict = f", verdict {fusion['verdict']}" if "verdict" in fusion else ""
    experts = ", ".join(ensemble.names)
    return (
        "<header class='page-header'><h1>Studio</h1>"
        f"<p>4x upscaling by {escape(experts)}; combined by: {escape(fusion['kind'])}{escape(verdict)}; "
        f"on {escape(str(ensemble.device))}</p></header>"
    )


def welcome(ensemble: Ensemble) -> str:
    """What stands where the results will be."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(one.get('architecture', '')))}</td>"
        f"<td>{escape(str(one.get('weights_sha256', ''))[:12])}</td></tr>"
        for name, one in ensemble.identity["experts"].items()
    )
    return (
        "<div class='welcome'><h2>Drop an image to compare the experts on it</h2>"
        "<p>You will see the fused image beside bicubic interpolation or any expert, on both sides of a line that can "
        "be moved, and maps: the weight of each expert at every pixel, difficulty, disagreement of the experts, and "
        "what each phase of the network adds. The download is the very file that <code>infer.py</code> writes, with "
        "its manifest.</p>"
        "<div class='tablewrap'><table class='plain left'><thead><tr><th>expert</th><th>architecture</th>"
        f"<th>weights</th></tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def viewer(names: Sequence[str]) -> str:
    """The element that static/viewer.js defines."""
    return f'<fusion-viewer results="{escape(" ".join(names))}"></fusion-viewer>'


def _current_step(status: UpscaleStatus) -> str:
    current = status.progress.current if status.progress is not None else ""
    return f"{status.step}: {current}" if current else status.step


def _failures(job: QueuedJob, messages: Sequence[str]) -> list[str]:
    own = [] if job.refusal is None else [user_message(job.refusal)]
    return _messages("bad", [*own, *messages])


def _messages(kind: str, messages: Sequence[str]) -> list[str]:
    return [f'<p class="{kind}">{escape(one)}</p>' for one in messages]
