"""`python -m fusion fit-budget CACHE --seconds a=1,b=4 --out FILE`: cached images -> a budget model, and its curve.

Axes: X cells, M choices of the menu, D measures.
"""

from __future__ import annotations

import logging
import math
from itertools import chain, combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from cache_tools.format.location import name_of, parse_location
from cache_tools.read.reader import CacheReader
from cache_tools.storage.item_cache import add_local_cache_arguments, set_local_cache
from cache_tools.storage.open import store_at
from fusion.budget.cells import (
    blends,
    errors_of_blends,
    errors_of_fusion,
    fused_images,
    gather,
    selection_weights,
    truth_of,
)
from fusion.budget.curve import as_text, curve, tile_text
from fusion.budget.model import BUDGET_FILE, BudgetModel
from fusion.network.base.blend import BaseBlend
from fusion.network.base.fit import BaseFit
from fusion.network.network import load_model
from imaging.atomic import write_text
from imaging.command import DONE, CommandParser, output_file, print_json
from imaging.refusal import Refusal, nearest
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fusion.budget.cells import Cells
    from fusion.budget.curve import ImagesOf
    from fusion.network import FusionSR
    from fusion.network.base.blend import BaseRecord

log = logging.getLogger(__name__)

SEVERAL = 5  # experts of which every selection is on the menu: 31; beyond, their number doubles with each
ENOUGH = 1_500_000  # LR pixels to learn from: nearly six thousand cells for ten weights
ENOUGH_FUSED = 500_000  # where the fusion itself runs for every selection: minutes on one core
_RIDGE = 1e-2  # against measures of unit scale, weights summing to 1: keeps near-collinear measures from cancelling


def main(arguments: Sequence[str]) -> int:
    """Fit, write; with --check also the curve on other images."""
    parser = CommandParser(prog="python -m fusion fit-budget", description=__doc__)
    add = parser.add_argument
    add("cache", type=parse_location, help="a cache with HR images, see `python -m cache_tools extract`")
    add("--seconds", required=True, metavar="a=1,b=4", help="each expert's cost per LR pixel, in any unit")
    add("--model", type=Path, metavar="FILE", help="the fusion they serve; CACHE of images it did not learn")
    add("--out", type=output_file, required=True, metavar="FILE", help="the budget model, as JSON")
    add(
        "--check", type=parse_location, nargs="*", default=[], metavar="CACHE", help="other caches to draw the curve on"
    )
    add("--tile", type=int, nargs="*", default=[0, 16], help="tiles of that curve, in LR pixels; 0: whole images")
    add("--record", type=output_file, metavar="FILE", help="write the curve as Markdown")
    add("--json", action="store_true", help="print one JSON document")
    add_local_cache_arguments(parser)
    words = parser.parse_args(arguments)
    set_local_cache(words)
    seconds = _seconds(words.seconds)
    model = None if words.model is None else load_model(words.model).eval()
    budget_model, base = fit(words.cache, seconds, model=model)
    budget_model.write(words.out)
    images_of = _images_of(budget_model, base, model, store_at(words.cache).manifest.recipe.scale)
    curves = {
        f"{name_of(folder)}, {tile_text(tile)}": points
        for folder in words.check
        for tile, points in curve(
            budget_model, images_of, _open(folder, budget_model.experts, None, model), words.tile
        ).items()
    }
    if words.record is not None:
        write_text(words.record, as_text(budget_model, curves, list(arguments)))
    if words.json:
        print_json({"head": words.out, "menu": budget_model.menu, "curves": curves})
    else:
        log.info("%s: a menu of %d selections, from %d cells", words.out, len(budget_model.menu), budget_model.cells)
    return DONE


def fit(
    cache: Path | str,
    seconds: Mapping[str, float],
    *,
    items: Sequence[str] | None = None,
    base: BaseRecord | None = None,
    model: FusionSR | None = None,
    measured_on: str = "",
) -> tuple[BudgetModel, BaseRecord]:
    """The base of all subsets (where none is given), the menu, then the predictions. `items`: which, None for all.

    With a `model` what is predicted is what its own images gain: `items` should be some it was not trained on. Without
    one, or with one that gives its base, it is the closed form's gain: its few weights cannot overfit single images.
    """
    fused = learned(model)
    reader = _open(cache, tuple(seconds), items, fused)
    if not reader.has_hr:
        raise Refusal("has no HR images", where=cache, cure="extract it with --hr")
    if model is not None:
        base = model.base.record
    elif base is None:
        fitted = BaseFit(reader.experts)
        for item in tqdm(reader, desc="base", total=len(reader), unit="item", disable=None):
            fitted.add(item.sr_BECHW[0], truth_of(item)[0], item.lr_BCHW[0])
        base = fitted.record(str(cache))
    menu = make_menu(base, seconds)
    kept = _open(cache, reader.experts, _thinned(reader, ENOUGH if fused is None else ENOUGH_FUSED), fused)
    cells = gather(kept, errors_of_blends(base, menu) if fused is None else errors_of_fusion(fused, menu))
    budget_model = BudgetModel(
        menu=menu,
        seconds=dict(seconds),
        weights_sha256=reader.recipe.weights(seconds),
        gains=tuple(_ridge(cells, cells.errors_XM[:, 0] - cells.errors_XM[:, m]) for m in range(1, len(menu))),
        error=_ridge(cells, cells.errors_XM[:, -1]),
        gains_of="blend" if fused is None else "fusion",
        cells=len(cells.energy_X),
        source=name_of(cache),
        measured_on=measured_on,
    )
    return budget_model, base


def fit_after_training(
    model_file: Path,
    cache: Path | str,
    experts: Sequence[str],
    time_experts: Callable[[], Mapping[str, float | None]],
    *,
    training_items: Sequence[str],
    held_out_items: Sequence[str],
    device: str,
) -> str | None:
    """Write budget.json beside a finished model: its name, or None (logged) where the `experts` cannot be timed.

    `time_experts` gives seconds per LR pixel, None for folders of images. A trained fusion's gains are measured on the
    items that it was not trained on, a closed form's on all the others.
    """
    try:
        seconds = time_experts()
    except Refusal as refusal:
        # The training itself has succeeded: a missing budget model must not turn it into a failure.
        log.warning("no budget model, since the experts cannot be timed: %s", refusal)
        return None
    costs = {name: cost for name, cost in seconds.items() if cost is not None}
    if set(costs) != set(experts) or len(costs) < 2:
        lacking = ", ".join(sorted(set(experts) - set(costs))) or "a second expert"
        log.warning("no budget model, since these are not the networks that the cache was made with: %s", lacking)
        return None
    model = load_model(model_file)
    items = training_items if learned(model) is None else held_out_items
    kind = torch.device(device).type  # under torchrun the device has a number, which the file's readers do not need
    budget_model, _ = fit(cache, costs, items=items, model=model.to(device).eval(), measured_on=kind)
    target = model_file.parent / BUDGET_FILE
    budget_model.write(target)
    log.info("%s: for infer.py --budget, costs measured on %s", target, device)
    return BUDGET_FILE


def learned(model: FusionSR | None) -> FusionSR | None:
    """The model, if it gives anything but its closed form."""
    return None if model is None or model.record.verdict == "base" else model


def _open(
    cache: Path | str, experts: Sequence[str], items: Sequence[str] | None, model: FusionSR | None
) -> CacheReader:
    """With features only where a fusion reads them."""
    features = learned(model) is not None and model is not None and model.settings.reads_features
    reader = CacheReader(cache, experts=experts, items=items, features=features)
    if model is not None:
        model.settings.check_weights(reader.recipe.weights(experts))
    return reader


def _images_of(budget_model: BudgetModel, base: BaseRecord, model: FusionSR | None, scale: int = SCALE) -> ImagesOf:
    """An item -> the image of each selection."""
    fused, blend = learned(model), BaseBlend(base, scale)
    if fused is None:
        return lambda item: blends(blend, item, budget_model.menu)
    return lambda item: fused_images(fused, item, budget_model.menu)


def _thinned(reader: CacheReader, enough: int) -> list[str]:
    """Every n-th item, so that no more than about `enough` LR pixels are evaluated for every selection."""
    every = math.ceil(sum(entry.height * entry.width for entry in reader.entries) / enough)
    if every > 1:
        log.info("one in %d of %d items is enough to learn from", every, len(reader.entries))
    # Every n-th, not the first n: caches list their sources one after the other.
    return [entry.id for entry in reader.entries[::every]]


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
    weights_X = selection_weights(base, names)
    return float(weights_X @ np.array(base.gram) @ weights_X)


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
