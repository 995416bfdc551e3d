"""Jobs from several visitors -> done one at a time, in the order they came; each can be watched and given up."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "stopped", "refused"]


class Stopped(Exception):  # noqa: N818 - not an error: its visitor gave the job up
    """The job shall go no further."""


@dataclass
class Ticket:
    """One job: `work` is called with the ticket, leaves what it has to tell in `news`, and asks `check` often."""

    owner: str
    work: Callable[[Ticket], None]
    news: Any = None
    state: State = "waiting"
    refusal: Refusal | None = None
    finished: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """Give it up: at once while it waits, else at its next `check`."""
        self._stop.set()

    @property
    def is_given_up(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def check(self) -> None:
        """Called by the work between its steps."""
        if self._stop.is_set():
            raise Stopped


class JobQueue:
    """One worker thread and a line before it. Visitors only watch: one who leaves holds nobody up."""

    def __init__(self, places: int = 8) -> None:
        self._places = places
        self._line: list[Ticket] = []
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._work, name="studio desk", daemon=True)
        self._thread.start()

    def submit(self, owner: str, work: Callable[[Ticket], None]) -> Ticket:
        """Join the line; refused when it is full or the owner stands in it already."""
        with self._changed:
            if any(ticket.owner == owner for ticket in self._line):
                raise Refusal("a job of yours is not finished yet", where="studio", cure="wait for it, or cancel it")
            if len(self._line) > self._places:
                raise Refusal(f"{len(self._line)} jobs are waiting already", where="studio", cure="try again later")
            ticket = Ticket(owner, work)
            self._line.append(ticket)
            self._changed.notify_all()
        return ticket

    def ahead(self, ticket: Ticket) -> int:
        """How many jobs come before this one; 0 when it runs or is over."""
        with self._changed:
            return self._line.index(ticket) if ticket in self._line else 0

    def stop(self, owner: str) -> None:
        """Give up what this visitor has in the line."""
        with self._changed:
            for ticket in self._line:
                if ticket.owner == owner:
                    ticket.stop()
            # Those that only wait leave the line at once.
            for ticket in [one for one in self._line if one.is_given_up and one.state == "waiting"]:
                self._leave(ticket, "stopped")

    def close(self) -> None:
        """End the thread; what runs is given up."""
        with self._changed:
            self._open = False
            for ticket in self._line:
                ticket.stop()
            self._changed.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while (ticket := self._next()) is not None:
            state: State = "done"
            try:
                ticket.check()
                ticket.work(ticket)
            except Stopped:
                state = "stopped"
            except Refusal as refusal:
                ticket.refusal, state = refusal, "refused"
            except Exception as error:
                log.exception("a job broke")
                cure = "see the console that the studio runs in"
                ticket.refusal, state = (
                    Refusal(f"broke ({type(error).__name__})", where="this job", cure=cure),
                    "refused",
                )
            with self._changed:
                self._leave(ticket, state)

    def _next(self) -> Ticket | None:
        with self._changed:
            while self._open and not self._line:
                self._changed.wait()
            if not self._line:
                return None
            self._line[0].state = "running"
            return self._line[0]

    def _leave(self, ticket: Ticket, state: State) -> None:
        self._line.remove(ticket)
        ticket.state = state
        ticket.finished.set()
