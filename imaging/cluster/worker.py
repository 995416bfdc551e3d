"""What a worker is, and the process of a Ray cluster that holds one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

Facts = TypeVar("Facts", covariant=True)
Work = TypeVar("Work", contravariant=True)
Answer = TypeVar("Answer", covariant=True)


class Worker(Protocol[Facts, Work, Answer]):
    """What an actor holds. Both may be called from several threads; a Refusal that they raise ends the run."""

    def open(self) -> Facts:
        """Load what takes long; say what all workers of a run must agree on."""
        ...

    def make(self, work: Work) -> Answer:
        """Do one task."""
        ...


class WorkerProcess:
    """A worker in a process of its own. Refusals are returned, not raised: Ray would wrap them."""

    def __init__(self, make_worker: Callable[[], Worker[Any, Any, Any]], folder: str) -> None:
        self._make_worker, self._folder = make_worker, folder

    def open(self) -> Any:
        """Go to the folder of the command, make the worker, open it."""
        try:
            os.chdir(self._folder)  # relative paths mean here what they mean where the command was given
        except OSError as error:
            cure = "run the command in a folder that every node has under the same name"
            return Refusal(f"is not there on {os.uname().nodename} ({error.strerror})", where=self._folder, cure=cure)
        try:
            self._worker = self._make_worker()
            return self._worker.open()
        except Refusal as refusal:
            return refusal

    def make(self, work: Any) -> Any:
        """One task's answer."""
        try:
            return self._worker.make(work)
        except Refusal as refusal:
            return refusal
