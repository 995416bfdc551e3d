"""`python -m fusion show-refine MODEL CROP... --out FILE.png`: rows of crops, bicubic, fused, refined twice, truth.

A crop is `CACHE:IMAGE:LEFT,TOP[:TITLE]`, in pixels of the truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.inference.refinement import items
from fusion.refinement.open import open_refiner
from fusion.refinement.refine import blend, repaint
from imaging.atomic import atomic_path
from imaging.command import DONE, CommandParser, output_file
from imaging.quantize import quantize_u8
from imaging.refusal import Refusal
from imaging.resize import resize_bicubic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_SIDE, _ENLARGED, _GAP, _TITLE = 112, 2, 4, 16


def main(arguments: Sequence[str]) -> int:
    """Cut, refine, lay out."""
    parser = CommandParser(prog="python -m fusion show-refine", description=__doc__)
    parser.add_argument("model", type=Path, help="a fusion model file or folder")
    parser.add_argument("crop", nargs="+", help="CACHE:IMAGE:LEFT,TOP[:TITLE]")
    parser.add_argument("--refine-model", metavar="FILE", help="weights of the native refiner; default: the shipped")
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE.png")
    words = parser.parse_args(arguments)
    refiner = open_refiner("native", words.refine_model, None, torch.device("cpu"))
    rows: list[tuple[str, list[Tensor]]] = []
    for crop in words.crop:
        cache, image, place, *title = crop.split(":")
        left, top = (int(word) for word in place.split(","))
        known = {name: (lr, fused, truth) for name, lr, fused, truth in items(words.model, Path(cache), only={image})}
        if image not in known:
            raise Refusal(f"holds no image '{image}'", where=cache, cure="name one as the cache's `info` lists it")
        lr_CHW, fused_CHW, truth_CHW = known[image]
        bicubic_CHW = resize_bicubic(lr_CHW[None], scale=4)[0]
        painted = [repaint(refiner, fused_CHW, "wavelet", seed, lr_CHW=lr_CHW) for seed in (0, 1)]
        shown = [bicubic_CHW, fused_CHW, blend(fused_CHW, painted[0], 0.5), *painted, truth_CHW]
        rows.append((title[0] if title else image, [one[:, top : top + _SIDE, left : left + _SIDE] for one in shown]))
    with atomic_path(words.out) as temporary:
        _laid_out(rows).save(temporary, format="PNG", optimize=True)
    return DONE


def _laid_out(rows: list[tuple[str, list[Tensor]]]) -> Image.Image:
    names = ("bicubic", "fused", "strength 0.5", "strength 1", "strength 1, seed 1", "truth")
    side = _SIDE * _ENLARGED + _GAP
    page = Image.new("RGB", (side * len(names), (side + _TITLE) * len(rows)), "white")
    pen = ImageDraw.Draw(page)
    for row, (title, crops) in enumerate(rows):
        top = row * (side + _TITLE)
        for column, (name, crop_CHW) in enumerate(zip(names, crops, strict=True)):
            pixels = quantize_u8(crop_CHW.clamp(0, 1)).permute(1, 2, 0).numpy()
            large = np.repeat(np.repeat(pixels, _ENLARGED, axis=0), _ENLARGED, axis=1)
            page.paste(Image.fromarray(large), (column * side, top + _TITLE))
            pen.text((column * side + 2, top + 2), f"{title}: {name}" if column == 0 else name, fill="black")
    return page
