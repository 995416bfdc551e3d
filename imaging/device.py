"""A device's name, or none -> the torch device to run on, how networks share the CPU, whether memory ran out there."""

from __future__ import annotations

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal, TypeVar

import torch

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

log = logging.getLogger(__name__)

AUTO = "auto"
Precision = Literal["fp32", "bf16", "fp16"]
# What torch's CPU allocator writes into a plain RuntimeError; it has no class of its own for it.
_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")


def best_device() -> str:
    """CUDA where there is one, else the CPU. Under torchrun each process takes the GPU of its own LOCAL_RANK."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{rank}"


def choose_device(name: str) -> str:
    """A device option as given; `auto` is the best device."""
    return best_device() if name == AUTO else name


def find_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:1`, `mps` -> the device, if this machine has it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)  # a name can be valid while nothing can be allocated there
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0][:100]
        raise Refusal(f"is not usable here ({first})", where=f"device {name}", cure="use --device cpu") from None
    return device


def warn_of_slow_bf16(device: torch.device, precision: str, where: str) -> None:
    """A processor without instructions for bf16 computes it many times slower than fp32; torch itself is silent."""
    if precision == "bf16" and device.type == "cpu" and _processor_has_bf16() is False:
        log.warning("%s: this processor has no instructions for bf16, which is then many times slower than fp32", where)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether it is a processor with instructions for bf16. On GPUs nobody has measured it here: those stay at fp32."""
    return device.type == "cpu" and _processor_has_bf16() is True


def _processor_has_bf16() -> bool | None:
    """None where torch cannot tell."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16")) if known.get("architecture") == "x86_64" else None


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and others raise a class of their own, the CPU a RuntimeError, Python a MemoryError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _CPU_ALLOCATOR)


class SideBySide:
    """As many calls at once as there are `workers`; what took longest the last time begins first.

    A small network leaves threads idle between its layers; two networks, each on half of the threads, fill them.
    """

    def __init__(self, workers: int) -> None:
        self._workers = min(workers, torch.get_num_threads())
        self._pool: ThreadPoolExecutor | None = None
        self._seconds: dict[str, float] = {}

    def run(self, calls: Mapping[str, Callable[[], T]]) -> dict[str, T]:
        """All of them, in their own order. The first error is raised once every call has ended."""
        if min(self._workers, len(calls)) < 2:
            return {name: call() for name, call in calls.items()}
        pool = self._pool = self._pool or _start(self._workers)
        order = sorted(calls, key=lambda name: -self._seconds.get(name, 0.0))
        running = {name: pool.submit(self._timed, name, calls[name]) for name in order}
        for one in running.values():
            one.exception()
        return {name: running[name].result() for name in calls}

    def _timed(self, name: str, call: Callable[[], T]) -> T:
        began = time.perf_counter()
        result = call()
        self._seconds[name] = time.perf_counter() - began
        return result


def _start(workers: int) -> ThreadPoolExecutor:
    """A pool whose threads are all started: torch keeps the number of threads for each thread that asked for it."""
    threads = torch.get_num_threads()
    started = threading.Barrier(workers + 1)

    def take_share() -> None:
        torch.get_num_threads()  # a thread that has never asked would take all of them at its first operation
        torch.set_num_threads(max(1, threads // workers))
        started.wait()

    pool = ThreadPoolExecutor(workers, "side-by-side")
    for _ in range(workers):
        pool.submit(take_share)
    started.wait()
    torch.set_num_threads(threads)  # for this thread and those that begin later
    return pool
