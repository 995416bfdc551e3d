"""Inputs and three stages -> the stages overlapped: the next inputs are read and the last results written meanwhile."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Input = TypeVar("Input")
Loaded = TypeVar("Loaded")
Result = TypeVar("Result")


def overlapped(
    inputs: Iterable[Input],
    read: Callable[[Input], Loaded],
    compute: Callable[[Loaded], Result],
    write: Callable[[Result], None],
    *,
    depth: int = 2,
) -> None:
    """Run read | compute | write, `compute` on the caller's thread; order is kept, the first error ends all.

    At most `depth` inputs are read ahead and `depth` results wait to be written, so memory stays bounded.
    """
    waiting = iter(inputs)
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        ahead: deque[Future[Loaded]] = deque(reader.submit(read, item) for item in islice(waiting, depth))
        behind: deque[Future[None]] = deque()
        try:
            while ahead:
                loaded = ahead.popleft().result()
                ahead.extend(reader.submit(read, item) for item in islice(waiting, 1))
                behind.append(writer.submit(write, compute(loaded)))
                if len(behind) > depth:
                    behind.popleft().result()
            while behind:
                behind.popleft().result()
        except BaseException:
            for future in (*ahead, *behind):
                future.cancel()
            raise
