"""What extraction costs beyond the experts' forwards: the same images and networks with and without the cache."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.cache.networks import make_networks, write_photographs
from cache_tools.format.codec import decode_image
from cache_tools.write.extract import extract
from cache_tools.write.load import load_source
from cache_tools.write.pairs import find_sources
from cache_tools.write.recipe import ExtractSettings
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

_LR_SIZE = 64


def measure_overhead(work: Path, images: int, rounds: int) -> dict[str, Any]:
    """Alternate bare forwards and extraction, so that other load on the machine affects both alike."""
    folder = work / "overhead"
    write_photographs(folder, _LR_SIZE, images)
    networks = make_networks()
    sources, _ = find_sources(folder / "hr", None)
    inputs_BCHW = [decode_image(load_source(source).lr_CHW)[None] for source in sources]
    for network in networks:  # warm up: allocations and kernel choice of the first run belong to neither side
        network.run(inputs_BCHW[0])
    bare: list[Overhead] = []
    whole: list[Overhead] = []
    for number in range(rounds):
        begin = Overhead.now()
        for lr_BCHW in inputs_BCHW:
            for network in networks:
                network.run(lr_BCHW)
        bare.append(Overhead.since(begin))
        begin = Overhead.now()
        report = extract(ExtractSettings(out=folder / f"cache{number}", hr=folder / "hr"), networks)
        whole.append(Overhead.since(begin))
        if len(report.made) != images:  # the time would be of another number of images
            raise Refusal(
                f"only {len(report.made)} of {images} images were extracted", where=folder, cure="see the log"
            )
    return {
        "images": images,
        "lr_size": f"{_LR_SIZE}x{_LR_SIZE}",
        "bare": [asdict(cost) for cost in bare],
        "extract": [asdict(cost) for cost in whole],
        "overhead_percent": {
            kind: _percent([getattr(cost, kind) for cost in whole], [getattr(cost, kind) for cost in bare])
            for kind in ("wall", "cpu")
        },
    }


@dataclass(frozen=True)
class Overhead:
    """Seconds on the clock, and seconds that this process's threads had a core; other load stretches only the first."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Overhead:
        """Both clocks now."""
        return cls(time.perf_counter(), time.process_time())

    @classmethod
    def since(cls, begin: Overhead) -> Overhead:
        """Seconds on both since `begin`."""
        end = cls.now()
        return cls(round(end.wall - begin.wall, 2), round(end.cpu - begin.cpu, 2))


def _percent(whole: list[float], bare: list[float]) -> float:
    """How much more the whole takes, by the sums: rounds alternate, so slow drifts fall on both."""
    return round(100 * (sum(whole) / sum(bare) - 1), 2)
