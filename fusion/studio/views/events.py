"""What the handlers of all three tabs share: gradio's options for an event, whose job it is, and Cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr  # noqa: TC002 - gradio reads the annotations of what it calls

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion.studio.jobs.job_queue import JobQueue

# Private: events are the page's own, no public API. No limit: handlers only watch jobs, the job queue is the limit.
EVENT_OPTIONS: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
POLL_S = 0.25  # between two looks at a running job: often enough to seem live, each is a message to the browser


def owner_of(request: gr.Request) -> str:
    """One open page of one visitor."""
    return str(request.session_hash)


def cancel_handler(queue: JobQueue) -> Callable[[gr.Request], None]:
    """What the Cancel buttons, and closing the page, call."""

    def cancel(request: gr.Request) -> None:
        queue.cancel(owner_of(request))

    return cancel
