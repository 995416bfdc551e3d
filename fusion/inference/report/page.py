"""What the gallery collected -> one self-contained HTML page: pictures as data, no file or address beside it."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from imaging.names import counted

if TYPE_CHECKING:
    from collections.abc import Sequence


_QUALITY = 88
_MEANING = {
    "gate": "weight in effect on this expert's pixels",
    "difficulty": "how hard the model finds the place, 0 to 1",
    "disagreement": "standard deviation over the experts, in units of full white",
}


@dataclass
class ReportImage:
    """One image of the report: pictures uint8 (h, w, 3), maps float (h, w), figures."""

    item: str
    size: tuple[int, int]  # of the output
    before_HWC: np.ndarray
    pictures: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]
    scores: dict[str, tuple[float, float]]
    seen: dict[str, Any]
    manifest: dict[str, Any]
    plan: dict[str, Any] | None
    guard: dict[str, float] | None  # of the refined image, where there is one
    earlier: bool = False  # made by an earlier run: of the experts there is nothing left to show


def render(images: Sequence[ReportImage], run: dict[str, Any]) -> str:
    """The whole page."""
    folder = resources.files("fusion.inference.report")
    page = (folder / "report.html").read_text(encoding="utf-8")
    body = "\n".join(_section(one, number) for number, one in enumerate(images))
    made = {key: run[key] for key in ("experts", "fusion", "refine", "device", "tile") if key in run}
    parts = {
        "{{summary}}": _summary(run),
        "{{failures}}": _failures(run["failed"], run["events"]),
        "{{scores}}": _score_table(images),
        "{{images}}": body,
        "{{provenance}}": escape(json.dumps(made, indent=2)),
    }
    for mark, text in parts.items():
        page = page.replace(mark, text, 1)
    return page


def _summary(run: dict[str, Any]) -> str:
    experts, kind = ", ".join(run["experts"]), run["fusion"]["kind"]
    speed = run["output_megapixels"] / run["seconds"] if run["seconds"] else 0.0
    facts = {
        "images": f"{len(run['written'])} written, {len(run['skipped'])} skipped, {len(run['failed'])} failed",
        "experts": experts,
        "fusion": kind,
        "time": f"{run['seconds']:.1f} s, {speed:.2f} megapixels per second",
        "device": f"{run['device']}, " + (f"tiles of {run['tile']} LR pixels" if run["tile"] else "whole images"),
    }
    if "refine" in run:
        facts["refinement"] = f"{run['refine']['preset']}, in {run['refine']['precision']}"
    return "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())


def _failures(failed: dict[str, str], events: Sequence[str]) -> str:
    lines = [f"{path}: {reason}" for path, reason in failed.items()] + list(events)
    return "<ul class='failures'>" + "".join(f"<li>{escape(one)}</li>" for one in lines) + "</ul>" if lines else ""


def _score_table(images: Sequence[ReportImage]) -> str:
    """Mean PSNR and SSIM over the images that have a true image."""
    known = [one.scores for one in images if one.scores]
    if not known:
        return ""
    # Where one of the images compared is equal to the truth its PSNR is infinite: none of them counts.
    scored = [one for one in known if all(math.isfinite(decibels) for decibels, _ in one.values())] or known
    left_out = f"; {len(known) - len(scored)} left out, equal to the truth" if len(scored) < len(known) else ""
    # Of an image that an earlier run made there is only the image: its experts' scores are not known.
    counts = {name: sum(name in one for one in scored) for one in scored for name in one}
    means = {
        name if count == len(scored) else f"{name} (of {count})": tuple(
            np.mean([one[name] for one in scored if name in one], axis=0)
        )
        for name, count in counts.items()
    }
    return f"<h2>Scores, mean of {len(scored)}{left_out}</h2>" + _table(means)


def _table(scores: dict[str, tuple[float, ...]]) -> str:
    best = max(score[0] for score in scores.values())
    rows = "".join(
        f"<tr{' class=best' if score[0] == best else ''}><th>{escape(name)}</th>"
        f"<td>{score[0]:.3f} dB</td><td>{score[1]:.4f}</td></tr>"
        for name, score in scores.items()
    )
    return f"<table><tr><th></th><th>Y-PSNR</th><th>Y-SSIM</th></tr>{rows}</table>"


def _section(one: ReportImage, number: int) -> str:
    height, width = one.size
    fused, refined = one.pictures.get("fused"), one.pictures.get("refined")
    sliders = [] if fused is None else [_slider(one.before_HWC, fused, "bicubic", "fused")]
    if refined is not None:
        left, name = (one.before_HWC, "bicubic") if fused is None else (fused, "fused")
        sliders.append(_slider(left, refined, name, "refined"))
        sliders += [] if fused is None else [_strength(one.manifest)]
        sliders += [_guard(one.guard)] if one.guard else []
    experts = {name: picture for name, picture in one.pictures.items() if name not in ("fused", "refined")}
    facts = f"{width}&times;{height}, {counted(one.seen['tiles'], 'tile')}, {one.seen['seconds']:.2f} s"
    facts += ", made by an earlier run" if one.earlier else ""
    figures = [_figure(picture, name) for name, picture in experts.items()] if len(experts) > 1 or one.plan else []
    level = _level_weights(one.maps)
    maps = {name: values for name, values in one.maps.items() if not (level and name.startswith("gate/"))}
    figures += [_map(name, values, _scale(name, one.maps)) for name, values in maps.items()]
    plan = "" if one.plan is None else f"<details><summary>Budget plan</summary>{_plan(one.plan)}</details>"
    manifest = escape(json.dumps({"claim": one.manifest, **one.seen}, indent=2))
    return f"""<section id="image-{number}">
<h2>{escape(one.item)} <small>{facts}</small></h2>
{"".join(sliders)}
{_table(one.scores) if one.scores else ""}
<div class="grid">{"".join(figures)}</div>
{level}{plan}
<details><summary>Provenance</summary><pre>{manifest}</pre></details>
</section>"""


def _level_weights(maps: dict[str, np.ndarray]) -> str:
    """In words where every expert has one weight for the whole image, as in a base: such maps have nothing to show."""
    gates = {name.partition("/")[2]: values for name, values in maps.items() if name.startswith("gate/")}
    if not gates or any(float(np.ptp(values)) > 1e-4 for values in gates.values()):  # below what the figures show
        return ""
    weights = ", ".join(f"{escape(name)} {float(values.mean()):.3f}" for name, values in gates.items())
    return f"<p class='note'>Weight of each expert in the finest details, the same everywhere: {weights}.</p>"


def _slider(before_HWC: np.ndarray, after_HWC: np.ndarray, left: str, right: str) -> str:
    """Two panes in one frame."""
    height, width = after_HWC.shape[:2]
    return f"""<div class="slider" style="aspect-ratio:{width}/{height};max-width:{width}px">
<img src="{_jpeg(after_HWC)}" alt="{right}">
<img class="before" src="{_jpeg(before_HWC)}" alt="{left}">
<span class="tag left">{left}</span><span class="tag right">{right}</span>
<input type="range" min="0" max="100" value="50" step="0.1" aria-label="{left} and {right}">
</div>"""


def _strength(manifest: dict[str, Any]) -> str:
    """Below the pane: any strength up to that of the run, by laying the refined image over the fused one."""
    most = manifest.get("options", {}).get("refine", {}).get("strength", 1)
    return (
        f'<label class="strength">strength <input type="range" min="0" max="{most}" step="0.01" value="{most}">'
        f" <output>{most}</output></label>"
    )


def _guard(found: dict[str, float]) -> str:
    """What refinement changed, in grey levels."""
    drift, change = found["low_band_drift"], found["change_rms"]
    text = f"Refinement changed the image by {change:.2f} grey levels (rms), its coarse part by at most {drift:.3f}."
    if "lr_rms" in found:
        after, before = found["lr_rms"], found["lr_rms_before"]
        text += f" Scaled down again it is {after:.2f} grey levels (rms) from the input; before it was {before:.2f}."
    return f"<p class='note'>{text}</p>"


def _figure(picture_HWC: np.ndarray, caption: str) -> str:
    image, text = _jpeg(_small(picture_HWC)), escape(caption)
    return f'<figure><img src="{image}" alt="{text}"><figcaption>{text}</figcaption></figure>'


# Colours span at least these: over its own range alone, a map that hardly varies would look as if it varied most.
_SPANS = {"gate": (0.0, 1.0), "difficulty": (0.0, 1.0), "disagreement": (0.0, 0.05)}


def _scale(name: str, maps: dict[str, np.ndarray]) -> tuple[float, float]:
    """Maps of one kind share their colours, so that gates can be compared."""
    kind = name.partition("/")[0]
    alike = [values for other, values in maps.items() if other.partition("/")[0] == kind]
    low, high = _SPANS[kind]
    return min(low, *(float(values.min()) for values in alike)), max(high, *(float(values.max()) for values in alike))


def _map(name: str, values_HW: np.ndarray, scale: tuple[float, float]) -> str:
    """A map in false colours, its range in the caption."""
    low, high = scale
    levels = np.clip((values_HW - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    coloured = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    least, greatest = float(values_HW.min()), float(values_HW.max())
    caption = (
        f"{name}: {_MEANING[name.partition('/')[0]]}; {least:.3f} to {greatest:.3f}, colours {low:.3g} to {high:.3g}"
    )
    return _figure(coloured, caption)


def _plan(plan: dict[str, Any]) -> str:
    """Shares planned, and a picture in characters of how many experts each tile got."""
    planned = "".join(f"<li>{escape(name)}: {share:.0%} of the tiles</li>" for name, share in plan["share"].items())
    grid = "\n".join("".join(str(count) for count in row) for row in plan["experts_per_tile"])
    spent, loss = plan["spent"], plan["predicted_loss_db"]
    return (
        f"<p>{spent:.1%} of the full expert cost, predicted loss {loss:.3f} dB</p><ul>{planned}</ul>"
        f"<pre>experts per tile\n{grid}</pre>"
    )


def _small(picture_HWC: np.ndarray, longest: int = 600) -> np.ndarray:
    height, width = picture_HWC.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return picture_HWC
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(picture_HWC, size, interpolation=cv2.INTER_AREA)


def _jpeg(picture_HWC: np.ndarray) -> str:
    """A data address; JPEG, since the report is for looking and its size matters."""
    done, data = cv2.imencode(".jpg", picture_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
