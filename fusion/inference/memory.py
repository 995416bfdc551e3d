"""A requested tile size, or a device and one small tile run on it -> the tile size; what a tile costs."""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fusion.inference.ensemble import Place, run_tile
from imaging.tiling import effective_feathered_tile, smallest_feathered_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fusion.inference.ensemble import Ensemble
    from fusion.inference.jobs import Sized
    from fusion.inference.options import Options

log = logging.getLogger(__name__)

_SMALL = 128  # images up to this many LR pixels a side need no measured tile size
PROBE = 64  # side of the tile that is run to measure, in LR pixels
_LARGEST = {"cpu": 256}  # larger tiles are no faster there and cost memory
_LARGEST_ELSEWHERE = 512  # where the free memory would allow larger tiles still
_SHARE = 0.5  # of the free memory that a tile may take
_LEAST_BYTES = 16_384  # per LR pixel: below this the allocator's own rounding is what was measured
_TIMED_RUNS, _TIMED_SECONDS = 3, 10.0  # of a forecast: enough to see how much the machine varies, soon over
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class TileCost:
    """What one LR pixel costs in a tile; bytes is None where the system does not report it."""

    seconds_per_pixel: float
    bytes_per_pixel: float | None


def settle_tile(options: Options, ensemble: Ensemble, sized: Sequence[Sized]) -> tuple[int, TileCost | None]:
    """The tile size, measured where it is not given; the cost only where it was measured."""
    if options.tile is not None:
        return effective_tile(options.tile, ensemble), None
    return choose_tile(ensemble, max(max(one.height, one.width) for one in sized))


def effective_tile(tile: int, ensemble: Ensemble) -> int:
    """What a requested tile becomes; one that had to grow is told in a line."""
    effective = effective_feathered_tile(tile, ensemble.margin, ensemble.multiple)
    if effective != tile:
        log.warning(
            "tiles of %d LR pixels instead of %d: these models need %d pixels of surroundings on each side and tiles in"
            " steps of %d; for less memory give fewer --experts or --precision bf16",
            *(effective, tile, ensemble.margin, ensemble.multiple),
        )
    return effective


def choose_tile(ensemble: Ensemble, largest: int) -> tuple[int, TileCost | None]:
    """A tile size for images of up to `largest` LR pixels a side, by free memory where they are not small."""
    if not ensemble.can_probe or largest <= _SMALL:
        unknown = TileCost(0.0, None)
        return auto_tile(unknown, ensemble.device, ensemble.margin, ensemble.multiple), None
    cost = probe(ensemble)
    tile = auto_tile(cost, ensemble.device, ensemble.margin, ensemble.multiple)
    log.info("tiles of %d LR pixels, by free memory", tile)
    return tile, cost


def probe(ensemble: Ensemble) -> TileCost:
    """What a pixel of a small tile costs."""

    return measure(partial(run_noise, ensemble), ensemble.device)


def run_noise(ensemble: Ensemble, side: int) -> torch.Tensor:
    """One tile of noise through everything."""
    lr_BCHW = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(ensemble.device)
    return run_tile(ensemble, lr_BCHW, Place("probe", 0, 0, side, side))


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


def time_tiles(run: Callable[[int], object], device: torch.device, side: int) -> tuple[float, float]:
    """Seconds per LR pixel of a tile of that side, the least and the most of some runs.

    Of the very size that will run: a pixel costs another time in a small tile (padding, start of calls).
    """
    rates, began = list[float](), time.perf_counter()
    # Two at least, or there is no range; a large tile on a slow machine is not run a third time.
    while len(rates) < 2 or (len(rates) < _TIMED_RUNS and time.perf_counter() - began < _TIMED_SECONDS):
        start = time.perf_counter()
        run(side)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates.append((time.perf_counter() - start) / side**2)
    return min(rates), max(rates)


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
