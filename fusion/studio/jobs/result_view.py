"""One finished image -> what the page asks of it: pictures, coloured maps, the values at a pixel, files to download.

Axes: N pictures, M maps, E experts, C colour, H and W at four times LR size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from fusion.inference.report.provenance import record_path
from fusion.studio.colours import COLOUR_BAR, argmax_colours, expert_colours, viridis
from imaging.scale import SCALE

if TYPE_CHECKING:
    from pathlib import Path

FUSED, BICUBIC, REFINED = "fused", "bicubic", "refined"
GATE, PHASE, DIFFICULTY, DISAGREEMENT, TRUST = "gate", "phase", "difficulty", "disagreement", "most trusted expert"
MEANING = {
    TRUST: "the expert of the greatest weight at each pixel",
    GATE: "weight of this expert; the weights of all experts sum to 1",
    PHASE: "strength of what this phase of the network adds or takes away, in grey levels of 255",
    DIFFICULTY: "how difficult the network predicts the region to be, 0 to 1",
    DISAGREEMENT: "standard deviation over the experts, in grey levels of 255",
}
_IN_GREY_LEVELS = (PHASE, DISAGREEMENT)
# Per cent of the pixels at either end that lie beyond a map's colours: a few outliers would make the rest one colour.
_CLIPPED = 0.5


@dataclass(frozen=True, eq=False)
class ResultView:
    """Arrays (on disk) and facts of one image."""

    folder: Path
    output: Path
    source: str
    experts: tuple[str, ...]
    pictures_NHWC: np.ndarray
    picture_names: tuple[str, ...]
    maps_MHW: np.ndarray
    map_names: tuple[tuple[str, int], ...]  # with their places in maps_MHW
    value_ranges: dict[str, tuple[float, float]]  # of each map: the values at the two ends of its colours
    seconds: dict[str, float]
    manifest: dict[str, Any]
    seen: dict[str, Any]
    plan: dict[str, Any] | None
    guard: dict[str, float]  # of the refined picture, where there is one
    scale: int = SCALE

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        return self.pictures_NHWC.shape[1], self.pictures_NHWC.shape[2]

    @property
    def overlays(self) -> tuple[str, ...]:
        """The maps that can be laid over the image; where experts have weights, first who has the greatest."""
        names = tuple(name for name, _ in self.map_names)
        return ((TRUST,) if any(name.startswith(f"{GATE}/") for name in names) else ()) + names

    @property
    def files(self) -> tuple[Path, ...]:
        """The output and the record beside it, as infer.py writes them."""
        return self.output, record_path(self.output)

    def picture_png(self, index: int) -> bytes:
        """A picture as the browser takes it, lossless."""
        return _png(self.pictures_NHWC[index][..., ::-1])  # OpenCV writes BGR

    def map_png(self, index: int) -> bytes:
        """A map in colours."""
        name = self.overlays[index]
        if name == TRUST:
            return _png(argmax_colours(self._gates(), expert_colours(len(self.experts)))[..., ::-1])
        return _png(viridis(self._values(name), *self.value_range(name))[..., ::-1])

    def value_range(self, name: str) -> tuple[float, float]:
        """The values at the two ends of a map's colours; maps of one kind share theirs, to be compared."""
        kind = name.partition("/")[0]
        if kind == DIFFICULTY:  # over its own range alone, a map that hardly varies would look as if it varied most
            return 0.0, 1.0
        ranges = [self.value_ranges[other] for other, _ in self.map_names if other.partition("/")[0] == kind]
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def pixel_values(self, x: int, y: int) -> dict[str, Any]:
        """Every map's value and every picture's colour at a pixel of the output; outside it IndexError."""
        height, width = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise IndexError(f"({x}, {y}) is outside {width}x{height}")
        values = {
            name: self._display_factor(name) * float(self.maps_MHW[place, y, x]) for name, place in self.map_names
        }
        colours = {name: self.pictures_NHWC[i, y, x].tolist() for i, name in enumerate(self.picture_names)}
        return {
            "x": x,
            "y": y,
            "weights": _of_kind(values, GATE),
            "phases": _of_kind(values, PHASE),
            "others": {name: value for name, value in values.items() if "/" not in name},
            "colours": colours,
        }

    def describe(self, address: str) -> dict[str, Any]:
        """All that viewer.js needs to know, with addresses below `address`."""
        height, width = self.size
        return {
            "title": self.source,
            "width": width,
            "height": height,
            "scale": self.scale,
            "address": address,
            "pictures": [
                {"name": name, "url": f"{address}/picture/{index}"} for index, name in enumerate(self.picture_names)
            ],
            "maps": [self._map(name, f"{address}/map/{index}") for index, name in enumerate(self.overlays)],
            "experts": [
                {"name": name, "colour": f"rgb{colour}"}
                for name, colour in zip(self.experts, expert_colours(len(self.experts)), strict=True)
            ],
            "colour_bar": COLOUR_BAR,
            "files": [
                {"name": path.name, "url": f"{address}/file/{index}", "bytes": path.stat().st_size}
                for index, path in enumerate(self.files)
            ],
            "seconds": self.seconds,
            "total": self.seen["seconds"],
            "tiles": self.seen["tiles"],
            "events": self.seen["events"],
            "fusion": self.manifest["fusion"],
            "plan": self.plan,
            "guard": self.guard,
            "manifest": json.dumps(self.manifest, indent=2),
        }

    def _map(self, name: str, url: str) -> dict[str, Any]:
        kind, _, rest = name.partition("/")
        labels = {GATE: f"weight of {rest}", PHASE: f"added by {rest}"}
        plain = {"name": name, "label": labels.get(kind, name), "meaning": MEANING[kind], "url": url}
        if name == TRUST:
            return plain
        low, high = self.value_range(name)
        return plain | {"low": self._display_factor(name) * low, "high": self._display_factor(name) * high}

    def _display_factor(self, name: str) -> float:
        return 255.0 if name.partition("/")[0] in _IN_GREY_LEVELS else 1.0

    def _values(self, name: str) -> np.ndarray:
        return self.maps_MHW[dict(self.map_names)[name]]

    def _gates(self) -> np.ndarray:
        return np.stack([self._values(f"{GATE}/{name}") for name in self.experts])


def value_range_of(values_HW: np.ndarray) -> tuple[float, float]:
    """The values at the two ends of a map's colours: nearly its least and greatest."""
    # Every fourth pixel: a percentile needs no more, and maps are large.
    low, high = np.percentile(values_HW[::2, ::2].astype(np.float32), [_CLIPPED, 100 - _CLIPPED])
    return float(low), float(high)


def _of_kind(values: dict[str, float], kind: str) -> dict[str, float]:
    return {name.partition("/")[2]: value for name, value in values.items() if name.startswith(f"{kind}/")}


def _png(bgr_HWC: np.ndarray) -> bytes:
    # Fast rather than small: made anew for every request, and most browsers are on the same machine.
    done, data = cv2.imencode(".png", np.ascontiguousarray(bgr_HWC), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return data.tobytes()
