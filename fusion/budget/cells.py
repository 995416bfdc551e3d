"""Cached images and their truth -> what a budget model learns from: per cell its measures, and each selection's error.

A selection's image comes from the closed-form base or from a trained fusion.
Axes: X cells (P rows and Q columns of them in an image), E experts, K bands, M choices of the menu, D measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from fusion.budget.model import CELL, cell_sums, measure_cells
from fusion.network.base.back_projection import back_project
from fusion.network.base.blend import BAND_NAMES, WHOLE, split_bands, weighted_sum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from cache_tools.read.reader import CacheReader, FusionBatch
    from fusion.network import FusionSR
    from fusion.network.base.blend import BaseBlend, BaseRecord

    Menu = Sequence[tuple[str, ...]]
    ErrorsOf = Callable[[FusionBatch], np.ndarray]


def blends(blend: BaseBlend, item: FusionBatch, menu: Sequence[tuple[str, ...]]) -> list[Tensor]:
    """The blend of each selection; what is alike for all of them, the pull onto the LR image, is made once each."""
    record, lr_BCHW = blend.record, item.lr_BCHW
    with torch.no_grad():
        if record.groups != WHOLE:
            images = {name: item.sr_BECHW[:, index] for index, name in enumerate(item.experts)}
            return [blend(lr_BCHW, torch.stack([images[name] for name in names], 1), names) for names in menu]
        pulled = {
            name: back_project(item.sr_BECHW[:, index], lr_BCHW, record.back_projection, blend.scale)
            for index, name in enumerate(item.experts)
        }
        return [
            weighted_sum(torch.stack([pulled[name] for name in names], 1), blend.weights(names)[0]) for names in menu
        ]


def fused_images(model: FusionSR, item: FusionBatch, menu: Sequence[tuple[str, ...]]) -> list[Tensor]:
    """The trained fusion's image of each selection, made of these experts' images and features alone."""
    device = next(model.parameters()).device
    lr_BCHW = item.lr_BCHW.to(device)
    images: list[Tensor] = []
    for names in menu:
        order = [item.experts.index(name) for name in names]
        feats = {name: item.feats[name].to(device) for name in names if name in item.feats}
        with torch.no_grad():
            output = model(lr_BCHW, item.sr_BECHW[:, order].to(device), feats, names)
        images.append(output.image_BCHW.float().cpu())
    return images


def truth_of(item: FusionBatch) -> Tensor:
    """hr_BCHW, which `fit` requires of its caches."""
    assert item.hr_BCHW is not None
    return item.hr_BCHW


@dataclass(frozen=True)
class Cells:
    """Measures (X, D), energies (X), mean squared errors of each choice (X, M), LR pixels (X)."""

    measures_XD: np.ndarray
    energy_X: np.ndarray
    errors_XM: np.ndarray
    pixels_X: np.ndarray


def gather(reader: CacheReader, errors_of: ErrorsOf) -> Cells:
    """Every cell of every item; `errors_of` gives an item's mean squared errors (P, Q, M)."""
    rows = list[tuple[np.ndarray, ...]]()
    for item in tqdm(reader, desc="cells", total=len(reader), unit="item", disable=None):
        measures_PQD, energy_PQ, pixels_PQ = measure_cells(item.lr_BCHW)
        rows.append((rows_of(measures_PQD), energy_PQ.ravel(), rows_of(errors_of(item)), pixels_PQ.ravel()))
    return Cells(*(np.concatenate(parts) for parts in zip(*rows, strict=True)))


def errors_of_blends(base: BaseRecord, menu: Menu) -> ErrorsOf:
    """Of the closed form: linear in its experts' images, so one table of products per cell has every selection's."""
    weights_MX = np.stack([selection_weights(base, names) for names in menu])
    if base.groups == WHOLE:  # alike in all bands: the images need not be split
        weights_MX = weights_MX[:, :: len(BAND_NAMES)]

    def errors_of(item: FusionBatch) -> np.ndarray:
        return np.einsum("xypq,mx,my->pqm", _products(item, base), weights_MX, weights_MX, optimize=True)

    return errors_of


def errors_of_fusion(model: FusionSR, menu: Menu) -> ErrorsOf:
    """Of a trained fusion, run once for every selection."""

    def errors_of(item: FusionBatch) -> np.ndarray:
        truth_BCHW = truth_of(item)
        images = fused_images(model, item, menu)
        errors_MHW = torch.cat([(image_BCHW - truth_BCHW).square().mean(1) for image_BCHW in images])
        sums_MPQ = cell_sums(
            torch.cat([errors_MHW, torch.ones_like(errors_MHW[:1])]).double(), model.settings.scale * CELL
        )
        return np.moveaxis(sums_MPQ[:-1] / sums_MPQ[-1], 0, -1)

    return errors_of


def selection_weights(base: BaseRecord, names: Sequence[str]) -> np.ndarray:
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
        scale = images_ECHW.shape[-1] // lr_ECHW.shape[-1]
        errors_ECHW = back_project(images_ECHW, lr_ECHW, base.back_projection, scale) - truth_of(item)
        split = base.groups != WHOLE
        parts_XCHW = torch.stack(split_bands(errors_ECHW), 1).flatten(0, 1) if split else errors_ECHW
    count = len(parts_XCHW)
    first, second = np.triu_indices(count)
    pairs_YHW = torch.stack([(parts_XCHW[x] * parts_XCHW[y]).mean(0) for x, y in zip(first, second, strict=True)])
    sums_YPQ = cell_sums(torch.cat([pairs_YHW, torch.ones_like(pairs_YHW[:1])]).double(), scale * CELL)
    products_XXPQ = np.empty((count, count, *sums_YPQ.shape[1:]))
    products_XXPQ[first, second] = products_XXPQ[second, first] = sums_YPQ[:-1] / sums_YPQ[-1]
    return products_XXPQ


def rows_of(values_PQD: np.ndarray) -> np.ndarray:
    """The cells of an image one below the other (X, D)."""
    return values_PQD.reshape(-1, values_PQD.shape[-1])
