"""`python -m fusion fit-budget CACHE --seconds a=1,b=4 --out FILE`: cached images -> a budget head, and its curve.

Axes: N tiles, E experts, K steps, D measures, C colour, H and W.
"""

from __future__ import annotations

import argparse
import logging
import shlex
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from cache_tools.reader import CacheReader
from fusion.base_fit import BaseFit
from fusion.inference.budget import BudgetHead, choose_steps, measure_tile
from fusion.network.base import BaseBlend, BaseRecord
from imaging.atomic import write_text
from imaging.command import DONE, print_json
from imaging.metrics import psnr
from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import EllipsisType

    from torch import Tensor

    from cache_tools.reader import FusionBatch

log = logging.getLogger(__name__)

SCALE = 4
TILE = 32  # LR pixels a side of the tiles that are learned from
_RIDGE = 1e-3
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Tiles:
    """Measures (N, D), energies (N), mean squared errors after 0, 1, ... steps (N, K + 1), LR pixels (N)."""

    measures_ND: np.ndarray
    energy_N: np.ndarray
    errors_NK: np.ndarray
    pixels_N: np.ndarray


def main(arguments: Sequence[str]) -> int:
    """Fit, write; with --check also the curve on other images."""
    parser = argparse.ArgumentParser(prog="python -m fusion fit-budget", description=__doc__)
    add = parser.add_argument
    add("cache", type=Path, help="a cache with HR images, see `python -m cache_tools extract`")
    add("--seconds", required=True, metavar="a=1,b=4", help="each expert's cost per LR pixel, in any unit")
    add("--out", type=Path, required=True, metavar="FILE", help="the head, as JSON")
    add("--check", type=Path, nargs="*", default=[], metavar="CACHE", help="other caches to draw the curve on")
    add("--record", type=Path, metavar="FILE", help="write the curve as Markdown")
    add("--json", action="store_true", help="print one JSON document")
    words = parser.parse_args(arguments)
    seconds = _seconds(words.seconds)
    head, base = fit(words.cache, seconds)
    write_text(words.out, head.model_dump_json(indent=2) + "\n")
    curves = {folder.name: curve(head, base, folder) for folder in words.check}
    if words.record is not None:
        write_text(words.record, as_text(head, curves, list(arguments)))
    if words.json:
        print_json({"head": words.out, "order": head.order, "curves": curves})
    else:
        log.info("%s: experts in the order %s, from %d tiles", words.out, ", ".join(head.order), head.items)
    return DONE


def fit(cache: Path, seconds: Mapping[str, float]) -> tuple[BudgetHead, BaseRecord]:
    """The base of all subsets first, then the order of the experts, then the predictions."""
    reader = CacheReader(cache, experts=tuple(seconds), features=False)
    if not reader.has_hr:
        raise Refusal("has no HR images", where=cache, cure="extract it with --hr")
    fitted = BaseFit(reader.experts)
    for item in tqdm(reader, desc="base", total=len(reader), unit="item"):
        fitted.add(item.sr_BECHW[0], _truth(item)[0], item.lr_BCHW[0])
    base = fitted.record(str(cache))
    order = buying_order(base, seconds)
    tiles = gather(CacheReader(cache, experts=tuple(seconds), features=False), base, order)
    gains_NK = tiles.errors_NK[:, :-1] - tiles.errors_NK[:, 1:]
    head = BudgetHead(
        order=order,
        seconds=dict(seconds),
        weights_sha256={one.name: one.weights_sha256 for one in reader.recipe.experts if one.name in order},
        gains=tuple(_ridge(tiles, gains_NK[:, step]) for step in range(gains_NK.shape[1])),
        error=_ridge(tiles, tiles.errors_NK[:, -1]),
        tile=TILE,
        items=len(tiles.energy_N),
        source=str(cache),
    )
    return head, base


def buying_order(base: BaseRecord, seconds: Mapping[str, float]) -> tuple[str, ...]:
    """The cheapest expert, then always the one whose joining lowers the expected error most per second."""
    order = [min(seconds, key=lambda name: (seconds[name], name))]
    while len(order) < len(seconds):
        before = expected_error(base, order)
        rest = [name for name in seconds if name not in order]
        order.append(max(rest, key=lambda name: (before - expected_error(base, [*order, name])) / seconds[name]))
    return tuple(order)


def expected_error(base: BaseRecord, names: Sequence[str]) -> float:
    """Mean squared error of the subset's blend, from the stored products of errors."""
    gram = np.array(base.gram)
    bands = len(gram) // len(base.experts)
    weights_GE = base.solve(names)
    vector = np.zeros(len(gram))
    for group, row in zip(base.groups, weights_GE, strict=True):
        for name, weight in zip(names, row, strict=True):
            for band in group:
                vector[base.experts.index(name) * bands + band] = weight
    return float(vector @ gram @ vector)


def gather(reader: CacheReader, base: BaseRecord, order: Sequence[str]) -> Tiles:
    """Every tile of every item."""
    blend, rows = BaseBlend(base), list[tuple[np.ndarray, float, list[float], int]]()
    for item in tqdm(reader, desc="tiles", total=len(reader), unit="item"):
        stages = _stages(blend, item, order)
        for top, left, height, width in _cells(item):
            cell = (top, left, height, width)
            errors = [_error(stage, item, *cell) for stage in stages]
            rows.append((*_measured(item, order[0], *cell), errors, height * width))
    measures, energies, all_errors, pixels = zip(*rows, strict=True)
    return Tiles(np.array(measures), np.array(energies), np.array(all_errors), np.array(pixels, dtype=float))


def curve(head: BudgetHead, base: BaseRecord, cache: Path) -> list[dict[str, float]]:
    """Mean Y-PSNR over a cache's images for each share of the full cost, buying per image by prediction."""
    blend = BaseBlend(base)
    reader = CacheReader(cache, experts=tuple(head.seconds), features=False)
    scores = {share: list[tuple[float, float]]() for share in SHARES}
    for item in tqdm(reader, desc=cache.name, total=len(reader), unit="item"):
        stages, cells = _stages(blend, item, head.order), list(_cells(item))
        measures, energies = zip(*(_measured(item, head.order[0], *cell) for cell in cells), strict=True)
        gains_NK, _ = head.predict(np.array(measures), np.array(energies))
        pixels_N = np.array([height * width for _, _, height, width in cells], dtype=float)
        costs = [head.seconds[name] for name in head.order]
        for share in SHARES:
            allowed = share * sum(costs) * pixels_N.sum() - costs[0] * pixels_N.sum()
            bought_N, _ = choose_steps(gains_NK, pixels_N, costs[1:], allowed)
            if share == 1:
                bought_N[:] = len(costs) - 1
            image_BCHW = stages[0].clone()
            for (top, left, height, width), steps in zip(cells, bought_N, strict=True):
                part = _part(top, left, height, width)
                image_BCHW[part] = stages[steps][part]
            paid = (pixels_N * [sum(costs[: 1 + steps]) for steps in bought_N]).sum()
            spent = float(paid / (pixels_N.sum() * sum(costs)))
            scores[share].append((spent, float(psnr(image_BCHW, _truth(item)))))
    return [
        {"share": share, "spent": float(np.mean([s for s, _ in rows])), "psnr": float(np.mean([p for _, p in rows]))}
        for share, rows in scores.items()
    ]


def as_text(head: BudgetHead, curves: Mapping[str, Sequence[Mapping[str, float]]], words: list[str]) -> str:
    """The curves as Markdown."""
    costs = ", ".join(f"{name} {head.seconds[name]:g}" for name in head.order)
    lines = ["# Budgeted inference", "", f"Recorded {date.today().isoformat()} by", ""]
    lines += [f"    python -m fusion fit-budget {shlex.join(words)}", ""]
    lines += [f"Cost per LR pixel, in the order of buying: {costs}. Tiles of {head.tile} LR pixels.", ""]
    for name, rows in curves.items():
        full = rows[-1]["psnr"]
        lines += [f"## {name}", "", "| budget | spent | Y-PSNR | against all experts |", "|---|---|---|---|"]
        lines += [
            f"| {row['share']:.0%} | {row['spent']:.1%} | {row['psnr']:.3f} | {row['psnr'] - full:+.3f} |"
            for row in rows
        ]
        lines.append("")
    return "\n".join(lines)


def _stages(blend: BaseBlend, item: FusionBatch, order: Sequence[str]) -> list[Tensor]:
    """The blends of the first one, two, ... experts."""
    images = {name: item.sr_BECHW[:, index] for index, name in enumerate(item.experts)}
    with torch.no_grad():
        return [
            blend(item.lr_BCHW, torch.stack([images[name] for name in order[:count]], 1), order[:count])
            for count in range(1, len(order) + 1)
        ]


def _cells(item: FusionBatch) -> Iterator[tuple[int, int, int, int]]:
    """Tiles (top, left, height, width) in LR pixels; the last of a row or column is what remains."""
    height, width = item.lr_BCHW.shape[-2:]
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            yield top, left, min(TILE, height - top), min(TILE, width - left)


def _part(top: int, left: int, height: int, width: int, scale: int = SCALE) -> tuple[EllipsisType, slice, slice]:
    return ..., slice(scale * top, scale * (top + height)), slice(scale * left, scale * (left + width))


def _measured(item: FusionBatch, cheapest: str, *cell: int) -> tuple[np.ndarray, float]:
    sr_BCHW = item.sr_BECHW[:, item.experts.index(cheapest)]
    return measure_tile(item.lr_BCHW[_part(*cell, scale=1)], sr_BCHW[_part(*cell)])


def _error(stage_BCHW: Tensor, item: FusionBatch, *cell: int) -> float:
    return float((stage_BCHW[_part(*cell)] - _truth(item)[_part(*cell)]).square().mean())


def _truth(item: FusionBatch) -> Tensor:
    assert item.hr_BCHW is not None
    return item.hr_BCHW


def _ridge(tiles: Tiles, target_N: np.ndarray) -> tuple[float, ...]:
    """Weights of the measures for target / energy; tiles count by energy and size, as they do in the sum."""
    share_N = target_N / tiles.energy_N
    weight_N = tiles.energy_N * tiles.pixels_N
    weight_N = weight_N / weight_N.sum()
    x = tiles.measures_ND
    gram = (x * weight_N[:, None]).T @ x + _RIDGE * np.eye(x.shape[1])
    return tuple(float(value) for value in np.linalg.solve(gram, (x * weight_N[:, None]).T @ share_N))


def _seconds(words: str) -> dict[str, float]:
    """`a=1,b=4` -> costs."""
    found: dict[str, float] = {}
    for word in words.split(","):
        name, equals, value = word.partition("=")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals or found[name.strip()] <= 0:
            raise Refusal(f"'{word}' is not a cost", where="--seconds", cure="write name=number, separated by commas")
    if len(found) < 2:
        cure = nearest(words, found) if found else "name at least two experts"
        raise Refusal("names fewer than two experts", where="--seconds", cure=cure)
    return found
