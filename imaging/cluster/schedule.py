"""Work units and workers that come and go -> which unit each worker does next, and which units are given up."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

Work = TypeVar("Work")


@dataclass(frozen=True)
class WorkUnit(Generic[Work]):
    """One piece of work. Tasks of one `source` read the same files, which a worker keeps from one to the next."""

    name: str
    work: Work
    size: float
    source: str


class Schedule(Generic[Work]):
    """Largest first, so that no worker begins the largest unit when the others are done; `depth` at a time each.

    What a lost worker held is done again, each unit alone on its worker: so the one that kills workers is told from
    those that were only beside it, and only that one is given up after `retries`.
    """

    def __init__(self, units: Iterable[WorkUnit[Work]], *, depth: int, retries: int) -> None:
        by_source: dict[str, list[WorkUnit[Work]]] = defaultdict(list)
        for unit in units:
            by_source[unit.source].append(unit)
        # Sorts are stable: equal sizes stay in the order given.
        largest_first = sorted(by_source.items(), key=lambda pair: -max(unit.size for unit in pair[1]))
        self._pending = {source: deque(sorted(found, key=lambda one: -one.size)) for source, found in largest_first}
        self._again: deque[WorkUnit[Work]] = deque()
        self._held: dict[int, dict[str, WorkUnit[Work]]] = defaultdict(dict)
        self._source: dict[int, str] = {}
        self._losses: dict[str, int] = defaultdict(int)
        self._depth, self._retries = depth, retries

    @property
    def unfinished(self) -> bool:
        """Whether anything waits or is under way."""
        return bool(self._pending or self._again or any(self._held.values()))

    def next_for(self, worker: int) -> WorkUnit[Work] | None:
        """The unit that this worker should begin now, or None: it has enough, or nothing is left."""
        held = self._held[worker]
        if len(held) >= self._depth or any(self._losses[name] for name in held):
            return None
        if self._again:
            # Alone: not until what the worker holds is done.
            unit = None if held else self._again.popleft()
        else:
            unit = self._next_pending(worker)
        if unit is not None:
            held[unit.name] = unit
        return unit

    def finish(self, worker: int, unit: WorkUnit[Work]) -> None:
        """Its answer has come."""
        del self._held[worker][unit.name]

    def lose(self, worker: int) -> list[WorkUnit[Work]]:
        """The worker is gone: what it held waits again; the units given up are returned."""
        self._source.pop(worker, None)
        given_up: list[WorkUnit[Work]] = []
        for unit in self._held.pop(worker, {}).values():
            self._losses[unit.name] += 1
            if self._losses[unit.name] > self._retries:
                given_up.append(unit)
            else:
                self._again.append(unit)
        return given_up

    def _next_pending(self, worker: int) -> WorkUnit[Work] | None:
        if not self._pending:
            return None
        source = self._source.get(worker)
        if source not in self._pending:
            taken = set(self._source.values())
            # A source that nobody works on; where each has its worker already, the one with the largest unit.
            source = next((one for one in self._pending if one not in taken), next(iter(self._pending)))
            self._source[worker] = source
        waiting = self._pending[source]
        unit = waiting.popleft()
        if not waiting:
            del self._pending[source]
        return unit
