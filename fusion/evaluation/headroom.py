"""A cache -> how much fusion could gain, before any training: singles, blends, oracles, correlation of the errors.

Legend: E experts, C = 3 colours, H and W height and width (HR).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from cache_tools.format.location import name_of
from cache_tools.read.reader import CacheReader
from fusion.evaluation.oracle import best_mix_per_window, best_per_pixel, best_per_window
from fusion.network.base.blend import BAND_NAMES, WHOLE, BaseBlend, BaseRecord
from fusion.network.base.fit import CANDIDATES, BaseFit
from fusion.training.judge.scores import ScoreTable
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from cache_tools.read.reader import FusionBatch

BY_BAND = "low | mid | high"
LEAST_SQUARES, PER_BAND, MEAN = "least squares", "least squares per band", "mean"
BACK_PROJECTED = "least squares, back-projected"
ORACLES = ("oracle: expert per pixel", "oracle: expert per 8x8", "oracle: convex mix per 32x32")
EXACT = 1e-12  # mean squared error: a blend that is equal to HR has none, or a rounding's worth on either side
WORTH_DB, DROP_DB = 0.02, 0.005  # from this gain on fusion is worth it; below this loss an expert may be dropped


@dataclass(frozen=True)
class Headroom:
    """The findings; correlation and weights are in the order of `experts`."""

    experts: tuple[str, ...]
    table: ScoreTable
    weights: dict[str, list[float]]
    back_projection: float
    correlation: list[list[float]]
    without: dict[str, float]
    fitted_on: str
    sentence: str


def analyze(cache: Path | str, fit_on: Path | str | None = None, experts: Sequence[str] | None = None) -> Headroom:
    """Fit the blends on `fit_on` (the cache itself by default) and measure everything on the cache."""
    reader = CacheReader(cache, experts=experts, features=False)
    fitting = reader if fit_on is None else CacheReader(fit_on, experts=reader.experts, features=False)
    names, scale = reader.experts, reader.recipe.scale
    fit = BaseFit(names)
    for batch in _items(fitting, "fitting"):
        fit.add(batch.sr_BECHW[0], _truth(batch)[0], batch.lr_BCHW[0])
    record = fit.record(name_of(fitting.store.location)).model_copy(update={"groups": WHOLE})
    plain = record.model_copy(update={"back_projection": 0.0})
    blends = {
        LEAST_SQUARES: BaseBlend(plain, scale),
        PER_BAND: BaseBlend(plain.model_copy(update={"groups": CANDIDATES[BY_BAND]}), scale),
        BACK_PROJECTED: BaseBlend(record, scale),
    }
    table = ScoreTable()
    own = BaseFit(names)
    for batch in _items(reader, "measuring"):
        own.add(batch.sr_BECHW[0], _truth(batch)[0])
        _measure(table, batch, blends)
    table.require_scores()
    without = without_each(record)
    fitted_on = "itself" if fit_on is None else name_of(fit_on)
    return Headroom(
        experts=names,
        table=table,
        weights={
            name: [round(weight, 4) for row in blends[name].weights(names) for weight in row]
            for name in (LEAST_SQUARES, PER_BAND)
        },
        back_projection=round(record.back_projection, 4),
        correlation=correlation(own.record()),
        without=without,
        fitted_on=fitted_on,
        sentence=verdict(table, names, without),
    )


def without_each(record: BaseRecord) -> dict[str, float]:
    """Expert -> dB that the least-squares blend loses on the fit's own items when that expert is left out."""
    if len(record.experts) == 1:
        return {}
    full = _blend_error(record, record.experts)
    loss: dict[str, float] = {}
    for name in record.experts:
        rest = tuple(other for other in record.experts if other != name)
        loss[name] = 10 * math.log10(max(_blend_error(record, rest), EXACT) / max(full, EXACT))
    return loss


def correlation(record: BaseRecord) -> list[list[float]]:
    """Correlation of the experts' errors: 1 where they are proportional, 0 for an expert without any."""
    gram_EE = _error_products(record, record.experts)
    size_E = np.sqrt(np.diag(gram_EE))
    size_E[size_E == 0] = math.inf
    return [[round(float(value), 4) for value in row] for row in gram_EE / np.outer(size_E, size_E)]


def verdict(table: ScoreTable, experts: Sequence[str], without: dict[str, float]) -> str:
    """One sentence: whether fusion is worth it, and which experts may be dropped."""
    psnr = {row: table.mean(row)[0] for row in table.rows}
    best = max(experts, key=psnr.__getitem__)
    gain, mix = psnr[LEAST_SQUARES] - psnr[best], psnr[ORACLES[2]] - psnr[LEAST_SQUARES]
    worth = "is worth it" if gain >= WORTH_DB else "gains next to nothing"
    droppable = [name for name, loss in without.items() if loss < DROP_DB]
    drop = f"{', '.join(droppable)} may be dropped (one at a time)" if droppable else "no expert may be dropped"
    return (
        f"Fusion {worth}: least squares is {gain:+.3f} dB against {best}, the best expert, and the best mix per 32x32 "
        f"window would add another {mix:.3f} dB that takes knowing more than these images to reach; {drop}."
    )


def _measure(table: ScoreTable, batch: FusionBatch, blends: dict[str, BaseBlend]) -> None:
    """One item's scores, row by row."""
    item, hr_BCHW = batch.items[0], _truth(batch)
    # Stored images are 8-bit already, so an expert's score is that of the file it would have written.
    for index, name in enumerate(batch.experts):
        table.add(name, item, batch.sr_BECHW[:, index], hr_BCHW)
    table.add(MEAN, item, batch.sr_BECHW.mean(1), hr_BCHW)
    for name, blend in blends.items():
        table.add(name, item, blend(batch.lr_BCHW, batch.sr_BECHW, batch.experts), hr_BCHW)
    sr_ECHW, hr_CHW = batch.sr_BECHW[0], hr_BCHW[0]
    oracles = (
        best_per_pixel(sr_ECHW, hr_CHW),
        best_per_window(sr_ECHW, hr_CHW, 8),
        best_mix_per_window(sr_ECHW, hr_CHW, 32),
    )
    for name, image_CHW in zip(ORACLES, oracles, strict=True):
        table.add(name, item, image_CHW[None], hr_BCHW)


def _items(reader: CacheReader, doing: str) -> Iterator[FusionBatch]:
    if not reader.has_hr:
        raise Refusal(
            "has no HR images to measure against", where=reader.store.location, cure="extract it with HR images"
        )
    plain = [entry.id for entry in reader.entries if entry.dihedral == 0]
    for item in tqdm(plain, desc=doing, unit="item", disable=None):
        yield reader.read(item)


def _truth(batch: FusionBatch) -> Tensor:
    assert batch.hr_BCHW is not None
    return batch.hr_BCHW


def _error_products(record: BaseRecord, experts: Sequence[str]) -> np.ndarray:
    """(E, E): the bands of the Gram matrix added up."""
    side = len(record.experts), len(BAND_NAMES)
    members = [record.experts.index(name) for name in experts]
    gram_EKEK = np.array(record.gram).reshape(side + side)[members][:, :, members]
    return gram_EKEK.sum(axis=(1, 3))


def _blend_error(record: BaseRecord, experts: tuple[str, ...]) -> float:
    weights_E = np.array(record.solve(experts)[0])
    return float(weights_E @ _error_products(record, experts) @ weights_E)
