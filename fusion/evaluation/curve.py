"""A folder of strengths (`0/`, `0.25/`, ... each a folder of results) and truths -> distortion against perception.

One row per strength, and a picture of the curve as one self-contained SVG. Perception is LPIPS or NTIRE's score where
one of them is asked for, else the texture gap: how far the energy of the finest detail is from the truth's, in dB.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from math import isfinite, log10
from typing import TYPE_CHECKING

from fusion.evaluation.folders import Evaluation, evaluate
from imaging.metrics import luma
from imaging.names import counted
from imaging.refusal import Refusal
from imaging.resize import crop_to_multiple, downscale, resize_bicubic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from imaging.metrics import Space

TEXTURE = "texture_gap"
# Measure: (the axis title, which end is better).
_AXES = {
    "lpips": ("LPIPS", "lower is better"),
    "ntire": ("NTIRE perceptual score", "higher is better"),
    TEXTURE: ("texture gap, dB", "lower is better"),
}
_WIDTH, _HEIGHT, _MARGIN = 640, 420, 70


@dataclass(frozen=True)
class Curve:
    """Mean scores by strength, ascending, which of them is perception, and what could not be scored.

    Images that are equal to their truth at some strength are `left_out` at all.
    """

    rows: dict[float, dict[str, float]]
    perception: str
    failures: list[str]
    left_out: list[str]


def trace(strengths: Path, hr: Path, *, space: Space, border: int, lpips: bool, ntire: bool) -> Curve:
    """Score each strength's folder."""
    found: dict[float, Evaluation] = {}
    for strength, folder in _folders(strengths).items():
        found[strength] = evaluate(
            folder, hr, space=space, border=border, lpips=lpips, ntire=ntire, extra={TEXTURE: texture_gap}
        )
    items = {frozenset(one.scores) for one in found.values()}
    if len(items) > 1:
        raise Refusal("the strengths hold different images", where=strengths, cure="make each from the same inputs")
    failures = [f"{strength:g}: {line}" for strength, one in found.items() for line in one.failures]
    perception = "lpips" if lpips else "ntire" if ntire else TEXTURE
    equal = sorted({item for one in found.values() for item in one.equal()})
    rows = {strength: one.without(equal).means() for strength, one in found.items()}
    return Curve(rows, perception, failures, equal)


def texture_gap(sr_BCHW: Tensor, hr_BCHW: Tensor) -> float:
    """|10 log10| of the ratio of energies above what an LR image can hold, of the luma; 0 is the truth's own."""
    ours, truth = (_fine_energy(one_BCHW) for one_BCHW in (sr_BCHW, hr_BCHW))
    return abs(10 * log10(max(ours, 1e-12) / max(truth, 1e-12)))


def table(curve: Curve) -> list[str]:
    """As text, one line per strength."""
    names = list(next(iter(curve.rows.values())))
    head = f"{'strength':<10}" + "".join(f"{name:>14}" for name in names)
    rows = [f"{s:<10g}" + "".join(f"{row[name]:>14.4f}" for name in names) for s, row in curve.rows.items()]
    note = f"left out: {counted(len(curve.left_out), 'image')} equal to the truth at some strength"
    return [head, *rows, *([note] if curve.left_out else [])]


def draw(curve: Curve, distortion: str) -> str:
    """The SVG: PSNR to the right, perception upwards as it is measured, each point with its strength."""
    across = [row[distortion] for row in curve.rows.values()]
    if not all(map(isfinite, across)):
        raise Refusal("a strength equals the truth", where="--curve", cure="give --sr results and --hr true images")
    upwards = [row[curve.perception] for row in curve.rows.values()]
    xs, ys = _placed(across, _MARGIN, _WIDTH - _MARGIN / 2), _placed(upwards, _HEIGHT - _MARGIN, _MARGIN / 2)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/><text x="{x + 7:.1f}" y="{y - 7:.1f}">{strength:g}</text>'
        for strength, x, y in zip(curve.rows, xs, ys, strict=True)
    )
    title, better = _AXES[curve.perception]
    bottom, middle = _HEIGHT - _MARGIN, _HEIGHT / 2
    ends = "".join(
        f'<text x="{x:.0f}" y="{bottom + 18}" text-anchor="{side}">{value:.2f}</text>'
        for value, x, side in ((min(across), _MARGIN, "start"), (max(across), _WIDTH - _MARGIN / 2, "end"))
    ) + "".join(
        f'<text x="{_MARGIN - 6}" y="{y:.0f}" text-anchor="end">{value:.3f}</text>'
        for value, y in ((min(upwards), bottom), (max(upwards), _MARGIN / 2))
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" \
font-size="12" fill="#1c2230"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fbfaf7"/>
<path d="M{_MARGIN} {_MARGIN / 2}V{bottom}H{_WIDTH - _MARGIN / 2}" fill="none" stroke="#6b7080"/>{ends}
<text x="{_WIDTH / 2}" y="{_HEIGHT - 20}" text-anchor="middle">{escape(distortion)}, dB (higher is better)</text>
<text x="18" y="{middle}" transform="rotate(-90 18 {middle})" text-anchor="middle">{escape(title)} ({better})</text>
<polyline points="{points}" fill="none" stroke="#1f6f78" stroke-width="2"/><g fill="#1f6f78">{dots}</g></svg>
"""


def _folders(strengths: Path) -> dict[float, Path]:
    folders = [path for path in strengths.iterdir() if path.is_dir()] if strengths.is_dir() else []
    found = sorted((number, path) for path in folders if (number := _number(path.name)) is not None)
    if len({number for number, _ in found}) < max(2, len(found)):
        cure = "make them by `infer.py ... --refine-strength S -o FOLDER/S`, for two different strengths or more"
        raise Refusal("holds no folders named by strengths (0, 0.25, ... 1)", where=strengths, cure=cure)
    return dict(found)


def _number(name: str) -> float | None:
    try:
        number = float(name)
    except ValueError:
        return None
    return number if 0 <= number <= 1 else None


def _fine_energy(rgb_BCHW: Tensor) -> float:
    luma_B1HW = crop_to_multiple(luma(rgb_BCHW), 4)
    coarse_B1HW = resize_bicubic(downscale(luma_B1HW, 4), size=(luma_B1HW.shape[-2], luma_B1HW.shape[-1]))
    return float((luma_B1HW - coarse_B1HW).square().mean())


def _placed(values: Sequence[float], first: float, last: float) -> list[float]:
    """Values -> places between two ends of an axis; all in the middle where they are one."""
    low, high = min(values), max(values)
    if high == low:
        return [(first + last) / 2] * len(values)
    return [first + (last - first) * (value - low) / (high - low) for value in values]
