"""`python -m fusion fit-budget CACHE --seconds a=1,b=4 --out FILE`: cached images -> a budget head, and its curve.

Axes: X cells (P rows and Q columns of them in an image), N tiles, E experts, M choices of the menu, D measures.
"""

from __future__ import annotations

import argparse
import logging
import math
from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from cache_tools.reader import CacheReader
from fusion.base_fit import BaseFit
from fusion.inference.budget import CELL, BudgetHead, cell_sums, measure_cells
from fusion.inference.budget_curve import SCALE, as_text, curve, rows_of, said, truth_of
from fusion.network.back_projection import back_project
from fusion.network.base import WHOLE
from fusion.network.base_bands import BAND_NAMES, split_bands
from imaging.atomic import write_text
from imaging.command import DONE, print_json
from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cache_tools.reader import FusionBatch
    from fusion.network.base import BaseRecord

log = logging.getLogger(__name__)

SEVERAL = 5  # experts of which every selection is on the menu
ENOUGH = 1_500_000  # LR pixels to learn from: nearly six thousand cells for ten weights
_RIDGE = 1e-2


@dataclass(frozen=True)
class Cells:
    """Measures (X, D), energies (X), mean squared errors of each choice (X, M), LR pixels (X)."""

    measures_XD: np.ndarray
    energy_X: np.ndarray
    errors_XM: np.ndarray
    pixels_X: np.ndarray


def main(arguments: Sequence[str]) -> int:
    """Fit, write; with --check also the curve on other images."""
    parser = argparse.ArgumentParser(prog="python -m fusion fit-budget", description=__doc__)
    add = parser.add_argument
    add("cache", type=Path, help="a cache with HR images, see `python -m cache_tools extract`")
    add("--seconds", required=True, metavar="a=1,b=4", help="each expert's cost per LR pixel, in any unit")
    add("--out", type=Path, required=True, metavar="FILE", help="the head, as JSON")
    add("--check", type=Path, nargs="*", default=[], metavar="CACHE", help="other caches to draw the curve on")
    add("--tile", type=int, nargs="*", default=[0, 16], help="tiles of that curve, in LR pixels; 0: whole images")
    add("--record", type=Path, metavar="FILE", help="write the curve as Markdown")
    add("--json", action="store_true", help="print one JSON document")
    words = parser.parse_args(arguments)
    seconds = _seconds(words.seconds)
    head, base = fit(words.cache, seconds)
    write_text(words.out, head.model_dump_json(indent=2) + "\n")
    curves = {
        f"{folder.name}, {said(tile)}": curve(head, base, folder, tile) for folder in words.check for tile in words.tile
    }
    if words.record is not None:
        write_text(words.record, as_text(head, curves, list(arguments)))
    if words.json:
        print_json({"head": words.out, "menu": head.menu, "curves": curves})
    else:
        log.info("%s: a menu of %d selections, from %d cells", words.out, len(head.menu), head.cells)
    return DONE


def fit(
    cache: Path,
    seconds: Mapping[str, float],
    *,
    items: Sequence[str] | None = None,
    base: BaseRecord | None = None,
    measured_on: str = "",
) -> tuple[BudgetHead, BaseRecord]:
    """The base of all subsets (where none is given), the menu, then the predictions. `items`: which, None for all."""
    names = tuple(seconds)
    reader = CacheReader(cache, experts=names, items=items, features=False)
    if not reader.has_hr:
        raise Refusal("has no HR images", where=cache, cure="extract it with --hr")
    if base is None:
        fitted = BaseFit(reader.experts)
        for item in tqdm(reader, desc="base", total=len(reader), unit="item", disable=None):
            fitted.add(item.sr_BECHW[0], truth_of(item)[0], item.lr_BCHW[0])
        base = fitted.record(str(cache))
    menu = make_menu(base, seconds)
    cells = gather(_thinned(reader, cache), base, menu)
    head = BudgetHead(
        menu=menu,
        seconds=dict(seconds),
        weights_sha256={one.name: one.weights_sha256 for one in reader.recipe.experts if one.name in names},
        gains=tuple(_ridge(cells, cells.errors_XM[:, 0] - cells.errors_XM[:, m]) for m in range(1, len(menu))),
        error=_ridge(cells, cells.errors_XM[:, -1]),
        cells=len(cells.energy_X),
        source=cache.name,
        measured_on=measured_on,
    )
    return head, base


def _thinned(reader: CacheReader, cache: Path) -> CacheReader:
    """Every n-th item, so that no more than about ENOUGH LR pixels are blended by every selection."""
    every = math.ceil(sum(entry.height * entry.width for entry in reader.entries) / ENOUGH)
    kept = [entry.id for entry in reader.entries[::every]]
    if every > 1:
        log.info("%d of %d items are enough to learn from", len(kept), len(reader.entries))
    return CacheReader(cache, experts=reader.experts, items=kept, features=False)


def make_menu(base: BaseRecord, seconds: Mapping[str, float]) -> tuple[tuple[str, ...], ...]:
    """From the cheapest expert to all: every selection of up to SEVERAL; of more, those that beat all cheaper ones."""
    names = tuple(name for name in base.experts if name in seconds)
    selections = chain.from_iterable(combinations(names, count) for count in range(1, len(names) + 1))
    costs = {one: sum(seconds[name] for name in one) for one in selections}
    errors = {one: expected_error(base, one) for one in costs}
    rising = sorted(costs, key=lambda one: (round(costs[one], 12), errors[one]))
    if len(names) <= SEVERAL:
        return tuple(rising)
    menu, least = list[tuple[str, ...]](), math.inf
    for one in rising:
        if one == names or errors[one] < least * (1 - 1e-6):
            menu.append(one)
        least = min(least, errors[one])
    return tuple(menu)


def expected_error(base: BaseRecord, names: Sequence[str]) -> float:
    """Mean squared error of the subset's blend, from the stored products of errors."""
    weights_X = _weights(base, names)
    return float(weights_X @ np.array(base.gram) @ weights_X)


def gather(reader: CacheReader, base: BaseRecord, menu: Sequence[tuple[str, ...]]) -> Cells:
    """Every cell of every item.

    A blend is linear in its experts' images, so all selections' errors follow from one table of products per cell.
    """
    weights_MX = np.stack([_weights(base, names) for names in menu])
    if base.groups == WHOLE:  # alike in all bands: the images need not be split
        weights_MX = weights_MX[:, :: len(BAND_NAMES)]
    rows = list[tuple[np.ndarray, ...]]()
    for item in tqdm(reader, desc="cells", total=len(reader), unit="item", disable=None):
        measures_PQD, energy_PQ, pixels_PQ = measure_cells(item.lr_BCHW)
        products_XXPQ = _products(item, base)
        errors_PQM = np.einsum("xypq,mx,my->pqm", products_XXPQ, weights_MX, weights_MX, optimize=True)
        rows.append((rows_of(measures_PQD), energy_PQ.ravel(), rows_of(errors_PQM), pixels_PQ.ravel()))
    return Cells(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


def _weights(base: BaseRecord, names: Sequence[str]) -> np.ndarray:
    """A selection's weights over experts, then bands; 0 for experts that are not in it."""
    weights_EK = np.zeros((len(base.experts), len(BAND_NAMES)))
    for group, row in zip(base.groups, base.solve(names), strict=True):
        for name, weight in zip(names, row, strict=True):
            weights_EK[base.experts.index(name), list(group)] = weight
    return weights_EK.ravel()


def _products(item: FusionBatch, base: BaseRecord) -> np.ndarray:
    """Mean products of errors in each cell (X, X, P, Q): of experts (and bands, where they count), pulled to the LR."""
    order = [item.experts.index(name) for name in base.experts]
    images_ECHW = item.sr_BECHW[0, order]
    with torch.no_grad():
        lr_ECHW = item.lr_BCHW.expand(len(order), -1, -1, -1)
        errors_ECHW = back_project(images_ECHW, lr_ECHW, base.back_projection) - truth_of(item)
        split = base.groups != WHOLE
        parts_XCHW = torch.stack(split_bands(errors_ECHW), 1).flatten(0, 1) if split else errors_ECHW
    count = len(parts_XCHW)
    first, second = np.triu_indices(count)
    pairs_YHW = torch.stack([(parts_XCHW[x] * parts_XCHW[y]).mean(0) for x, y in zip(first, second, strict=True)])
    sums_YPQ = cell_sums(torch.cat([pairs_YHW, torch.ones_like(pairs_YHW[:1])]).double(), SCALE * CELL)
    products_XXPQ = np.empty((count, count, *sums_YPQ.shape[1:]))
    products_XXPQ[first, second] = products_XXPQ[second, first] = sums_YPQ[:-1] / sums_YPQ[-1]
    return products_XXPQ


def _ridge(cells: Cells, target_X: np.ndarray) -> tuple[float, ...]:
    """Weights of the measures for target / energy; cells count by energy and size, as they do in the sum."""
    share_X = target_X / cells.energy_X
    weight_X = cells.energy_X * cells.pixels_X
    weight_X = weight_X / weight_X.sum()
    x = cells.measures_XD
    gram = (x * weight_X[:, None]).T @ x + _RIDGE * np.eye(x.shape[1])
    return tuple(float(value) for value in np.linalg.solve(gram, (x * weight_X[:, None]).T @ share_X))


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
