"""`python -m fusion bench-refine MODEL CACHE... --out FOLDER`: the native refiner on benchmarks, at every strength.

Each cache holds a benchmark's images, run through the model's experts (as for `judge`): so the fused images need no
expert. Axes: B batch (1), C colour, H and W.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from cache_tools.format.location import name_of, parse_location
from cache_tools.read.reader import CacheReader
from fusion.evaluation.curve import Curve, draw
from fusion.network.network import load_model
from fusion.refinement.guard import measure as guard
from fusion.refinement.open import open_refiner
from fusion.refinement.refine import blend, repaint
from imaging.atomic import write_text
from imaging.command import DONE, CommandParser, output_folder
from imaging.metrics import psnr, ssim
from imaging.metrics.niqe import niqe
from imaging.metrics.perceptual import lpips_distance
from imaging.quantize import quantize_u8
from imaging.refusal import Refusal
from imaging.resize import downscale, resize_bicubic
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    from torch import Tensor

    from fusion.refinement.open import AnyRefiner

BICUBIC, TRUTH = "bicubic", "truth"
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SEEDS = 8  # of which the mean is taken
_AROUND, _FLAT = 9, 1.2 / 255  # a pixel lies flat where the truth around it spreads by less than 1.2 grey levels
_OFF = 2  # pixels that are cut off above and left
_LEAST_FLAT = 500  # pixels, for an image to count
_CUTS, _DRAWS, _MULTIPLE = ((0, 0), (1, 2), (2, 1), (3, 3)), 4, 8  # down and right; seeds; sides are multiples of it


def main(arguments: Sequence[str]) -> int:
    """Measure, write scores, tables and curves."""
    parser = CommandParser(prog="python -m fusion bench-refine", description=__doc__)
    parser.add_argument("model", type=Path, help="a fusion model file or folder")
    parser.add_argument("cache", type=parse_location, nargs="+", help="caches of benchmark images with HR")
    parser.add_argument("--refine-model", metavar="FILE", help="weights of the native refiner; default: the shipped")
    parser.add_argument("--out", type=output_folder, required=True, metavar="FOLDER")
    parser.add_argument("--most", type=int, metavar="N", help="images of each cache; default: all")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="images on which seeds are compared")
    words = parser.parse_args(arguments)
    refiner = open_refiner("native", words.refine_model, None, torch.device("cpu"))
    document: dict[str, Any] = {"refiner": dict(refiner.identity), "sets": {}}
    for cache in words.cache:
        name = name_of(cache)
        rows, seeds = _measure(refiner, list(items(words.model, cache, words.most)), name, words.seeds)
        document["sets"][name] = {"rows": rows, "seeds": seeds}
        curve = Curve({s: rows[f"{s:g}"] for s in STRENGTHS}, "lpips", [], [])
        write_text(words.out / f"{name}.svg", draw(curve, "psnr_y"))
        write_text(words.out / f"{name}.md", "\n".join(_table(rows)) + "\n")
    write_text(words.out / "scores.json", json.dumps(document, indent=2) + "\n")
    return DONE


def items(
    model_file: Path, cache: Path | str, most: int | None = None, only: Container[str] | None = None
) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """(name, LR, fused image, truth) of each image, (C, H, W) float32."""
    model = load_model(model_file).eval()
    experts = list(model.settings.names)
    reader = CacheReader(cache, experts=experts, features=model.settings.reads_features)
    model.settings.check_weights(reader.recipe.weights(experts))
    if not reader.has_hr:
        raise Refusal("has no HR images to measure against", where=cache, cure="extract it with HR images")
    for entry in reader.entries[:most]:
        if only is not None and entry.source not in only:
            continue
        batch = reader.read(entry.id)
        assert batch.hr_BCHW is not None
        with torch.no_grad():
            fused_BCHW = model(batch.lr_BCHW, batch.sr_BECHW, batch.feats, batch.experts).image_BCHW
        yield entry.source, batch.lr_BCHW[0], fused_BCHW[0], batch.hr_BCHW[0]


def _measure(
    refiner: AnyRefiner, images: list[tuple[str, Tensor, Tensor, Tensor]], name: str, seeds: int
) -> tuple[dict[str, dict[str, float]], dict[str, float]]:
    """Mean scores of each contender; and what seeds do to the first images."""
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    drawn: dict[str, list[float]] = defaultdict(list)
    for index, (_, lr_CHW, fused_CHW, truth_CHW) in enumerate(tqdm(images, desc=name, unit="image", disable=None)):
        begun = time.process_time()
        painted_CHW = repaint(refiner, fused_CHW, "wavelet", 0, lr_CHW=lr_CHW)
        seconds = time.process_time() - begun
        contenders = {f"{s:g}": blend(fused_CHW, painted_CHW, s) for s in STRENGTHS}
        contenders[BICUBIC] = resize_bicubic(lr_CHW[None], scale=4)[0]
        for contender, image_CHW in contenders.items():
            row = scores[contender]
            for key, value in _scores(image_CHW, truth_CHW).items():
                row[key].append(value)
            row["lr_rms"].append(guard(image_CHW, fused_CHW, lr_CHW)["lr_rms"])
            grain = _grain(image_CHW - fused_CHW, truth_CHW)
            row["flat"] += [] if grain is None or contender == BICUBIC else [grain]
            row["seconds"].append(seconds if contender not in (BICUBIC, "0") else 0.0)
        scores[TRUTH]["niqe"].append(float(niqe(truth_CHW[None])))
        if index < seeds:
            found = _seeds(refiner, lr_CHW, fused_CHW, truth_CHW) | _grid(refiner, fused_CHW)
            for key, value in found.items():
                drawn[key].append(value)
    rows = {one: {key: _mean(values) for key, values in row.items() if values} for one, row in scores.items()}
    for one, row in rows.items():
        if one != TRUTH:
            row["lr_rms_most"] = max(scores[one]["lr_rms"])
    return rows, {key: _mean(values) for key, values in drawn.items()}


def _scores(image_CHW: Tensor, truth_CHW: Tensor) -> dict[str, float]:
    image_BCHW, truth_BCHW = image_CHW[None].clamp(0, 1), truth_CHW[None]
    return {
        "psnr_y": float(psnr(image_BCHW, truth_BCHW)),
        "ssim_y": float(ssim(image_BCHW, truth_BCHW)),
        "lpips": float(lpips_distance(image_BCHW, truth_BCHW)),
        # AlexNet's first layer steps by four pixels: a lattice of that step may please it on that grid only.
        "lpips_off": float(lpips_distance(image_BCHW[..., _OFF:, _OFF:], truth_BCHW[..., _OFF:, _OFF:])),
        "niqe": float(niqe(image_BCHW)),
    }


def _grain(change_CHW: Tensor, truth_CHW: Tensor) -> float | None:
    """Grey levels rms that were added where the truth is flat; None where it hardly is."""
    grey_11HW = truth_CHW.mean(0)[None, None]
    mean, square = (F.avg_pool2d(one, _AROUND, 1, _AROUND // 2) for one in (grey_11HW, grey_11HW**2))
    flat_HW = ((square - mean**2).clamp_min(0).sqrt() < _FLAT)[0, 0]
    if int(flat_HW.sum()) < _LEAST_FLAT:
        return None
    return _rms(change_CHW[:, flat_HW])


def _seeds(refiner: AnyRefiner, lr_CHW: Tensor, fused_CHW: Tensor, truth_CHW: Tensor) -> dict[str, float]:
    drawn = [repaint(refiner, fused_CHW, "wavelet", seed, lr_CHW=lr_CHW) for seed in range(SEEDS)]
    mean_CHW = torch.stack(drawn).mean(0)
    found = {"change": _rms(drawn[0] - fused_CHW), "two_seeds": _rms(drawn[0] - drawn[1])}
    found["mean_change"] = _rms(mean_CHW - fused_CHW)
    for name, image_CHW in (("fused", fused_CHW), ("one", drawn[0]), ("mean", mean_CHW)):
        both = quantize_u8(image_CHW[None].clamp(0, 1)).float() / 255, truth_CHW[None]
        found[f"psnr_y_{name}"], found[f"lpips_{name}"] = float(psnr(*both)), float(lpips_distance(*both))
    return found


def _grid(refiner: AnyRefiner, fused_CHW: Tensor) -> dict[str, float]:
    """The image cut at four places of the grid of LR pixels, four seeds each: what a change consists of."""
    side = [size // _MULTIPLE * _MULTIPLE - _MULTIPLE for size in fused_CHW.shape[-2:]]
    cuts: list[Tensor] = []
    for down, right in _CUTS:
        cut_CHW = fused_CHW[:, down : down + side[0], right : right + side[1]]
        lr_CHW = downscale(cut_CHW[None])[0]
        drawn = (repaint(refiner, cut_CHW, "wavelet", seed, lr_CHW=lr_CHW) for seed in range(_DRAWS))
        changes = torch.stack([one - cut_CHW for one in drawn])
        cuts.append(changes[..., SCALE - down : side[0] - down, SCALE - right : side[1] - right])
    return parts_of_change(torch.stack(cuts))


def parts_of_change(changes_NSCHW: Tensor) -> dict[str, float]:
    """N cuts of one image, laid on each other, S seeds each -> grey levels rms of the change, and of what all have in
    common, of what goes with the grid of LR pixels (a lattice), of what goes with the seed. Their squares add up."""
    cuts, seeds = changes_NSCHW.shape[:2]
    means_NCHW = changes_NSCHW.mean(1)
    seed = changes_NSCHW.var(1).mean()
    # A mean over few seeds keeps a part of what they differ by, and one over few cuts of what those do.
    grid = means_NCHW.var(0).mean() - seed / seeds
    common = means_NCHW.mean(0).square().mean() - (grid + seed / seeds) / cuts
    parts = {"cut_change": changes_NSCHW.square().mean(), "by_grid": grid, "by_seed": seed, "common": common}
    return {name: float(part.clamp_min(0).sqrt()) * 255 for name, part in parts.items()}


def _table(rows: dict[str, dict[str, float]]) -> list[str]:
    fused = rows["0"]
    lines = [
        "| | Y-PSNR | Y-SSIM | LPIPS | against fused | off the grid | NIQE "
        "| LR missed by, mean (most) | grain where flat | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (BICUBIC, *(f"{s:g}" for s in STRENGTHS)):
        row = rows[name]
        gain = f"{100 * (row['lpips'] / fused['lpips'] - 1):+.1f} %, {row['psnr_y'] - fused['psnr_y']:+.2f} dB"
        off = f"{row['lpips_off']:.4f}, {100 * (row['lpips_off'] / fused['lpips_off'] - 1):+.1f} %"
        flat = f"{row['flat']:.2f}" if "flat" in row else ""
        title = {"0": "fused (strength 0)", BICUBIC: BICUBIC}.get(name, f"strength {name}")
        lines.append(
            f"| {title} | {row['psnr_y']:.2f} | {row['ssim_y']:.4f} | {row['lpips']:.4f} | {gain} | {off} "
            f"| {row['niqe']:.2f} | {row['lr_rms']:.2f} ({row['lr_rms_most']:.2f}) | {flat} | {row['seconds']:.2f} |"
        )
    return [*lines, f"| truth | | | | | | {rows[TRUTH]['niqe']:.2f} | | | |"]


def _rms(change: Tensor) -> float:
    return float(change.square().mean().sqrt()) * 255


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
