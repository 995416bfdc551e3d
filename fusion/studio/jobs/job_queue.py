"""Jobs from several visitors -> done one at a time, in the order they came; each can be watched and cancelled."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

State = Literal["waiting", "running", "done", "cancelled", "refused"]


class JobCancelled(Exception):  # noqa: N818 - not an error: its visitor pressed Cancel
    """The job shall go no further."""


@dataclass
class QueuedJob:
    """One job: `work` is called with the job, reports in `status`, and calls `check` often."""

    owner: str
    work: Callable[[QueuedJob], None]
    status: object = None  # of whatever type the kind of job reports in; None until it runs
    state: State = "waiting"
    refusal: Refusal | None = None
    finished: threading.Event = field(default_factory=threading.Event)
    _cancel: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """A running job ends at its next `check`; taking a waiting one out of the queue is the queue's business."""
        self._cancel.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancel.is_set()

    def check(self) -> None:
        """Called by the work between its steps."""
        # A thread cannot be ended from outside, so the work asks; a network's call in progress is always completed.
        if self._cancel.is_set():
            raise JobCancelled


class JobQueue:
    """One worker thread, as two jobs would share one device and its memory. It runs on when a visitor leaves."""

    def __init__(self, capacity: int = 8) -> None:
        self._capacity = capacity  # jobs that may wait beside the one that runs
        self._jobs: list[QueuedJob] = []  # the running one first
        self._changed = threading.Condition()
        self._open = True
        # A daemon, so that a process that fails before `close` ends nevertheless.
        self._thread = threading.Thread(target=self._run_jobs, name="studio job queue", daemon=True)
        self._thread.start()

    def submit(self, owner: str, work: Callable[[QueuedJob], None]) -> QueuedJob:
        """Add a job; refused when the queue is full or the owner has a job in it already."""
        with self._changed:
            if any(job.owner == owner for job in self._jobs):
                raise Refusal("a job of yours is not finished yet", where="studio", cure="wait for it, or cancel it")
            if len(self._jobs) > self._capacity:
                raise Refusal(f"{len(self._jobs)} jobs are waiting already", where="studio", cure="try again later")
            job = QueuedJob(owner, work)
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    def jobs_before(self, job: QueuedJob) -> int:
        """How many jobs come before this one; 0 when it runs or is over."""
        with self._changed:
            return self._jobs.index(job) if job in self._jobs else 0

    def cancel(self, owner: str) -> None:
        """Cancel what this visitor has in the queue."""
        with self._changed:
            for job in self._jobs:
                if job.owner == owner:
                    job.cancel()
            # Waiting jobs leave now: their visitor should not have to wait for the one that runs.
            for job in [one for one in self._jobs if one.is_cancelled and one.state == "waiting"]:
                self._remove(job, "cancelled")

    def close(self) -> None:
        """End the thread; every job is cancelled."""
        with self._changed:
            self._open = False
            for job in self._jobs:
                job.cancel()
            self._changed.notify_all()
        self._thread.join()

    def _run_jobs(self) -> None:
        while (job := self._next()) is not None:
            state: State = "done"
            try:
                job.check()
                job.work(job)
            except JobCancelled:
                state = "cancelled"
            except Refusal as refusal:
                job.refusal, state = refusal, "refused"
            except Exception as error:  # whatever one job breaks on, the thread has to serve the next one
                log.exception("a job failed")
                cure = "see the console that the studio runs in"
                job.refusal = Refusal(f"failed ({type(error).__name__})", where="this job", cure=cure)
                state = "refused"
            with self._changed:
                self._remove(job, state)

    def _next(self) -> QueuedJob | None:
        with self._changed:
            while self._open and not self._jobs:
                self._changed.wait()
            if not self._jobs:
                return None
            self._jobs[0].state = "running"
            return self._jobs[0]

    def _remove(self, job: QueuedJob, state: State) -> None:
        self._jobs.remove(job)
        job.state = state
        job.finished.set()  # last: whoever wakes on it reads the state
