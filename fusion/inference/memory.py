"""A device and one small tile run on it -> the tile size that fits, and what a tile costs in bytes and seconds."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from imaging.tiling import smallest_feathered_tile

if TYPE_CHECKING:
    from collections.abc import Callable

PROBE = 64  # side of the tile that is run to measure, in LR pixels
_LARGEST = {"cpu": 256}  # larger tiles are no faster there and cost memory
_LARGEST_ELSEWHERE = 512  # where the free memory would allow larger tiles still
_SHARE = 0.5  # of the free memory that a tile may take
_LEAST_BYTES = 16_384  # per LR pixel: below this the allocator's own rounding is what was measured
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class TileCost:
    """What one LR pixel costs in a tile; bytes is None where the system does not report it."""

    seconds_per_pixel: float
    bytes_per_pixel: float | None


def measure(run: Callable[[int], object], device: torch.device, side: int = PROBE) -> TileCost:
    """Run one tile of `side` (after a tiny one, which pays for start-up) and watch clock and memory."""
    run(16)
    used = _reset_peak(device)
    began = time.perf_counter()
    run(side)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - began
    peak = _peak(device)
    taken = None if used is None or peak is None else max(peak - used, 0) / side**2
    return TileCost(seconds / side**2, None if taken is None else max(taken, _LEAST_BYTES))


def auto_tile(cost: TileCost, device: torch.device, margin: int, multiple: int) -> int:
    """The largest tile of which half the free memory is enough, within sensible bounds."""
    largest = _LARGEST.get(device.type, _LARGEST_ELSEWHERE)
    free = free_bytes(device)
    if free is not None and cost.bytes_per_pixel is not None:
        largest = min(largest, int((_SHARE * free / cost.bytes_per_pixel) ** 0.5))
    return max(smallest_feathered_tile(margin, multiple), largest // multiple * multiple)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be had on the device; None where the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = [value for value in (_available(), _left_in_group()) if value is not None]
    return min(known) if known else None


def _available() -> int | None:
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _left_in_group() -> int | None:
    """What the control group (a container's limit) leaves."""
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        limit = (group / "memory.max").read_text().strip()
        return None if limit == "max" else int(limit) - int((group / "memory.current").read_text())
    return None


def _reset_peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        _CLEAR.write_text("5")  # resets VmHWM, see proc(5): else the peak is that of loading the models
    return _status("VmRSS")


def _peak(device: torch.device) -> int | None:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int | None:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
