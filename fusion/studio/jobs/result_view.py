"""One finished image -> what the page asks of it: pictures, coloured maps, the figures at a pixel, files to keep.

Axes: N pictures, M maps, E experts, C colour, H and W at four times LR size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from fusion.inference.report.provenance import record_path
from fusion.studio.views.colours import LADDER, coloured, expert_colours, painted
from imaging.scale import SCALE

if TYPE_CHECKING:
    from pathlib import Path

FUSED, BICUBIC, REFINED = "fused", "bicubic", "refined"
GATE, PHASE, DIFFICULTY, DISAGREEMENT, TRUST = "gate", "phase", "difficulty", "disagreement", "most trusted expert"
MEANING = {
    TRUST: "the expert of the greatest weight at each pixel",
    GATE: "the weight that this expert's pixels get; all experts' weights sum to 1",
    PHASE: "how much this phase of the network added or took away, in grey levels of 255",
    DIFFICULTY: "how hard the network finds the place, 0 to 1",
    DISAGREEMENT: "standard deviation over the experts, in grey levels of 255",
}
_IN_GREY_LEVELS = (PHASE, DISAGREEMENT)
_LEFT_OUT = 0.5  # per cent of the pixels at either end that a map's colours do not reach out to


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
    spans: dict[str, tuple[float, float]]  # of each map: where its colours begin and end
    seconds: dict[str, float]
    claim: dict[str, Any]
    seen: dict[str, Any]
    plan: dict[str, Any] | None
    guard: dict[str, float]  # of the refined picture, where there is one

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the output."""
        return self.pictures_NHWC.shape[1], self.pictures_NHWC.shape[2]

    @property
    def listed(self) -> tuple[str, ...]:
        """The maps that can be laid over the image; of experts with weights first the verdict."""
        names = tuple(name for name, _ in self.map_names)
        return ((TRUST,) if any(name.startswith(f"{GATE}/") for name in names) else ()) + names

    @property
    def files(self) -> tuple[Path, ...]:
        """The output and the record beside it, as infer.py writes them."""
        return self.output, record_path(self.output)

    def picture_png(self, index: int) -> bytes:
        """A picture as the browser takes it, lossless."""
        return _png(self.pictures_NHWC[index][..., ::-1])

    def map_png(self, index: int) -> bytes:
        """A map in colours."""
        name = self.listed[index]
        if name == TRUST:
            return _png(painted(self._gates(), expert_colours(len(self.experts)))[..., ::-1])
        return _png(coloured(self._values(name), *self.span(name))[..., ::-1])

    def span(self, name: str) -> tuple[float, float]:
        """The values at the two ends of a map's colours; maps of one kind share theirs, to be compared."""
        kind = name.partition("/")[0]
        spans = [self.spans[other] for other, _ in self.map_names if other.partition("/")[0] == kind]
        return min(low for low, _ in spans), max(high for _, high in spans)

    def reading(self, x: int, y: int) -> dict[str, Any]:
        """Every map's value and every picture's colour at a pixel of the output; outside it IndexError."""
        height, width = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise IndexError(f"({x}, {y}) is outside {width}x{height}")
        values = {name: self._unit(name) * float(self.maps_MHW[place, y, x]) for name, place in self.map_names}
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
        """All that the viewer needs to know, with addresses below `address`."""
        height, width = self.size
        return {
            "title": self.source,
            "width": width,
            "height": height,
            "scale": SCALE,
            "address": address,
            "pictures": [
                {"name": name, "url": f"{address}/picture/{index}"} for index, name in enumerate(self.picture_names)
            ],
            "maps": [self._map(name, f"{address}/map/{index}") for index, name in enumerate(self.listed)],
            "experts": [
                {"name": name, "colour": f"rgb{colour}"}
                for name, colour in zip(self.experts, expert_colours(len(self.experts)), strict=True)
            ],
            "ladder": LADDER,
            "files": [
                {"name": path.name, "url": f"{address}/file/{index}", "bytes": path.stat().st_size}
                for index, path in enumerate(self.files)
            ],
            "seconds": self.seconds,
            "total": self.seen["seconds"],
            "tiles": self.seen["tiles"],
            "events": self.seen["events"],
            "fusion": self.claim["fusion"],
            "plan": self.plan,
            "guard": self.guard,
            "claim": json.dumps(self.claim, indent=2),
        }

    def _map(self, name: str, url: str) -> dict[str, Any]:
        kind, _, rest = name.partition("/")
        labels = {GATE: f"weight of {rest}", PHASE: f"added by {rest}"}
        plain = {"name": name, "label": labels.get(kind, name), "meaning": MEANING[kind], "url": url}
        if name == TRUST:
            return plain
        low, high = self.span(name)
        return plain | {"low": self._unit(name) * low, "high": self._unit(name) * high}

    def _unit(self, name: str) -> float:
        return 255.0 if name.partition("/")[0] in _IN_GREY_LEVELS else 1.0

    def _values(self, name: str) -> np.ndarray:
        return self.maps_MHW[dict(self.map_names)[name]]

    def _gates(self) -> np.ndarray:
        return np.stack([self._values(f"{GATE}/{name}") for name in self.experts])


def span_of(values_HW: np.ndarray) -> tuple[float, float]:
    """Where a map's colours begin and end: nearly at its least and greatest value."""
    low, high = np.percentile(values_HW[::2, ::2].astype(np.float32), [_LEFT_OUT, 100 - _LEFT_OUT])
    return float(low), float(high)


def _of_kind(values: dict[str, float], kind: str) -> dict[str, float]:
    return {name.partition("/")[2]: value for name, value in values.items() if name.startswith(f"{kind}/")}


def _png(bgr_HWC: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", np.ascontiguousarray(bgr_HWC), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done
    return data.tobytes()
