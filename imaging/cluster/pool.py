"""A kind of worker and units -> every unit's answer, from actors of a Ray cluster that are replaced when they die.

Ray is imported only when a pool is opened.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from imaging.cluster.connect import connect, import_ray
from imaging.cluster.schedule import Schedule, WorkUnit
from imaging.cluster.worker import WorkerProcess
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from imaging.cluster.options import ClusterOptions
    from imaging.cluster.worker import Worker

log = logging.getLogger(__name__)

Work = TypeVar("Work")
Answer = TypeVar("Answer")
Facts = TypeVar("Facts")

DEPTH = 3  # units under way in a worker: one is read, one is computed, one is written
_TICK = 1.0  # seconds between looks at the clock while nothing happens
_PATIENCE = 30.0  # seconds without any worker before it is said what is waited for


@dataclass(frozen=True)
class Done(Generic[Work, Answer]):
    """A unit and its answer; without one, why it was given up."""

    unit: WorkUnit[Work]
    answer: Answer | None
    lost: str = ""


class WorkerPool(Generic[Facts, Work, Answer]):
    """`pool.facts` is what all workers agree on, `pool.run` gives answers as they come."""

    def __init__(
        self, make_worker: Callable[[], Worker[Facts, Work, Answer]], options: ClusterOptions, depth: int = DEPTH
    ) -> None:
        self._ray = import_ray()
        self._make_worker, self._options, self._depth = make_worker, options, depth
        self._actors: dict[int, Any] = {}
        self._waiting: dict[Any, int] = {}  # the answer to `open` -> the worker that gives it
        self._ready: list[int] = []
        self._facts: list[Facts] = []
        self._started = self._failed_starts = 0
        self._stop = contextlib.ExitStack()

    def __enter__(self) -> WorkerPool[Facts, Work, Answer]:
        ray = self._ray
        # Ray prints what happens to its workers on stdout, which belongs to the command's own result.
        self._stop.enter_context(contextlib.redirect_stdout(sys.stderr))
        if not ray.is_initialized():
            connect(ray, self._options.address)
            self._stop.callback(ray.shutdown)
        self._stop.callback(self._kill_all)
        try:
            self._resources = self._resources_of_one()
            for _ in range(self._options.workers or self._as_many_as_fit()):
                self._start()
        except BaseException:
            self._stop.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.close()

    @property
    def facts(self) -> Facts:
        """What `Worker.open` said, of the first worker that is ready; waits for it."""
        patience = _Patience(self._resources)
        while not self._facts:
            ready, _ = self._ray.wait(list(self._waiting), timeout=_TICK)
            for reference in ready:
                self._take_opened(reference)
            patience.look(bool(self._facts))
        return self._facts[0]

    @property
    def workers(self) -> int:
        """How many are ready."""
        return len(self._ready)

    def run(self, units: Iterable[WorkUnit[Work]]) -> Iterator[Done[Work, Answer]]:
        """Answers as they come; a Refusal of a worker is raised here."""
        schedule = Schedule(units, depth=self._depth, retries=self._options.retries)
        under_way: dict[Any, tuple[int, WorkUnit[Work]]] = {}
        patience = _Patience(self._resources)
        while schedule.unfinished:
            for worker in self._ready:
                while (unit := schedule.next_for(worker)) is not None:
                    under_way[self._actors[worker].make.remote(unit.work)] = worker, unit
            ready, _ = self._ray.wait([*under_way, *self._waiting], timeout=_TICK)
            for reference in ready:
                if reference in self._waiting:
                    self._take_opened(reference)
                elif reference in under_way:  # not one of a worker that an earlier reference showed to be lost
                    worker, unit = under_way.pop(reference)
                    answer = self._get(reference)
                    if isinstance(answer, _Lost):
                        under_way = {one: held for one, held in under_way.items() if held[0] != worker}
                        self._replace(worker, answer)
                        for given_up in schedule.lose(worker):
                            times = self._options.retries + 1
                            yield Done(given_up, None, f"its worker died {times} times, last: {answer.reason}")
                    else:
                        schedule.finish(worker, unit)
                        yield Done(unit, answer)
            patience.look(bool(self._ready))

    def _take_opened(self, reference: Any) -> None:
        """A worker has opened: it must agree with the others; or it died on the way."""
        worker = self._waiting.pop(reference)
        facts = self._get(reference)
        if isinstance(facts, _Lost):
            self._failed_starts += 1
            if self._failed_starts > self._options.retries:
                cure = "see Ray's logs below /tmp/ray/session_latest; more memory or fewer --workers may help"
                raise Refusal(f"died while it opened the experts: {facts.reason}", where="worker", cure=cure)
            self._replace(worker, facts)
            return
        if self._facts and facts != self._facts[0]:
            cure = "give every node the same weights, code and versions"
            raise Refusal("a worker has other experts or settings than the first", where="cluster", cure=cure)
        self._failed_starts = 0
        self._facts.append(facts)
        self._ready.append(worker)

    def _start(self) -> None:
        self._started += 1
        cpus, gpus = self._resources
        # No restarts by Ray itself: what is done again and how often is decided here.
        options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0, "max_concurrency": self._depth}
        kind = self._ray.remote(WorkerProcess).options(scheduling_strategy="SPREAD", **options)
        actor = kind.remote(self._make_worker, str(Path.cwd()))
        self._actors[self._started] = actor
        self._waiting[actor.open.remote()] = self._started

    def _replace(self, worker: int, lost: _Lost) -> None:
        log.warning("worker %d is lost (%s); another one takes its place", worker, lost.reason)
        if worker in self._ready:
            self._ready.remove(worker)
        # It may be alive and only out of reach: its items would still be whole, but it holds a GPU.
        self._ray.kill(self._actors.pop(worker))
        self._start()

    def _kill_all(self) -> None:
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()

    def _get(self, reference: Any) -> Any:
        """The answer, or that its worker is gone; a Refusal is raised, and so is an error in the worker's code."""
        errors = self._ray.exceptions
        gone = (
            errors.RayActorError,  # died, or out of reach
            errors.OutOfMemoryError,
            errors.NodeDiedError,
            errors.WorkerCrashedError,
            errors.ObjectLostError,  # the answer went with its node
        )
        try:
            answer = self._ray.get(reference)
        except gone as error:
            return _Lost(_first_sentence(str(error)))
        if isinstance(answer, Refusal):
            raise answer
        return answer

    def _resources_of_one(self) -> tuple[int, float]:
        gpus = self._options.gpus
        if gpus is None:
            gpus = 1.0 if self._ray.cluster_resources().get("GPU", 0) else 0.0
        return self._options.cpus, gpus

    def _as_many_as_fit(self) -> int:
        there = self._ray.cluster_resources()
        cpus, gpus = self._resources
        fit = int(there.get("CPU", 0) // cpus)
        return max(1, min(fit, int(there.get("GPU", 0) / gpus)) if gpus else fit)


@dataclass(frozen=True)
class _Lost:
    """In place of an answer: the worker is gone."""

    reason: str


class _Patience:
    """Says what is waited for while there is no worker: an autoscaler may bring one, or nobody will."""

    def __init__(self, resources: tuple[int, float]) -> None:
        self._cpus, self._gpus = resources
        self._since = time.monotonic()

    def look(self, any_ready: bool) -> None:
        """Called at every tick."""
        if any_ready:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > _PATIENCE:
            what = "no worker is ready yet: they open the experts, or wait for nodes with %d free CPUs and %g free GPUs"
            log.warning(what, self._cpus, self._gpus)
            self._since = time.monotonic()


def _first_sentence(text: str) -> str:
    """Of Ray's messages, which go on for a page."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "no reason is known")[:200]
