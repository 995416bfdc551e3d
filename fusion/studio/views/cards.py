"""News of a job -> what the page says of it, as HTML."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from fusion.studio.uploads import sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion.inference.ensemble import Ensemble
    from fusion.studio.jobs.job_queue import Ticket
    from fusion.studio.jobs.progress import Stage
    from fusion.studio.jobs.work import News

_OVER = {"done": "Done", "stopped": "Cancelled", "refused": "Refused"}


def progress_card(ticket: Ticket, ahead: int) -> str:
    """Where a job stands: in the line, under way stage by stage, or over."""
    if ticket.state == "waiting":
        return card("Waiting", [f"<p>{ahead} {'job' if ahead == 1 else 'jobs'} before yours.</p>"])
    news: News | None = ticket.news
    if news is None:
        return card(_OVER.get(ticket.state, "Beginning"), _amiss(ticket, []))
    parts = _notes(news.remarks) + _amiss(ticket, news.amiss)
    if ticket.state != "running":
        count = len(news.finished)
        made = f"<p>{count} of {news.images} {'image' if news.images == 1 else 'images'} made.</p>"
        return card(_OVER[ticket.state], [made, *parts])
    title = f"Image {news.number} of {news.images}: {news.name}" if news.number else "Beginning"
    giving_up = ["<p>Cancelling after this step &hellip;</p>"] if ticket.is_given_up else []
    stages = [] if news.watch is None or not news.number else [steps(news.watch.stages)]
    return card(title, [*stages, f"<p>{escape(_doing(news))} &hellip;</p>", *giving_up, *parts])


def refused_card(text: str) -> str:
    """A job that did not even begin."""
    return card("Refused", _bad([text]))


def card(title: str, parts: Sequence[str]) -> str:
    """A box with a heading, read aloud when it changes."""
    return f'<div class="card" role="status"><h3>{escape(title)}</h3>{"".join(parts)}</div>'


def steps(stages: dict[str, Stage]) -> str:
    """A bar for every stage: calls done, seconds taken."""
    rows = "".join(
        f'<span>{escape(name)}</span><i><b style="width:{100 * one.done / max(one.expected, 1):.0f}%"></b></i>'
        f"<em>{one.done}/{one.expected}, {one.seconds:.1f} s</em>"
        for name, one in list(stages.items())
    )
    return f'<div class="steps">{rows}</div>'


def masthead(ensemble: Ensemble) -> str:
    """The page's title and what works here."""
    fusion = ensemble.identity["fusion"]
    verdict = f", verdict {fusion['verdict']}" if "verdict" in fusion else ""
    experts = ", ".join(ensemble.names)
    return (
        "<header class='masthead'><h1>Studio</h1>"
        f"<p>Four times larger by {escape(experts)}; joined by: {escape(fusion['kind'])}{escape(verdict)}; "
        f"on {escape(str(ensemble.device))}</p></header>"
    )


def welcome(ensemble: Ensemble) -> str:
    """What stands where the pictures will be."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(str(one.get('architecture', '')))}</td>"
        f"<td>{escape(str(one.get('weights_sha256', ''))[:12])}</td></tr>"
        for name, one in ensemble.identity["experts"].items()
    )
    return (
        "<div class='welcome'><h2>Drop an image to see what each expert makes of it</h2>"
        "<p>The fused image beside bicubic enlargement or any expert, behind a line that you can move; the weight that "
        "each expert has at every pixel, how hard the place is, where the experts disagree, and what each phase of the "
        "network adds. The file to keep is the very one that <code>infer.py</code> writes, with its provenance.</p>"
        "<div class='tablewrap'><table class='plain left'><thead><tr><th>expert</th><th>architecture</th>"
        f"<th>weights</th></tr></thead><tbody>{rows}</tbody></table></div></div>"
    )


def viewer(names: Sequence[str]) -> str:
    """The element that static/viewer.js brings to life."""
    return f'<fusion-viewer shown="{escape(" ".join(names))}"></fusion-viewer>'


def _doing(news: News) -> str:
    return news.doing if news.watch is None or not news.watch.now else f"{news.doing}: {news.watch.now}"


def _amiss(ticket: Ticket, sentences: Sequence[str]) -> list[str]:
    own = [] if ticket.refusal is None else [sentence(ticket.refusal)]
    return _bad([*own, *sentences])


def _bad(sentences: Sequence[str]) -> list[str]:
    return [f'<p class="bad">{escape(one)}</p>' for one in sentences]


def _notes(sentences: Sequence[str]) -> list[str]:
    return [f'<p class="note">{escape(one)}</p>' for one in sentences]
