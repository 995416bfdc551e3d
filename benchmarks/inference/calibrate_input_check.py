"""`python -m fusion calibrate-look FOLDER ... --out FILE`: clean LR images -> how far damage stands off from them."""

from __future__ import annotations

import logging
import shlex
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from fusion.inference.input_check import A_SET, TROUBLES, central_luma, judge, measures
from imaging.atomic import write_text
from imaging.command import DONE, FAILURES_LISTED, CommandParser, output_file
from imaging.files import list_images, read_raster

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> int:
    """Measure, judge, write; exit 1 when a clean image would be warned about."""
    parser = CommandParser(prog="python -m fusion calibrate-look", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="clean LR images")
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE", help="a Markdown file")
    words = parser.parse_args(arguments)
    images = [read_raster(path)[0].levels_HWC for folder in words.folders for path in list_images(folder)]
    table = {name: _measured(images, damage) for name, damage in damages().items()}
    write_text(words.out, _as_text(table, len(images), list(arguments)))
    clean = sum(bool(judge([one])) for one in table["clean"])
    log.info("%s: %d of %d clean images would be warned about", words.out, clean, len(images))
    return FAILURES_LISTED if clean else DONE


def damages() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What is done to the images, by name."""
    rng = np.random.default_rng(0)
    made: dict[str, Callable[[np.ndarray], np.ndarray]] = {"clean": lambda image: image}
    for quality in (20, 40, 60, 80):
        made[f"JPEG {quality}"] = lambda image, q=quality: _jpeg(image, q)
    for sigma in (4, 8, 15, 25):
        made[f"noise {sigma}"] = lambda image, s=sigma: _rounded(image + rng.normal(0, s, image.shape))
    for sigma in (0.5, 0.8, 1.0, 2.0):
        made[f"blur {sigma}"] = lambda image, s=sigma: cv2.GaussianBlur(image, (0, 0), s)
    return made


def _measured(images: Sequence[np.ndarray], damage: Callable[[np.ndarray], np.ndarray]) -> list[dict[str, float]]:
    found: list[dict[str, float]] = []
    for image in tqdm(images, leave=False):
        damaged = damage(image)
        luma_HW = central_luma(damaged.reshape(*image.shape[:2], -1))
        if luma_HW is not None:
            found.append(measures(luma_HW))
    return found


def _as_text(table: dict[str, list[dict[str, float]]], count: int, words: list[str]) -> str:
    limits = ", ".join(f"{kind} {t.one:g} (median of a set: {t.typical:g})" for kind, t in TROUBLES.items())
    lines = [
        "# When inference warns that inputs are not clean downscales",
        "",
        f"Recorded {date.today().isoformat()} by",
        "",
        f"    python -m fusion calibrate-look {shlex.join(words)}",
        "",
        f"{count} clean LR images, and the same damaged. Limits in fusion/inference/input_check.py: {limits}.",
        "",
        f"| images | {' | '.join(f'{kind}: least, median, greatest' for kind in TROUBLES)} "
        f"| warned about, alone | sets of {A_SET} warned about |",
        f"|---|{'---|' * len(TROUBLES)}---|---|",
    ]
    for name, found in table.items():
        cells = []
        for kind in TROUBLES:
            values = [one[kind] for one in found]
            cells.append(f"{min(values):.2f}, {np.median(values):.2f}, {max(values):.2f}")
        alone = np.mean([bool(judge([one])) for one in found])
        rng = np.random.default_rng(0)
        sets = [[found[i] for i in rng.choice(len(found), A_SET, replace=False)] for _ in range(500)]
        together = np.mean([bool(judge(one)) for one in sets])
        lines.append(f"| {name} | {' | '.join(cells)} | {alone:.0%} | {together:.1%} |")
    return "\n".join(lines) + "\n"


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    done, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    decoded = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    assert decoded is not None
    return decoded.reshape(image.shape)[..., ::-1]


def _rounded(image: np.ndarray) -> np.ndarray:
    return np.clip(image, 0, 255).round().astype(np.uint8)
