"""Numbers -> charts as SVG and tables as HTML, in the page's own colours, light or dark."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from fusion.studio.colours import css_colour

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# In units of the SVG, which the page scales: bar charts, then line charts with room for ticks around them.
_WIDTH, _ROW, _LABEL, _VALUE = 480, 22, 205, 62
_HEIGHT, _LEFT, _BELOW, _ABOVE = 220, 58, 22, 8
_POINTS = 300  # of a line: more than its pixels cannot be seen, and every one makes the page heavier
_GREY = 7  # in the palette


@dataclass(frozen=True)
class Line:
    """One curve: its points in order, its colour's number, and what it is called."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int


def figure(title: str, note: str, body: str) -> str:
    """A chart in its frame."""
    small = f" <small>{escape(note)}</small>" if note else ""
    return f'<figure class="chart"><figcaption>{escape(title)}{small}</figcaption>{body}</figure>'


def bar_chart(
    values: Mapping[str, float], label: Callable[[float], str], colours: Mapping[str, int], zero: bool
) -> str:
    """A horizontal bar for each value. Without `zero` bars start a little below the smallest value."""
    least, most = min(values.values()), max(values.values())
    start = min(0.0, least) if zero else least - 0.08 * max(most - least, 1e-9)
    span = max((max(most, 0.0) if zero else most) - start, 1e-9)
    room = _WIDTH - _LABEL - _VALUE

    def place(value: float) -> float:
        return _LABEL + room * (value - start) / span

    origin = place(0.0) if zero else float(_LABEL)
    rows = []
    for index, (name, value) in enumerate(values.items()):
        y = index * _ROW
        left, right = sorted((origin, place(value)))
        rows.append(
            f'<text x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(_short(name))}</text>'
            f'<rect x="{left:.1f}" y="{y + 4}" width="{max(right - left, 1):.1f}" height="{_ROW - 8}" rx="2" '
            f'fill="{css_colour(colours.get(name, _GREY))}">'
            f"<title>{escape(name)}: {escape(label(value))}</title></rect>"
            f'<text x="{max(right, origin) + 6:.1f}" y="{y + 15}">{escape(label(value))}</text>'
        )
    if zero:
        rows.append(f'<path class="grid" d="M{origin:.1f} 0V{_ROW * len(values)}"/>')
    height = _ROW * len(values)
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img">{"".join(rows)}</svg>'


def line_chart(lines: Sequence[Line], smoothing: float = 0.0) -> str:
    """Values over steps; smoothed lines are drawn over their raw ones."""
    smooth = [smoothed(line.values, smoothing) for line in lines]
    everything = np.concatenate([np.asarray(values, float) for values in smooth])
    low, high = _range(everything[np.isfinite(everything)])
    first, last = min(line.steps[0] for line in lines), max(line.steps[-1] for line in lines)

    def x(step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 8) * (step - first) / max(last - first, 1)

    def y(value: float) -> float:
        return _ABOVE + (_HEIGHT - _ABOVE - _BELOW) * (1 - (value - low) / (high - low))

    ticks = np.linspace(low, high, 4)
    digits = _digits(ticks)
    parts = [
        f'<path class="grid" d="M{_LEFT} {y(tick):.1f}H{_WIDTH - 8}"/>'
        f'<text class="soft" x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.{digits}g}</text>'
        for tick in ticks
    ]
    ends = ((first, "start"), ((first + last) / 2, "middle"), (last, "end"))
    parts += [
        f'<text class="soft" x="{x(step):.1f}" y="{_HEIGHT - 6}" text-anchor="{where}">{step:,.0f}</text>'
        for step, where in ends
    ]
    clip = f'<svg x="0" y="0" width="{_WIDTH}" height="{_HEIGHT - _BELOW + 4}">'
    for line, values in zip(lines, smooth, strict=True):
        if smoothing:
            parts.append(f"{clip}{_path(line.steps, line.values, x, y, line.colour, 0.25)}</svg>")
        parts.append(f"{clip}{_path(line.steps, values, x, y, line.colour, 1.0, line.name)}</svg>")
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """An exponential moving average; `weight` is how much of the past stays at each step."""
    kept, total, result = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            kept, total = weight * kept + (1 - weight) * value, weight * total + (1 - weight)
        # Divided by the weights so far, as Adam corrects its bias: else the first values would be drawn to 0.
        result.append(kept / total if total else math.nan)
    return result


def legend(names: Sequence[str]) -> str:
    """Names and their colours, once for all charts below."""
    items = "".join(f'<li><i style="background:{css_colour(i)}"></i>{escape(one)}</li>' for i, one in enumerate(names))
    return f'<ul class="legend">{items}</ul>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A plain table, its last column for words; it scrolls by itself where the window is narrow."""
    top = "".join(f"<th>{escape(one)}</th>" for one in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(one))}</td>" for one in row) + "</tr>" for row in rows)
    return (
        f'<div class="tablewrap"><table class="plain"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def heatmap(names: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """A square table; the higher the value, the deeper the colour. The diagonal, always 1, is left plain."""
    flat = [value for i, row in enumerate(values) for j, value in enumerate(row) if i != j]
    low, high = (min(flat), max(flat)) if flat else (0.0, 1.0)

    def cell(value: float, own: bool) -> str:
        share = 0.0 if own else 70 * (value - low) / max(high - low, 1e-9)
        colour = f"color-mix(in srgb, var(--color-accent) {share:.0f}%, transparent)"
        return f'<td style="background:{colour}">{value:.3f}</td>'

    top = "".join(f"<th>{escape(one)}</th>" for one in names)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>" + "".join(cell(value, i == j) for j, value in enumerate(row)) + "</tr>"
        for i, (name, row) in enumerate(zip(names, values, strict=True))
    )
    return (
        f'<div class="tablewrap"><table class="plain"><thead><tr><th></th>{top}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _path(
    steps: Sequence[float],
    values: Sequence[float],
    x: Callable[[float], float],
    y: Callable[[float], float],
    colour: int,
    strength: float,
    title: str = "",
) -> str:
    every = max(1, len(steps) // _POINTS)
    kept = [(s, v) for s, v in list(zip(steps, values, strict=True))[::every] if math.isfinite(v)]
    points = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in kept)
    if len(kept) == 1:  # a line of one point is drawn by its round cap, and needs two
        points = f"{points} {points}"
    hover = f"<title>{escape(title)}: {values[-1]:.5g} at {steps[-1]:,.0f}</title>" if title else ""
    return (
        f'<polyline points="{points}" fill="none" stroke="{css_colour(colour)}" stroke-width="2" '
        f'stroke-linecap="round" stroke-linejoin="round" opacity="{strength}">{hover}</polyline>'
    )


def _range(values: np.ndarray) -> tuple[float, float]:
    """The vertical axis: of many points without the lowest and highest hundredth, which would flatten the rest."""
    if not len(values):
        return 0.0, 1.0
    cut = 1.0 if len(values) > 50 else 0.0
    low, high = np.percentile(values, [cut, 100 - cut])
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
    return float(low - margin), float(high + margin)


def _digits(ticks: np.ndarray) -> int:
    """Significant ones that tell each tick from the next, three at least: 27.65 and 27.70 are not both 27.7."""
    return max(3, 1 + math.ceil(math.log10(np.abs(ticks).max() / (ticks[1] - ticks[0]))))


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:29]}…"
