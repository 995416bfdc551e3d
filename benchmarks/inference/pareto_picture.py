"""Measured points -> one self-contained SVG: PSNR over CPU seconds, the front as a line of steps."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from imaging.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BELOW = 760, 460, 64, 120, 24, 56
_LETTER = 6.4  # mean width of a letter of 12 pixels
_COLOURS = {"expert": "#6b7080", "preset": "#1f6f78", "budget": "#c2793d"}


class Measured(Settings):
    """What came of a way: CPU seconds of a mean image without start-up, mean Y-PSNR; of which files and weights."""

    name: str
    kind: str
    fingerprint: str
    seconds: float
    psnr: float


def front(points: Sequence[Measured]) -> list[Measured]:
    """Those that no other is both faster and better than, from fast to slow."""
    best: list[Measured] = []
    for one in sorted(points, key=lambda point: (point.seconds, -point.psnr)):
        if not best or one.psnr > best[-1].psnr:
            best.append(one)
    return best


def draw(points: Sequence[Measured], best: Sequence[Measured], title: str) -> str:
    """The SVG: CPU seconds to the right on a logarithmic axis, PSNR upwards, the front as a line of steps."""
    seconds, psnrs = [one.seconds for one in points], [one.psnr for one in points]
    low, high = math.log(min(seconds) / 1.2), math.log(max(seconds) * 1.2)
    least, most = min(psnrs) - 0.05, max(psnrs) + 0.05
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BELOW

    def x_of(value: float) -> float:
        return _LEFT + (right - _LEFT) * (math.log(value) - low) / (high - low)

    def y_of(value: float) -> float:
        return bottom - (bottom - _TOP) * (value - least) / (most - least)

    steps = "".join(
        f"{'H' if index else 'M'}{x_of(one.seconds):.1f}{'V' if index else ' '}{y_of(one.psnr):.1f}"
        for index, one in enumerate(best)
    )
    places = [(x_of(one.seconds), y_of(one.psnr)) for one in points]
    labels = _label_places(places, [one.name for one in points])
    dots = "".join(
        f'<g fill="{_COLOURS[one.kind]}"><circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"/><text x="{left:.1f}" '
        f'y="{base:.1f}" stroke="#fbfaf7" stroke-width="3" paint-order="stroke">{escape(one.name)}</text></g>'
        for one, (x, y), (left, base) in zip(points, places, labels, strict=True)
    )
    ticks = "".join(
        f'<path d="M{x_of(value):.1f} {bottom}v5" stroke="#6b7080"/>'
        f'<text x="{x_of(value):.1f}" y="{bottom + 18}" text-anchor="middle">{value:g}</text>'
        for value in _round_numbers(math.exp(low), math.exp(high))
    ) + "".join(
        f'<path d="M{_LEFT} {y_of(value):.1f}H{right}" stroke="#e4e2da"/>'
        f'<text x="{_LEFT - 6}" y="{y_of(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>'
        for value in np.arange(math.ceil(least * 5) / 5, most, 0.2)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" \
font-size="12" fill="#1c2230"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fbfaf7"/>{ticks}
<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#6b7080"/>
<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 14}" text-anchor="middle">CPU seconds an image, one thread</text>
<text x="18" y="{_HEIGHT / 2}" transform="rotate(-90 18 {_HEIGHT / 2})" text-anchor="middle">{escape(title)}</text>
<path d="{steps}" fill="none" stroke="#1f6f78" stroke-width="1.5" stroke-dasharray="4 3"/>{dots}</svg>
"""


def _label_places(places: Sequence[tuple[float, float]], names: Sequence[str]) -> list[tuple[float, float]]:
    """Where each name's text begins: beside its point, or the first place around it that nothing else takes."""
    boxes = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    found: list[tuple[float, float]] = []
    for (x, y), name in zip(places, names, strict=True):
        wide = _LETTER * len(name)
        beside = [(8, 4), (8, -9), (8, 18), (-8 - wide, 4), (-8 - wide, -9), (-8 - wide, 18), (-wide / 2, -14)]
        tries = [(x + right, y + down) for right, down in (*beside, (-wide / 2, 24), (8, 32), (8, -23))]
        crowded = [sum(_overlap(_box(one, wide), box) for box in boxes) for one in tries]
        left, base = tries[crowded.index(min(crowded))]
        boxes.append(_box((left, base), wide))
        found.append((left, base))
    return found


def _box(start: tuple[float, float], wide: float) -> tuple[float, float, float, float]:
    return start[0], start[1] - 10, start[0] + wide, start[1] + 3


def _overlap(one: tuple[float, float, float, float], two: tuple[float, float, float, float]) -> float:
    """The common area."""
    wide, high = min(one[2], two[2]) - max(one[0], two[0]), min(one[3], two[3]) - max(one[1], two[1])
    return max(0.0, wide) * max(0.0, high)


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... between the two."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for ten in tens for factor in (1, 2, 5) if low <= (value := factor * 10.0**ten) <= high]
