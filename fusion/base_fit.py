"""A stream of (experts' images, high-resolution image) pairs -> the least-squares base, in one pass.

Only sums of products are kept: one Gram matrix of the experts' errors per fold. Items go to folds in turn, so that
held-out data can say whether weights per frequency band beat plain weights per expert.
Axes: E experts, K = 3 bands, C = 3 colours, H and W of the high-resolution image, N = 3 H W values.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fusion.network.base import WHOLE, BaseRecord, solve_weights
from fusion.network.base_bands import BAND_NAMES, split_bands
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Groups = tuple[tuple[int, ...], ...]

logger = logging.getLogger(__name__)

BORDER = 16  # HR pixels left out on each side: there, cut regions lack the context a whole image gives
FOLDS = 5
WORTHWHILE_DB = 0.005  # a smaller gain on held-out items is not worth two blurs of every image at run time
CANDIDATES: dict[str, Groups] = {
    "whole": WHOLE,
    "low | mid+high": ((0,), (1, 2)),
    "low+mid | high": ((0, 1), (2,)),
    "low | mid | high": ((0,), (1,), (2,)),
}


class BaseFit:
    """Add pairs one after the other, from wherever they come; then ask for the record."""

    def __init__(self, experts: Sequence[str], *, border: int = BORDER, folds: int = FOLDS) -> None:
        self.experts = tuple(experts)
        self.border = border
        self.items = 0
        side = len(self.experts), len(BAND_NAMES)
        self._products = np.zeros((folds, *side, *side))
        self._values = np.zeros(folds)

    def add(self, sr_ECHW: Tensor, hr_CHW: Tensor) -> None:
        """One item: float images in [0, 1], or uint8. The experts are in the order given at the start."""
        sr_ECHW, hr_CHW = _floats(sr_ECHW), _floats(hr_CHW).to(sr_ECHW.device)
        self._check(sr_ECHW, hr_CHW)
        inner = slice(self.border, -self.border or None)
        bands_KECHW = torch.stack(split_bands(sr_ECHW - hr_CHW))[..., inner, inner]
        errors_XN = bands_KECHW.transpose(0, 1).flatten(0, 1).flatten(1).double()
        fold = self.items % len(self._values)
        self._products[fold] += (errors_XN @ errors_XN.T).cpu().numpy().reshape(self._products.shape[1:])
        self._values[fold] += errors_XN.shape[1]
        self.items += 1

    def record(self, source: str = "") -> BaseRecord:
        """The base of all that was added; weights go by band only where held-out items say that this wins."""
        if not self.items:
            raise Refusal("there was not one item to fit on", where="base", cure="give a cache with items")
        gram = self._mean(range(len(self._values)))
        if not np.isfinite(gram).all():
            raise Refusal("the errors are not finite", where="base", cure="verify the cache")
        choice, report = self._choose()
        side = len(self.experts) * len(BAND_NAMES)
        record = BaseRecord(
            experts=self.experts,
            gram=tuple(map(tuple, gram.reshape(side, side).tolist())),
            groups=CANDIDATES[choice],
            items=self.items,
            source=source,
            held_out=report,
        )
        logger.info("base of %d items: %s, %s", self.items, choice, record.solve(self.experts))
        return record

    def _choose(self) -> tuple[str, dict[str, float]]:
        """Cross-validate the candidates: one by band must win in all folds but one, and be worthwhile over all."""
        folds = range(len(self._values))
        if self.items < 2 * len(folds):
            return "whole", {}  # too few items to hold any out
        errors = {
            name: np.array([self._held_out(fold, groups) for fold in folds]) for name, groups in CANDIDATES.items()
        }
        share = self._values / self._values.sum()
        total = {name: float(error @ share) for name, error in errors.items()}
        wins = {
            name: _psnr(total[name]) - _psnr(total["whole"]) >= WORTHWHILE_DB
            and int((error < errors["whole"]).sum()) >= len(folds) - 1
            for name, error in errors.items()
        }
        choice = min((name for name in CANDIDATES if wins[name]), key=total.__getitem__, default="whole")
        return choice, {name: _psnr(error) for name, error in (total | self._simple()).items()}

    def _held_out(self, fold: int, groups: Groups) -> float:
        """Mean squared error on one fold of the weights fitted on the others."""
        others = [other for other in range(len(self._values)) if other != fold]
        return _error(self._mean([fold]), solve_weights(self._mean(others), groups), groups)

    def _simple(self) -> dict[str, float]:
        """Mean squared error of the plain mean and of each expert alone, which need no fitting."""
        gram = self._mean(range(len(self._values)))
        experts = len(self.experts)
        blends = {"mean": np.full((1, experts), 1 / experts)}
        blends |= {name: np.eye(experts)[[index]] for index, name in enumerate(self.experts)}
        return {name: _error(gram, weights, WHOLE) for name, weights in blends.items()}

    def _mean(self, folds: Iterable[int]) -> np.ndarray:
        chosen = list(folds)
        return self._products[chosen].sum(axis=0) / self._values[chosen].sum()

    def _check(self, sr_ECHW: Tensor, hr_CHW: Tensor) -> None:
        if tuple(sr_ECHW.shape) != (len(self.experts), *hr_CHW.shape):
            raise Refusal(
                f"experts' images are {tuple(sr_ECHW.shape)} against {tuple(hr_CHW.shape)}",
                where=f"item {self.items} of the base fit",
                cure=f"give {len(self.experts)} images of the high-resolution image's size",
            )
        if min(hr_CHW.shape[1:]) <= 2 * self.border:
            raise Refusal(
                f"{tuple(hr_CHW.shape[1:])} leaves nothing inside a border of {self.border}",
                where=f"item {self.items} of the base fit",
                cure="give larger images or a smaller border",
            )


def fit_base(
    pairs: Iterable[tuple[Tensor, Tensor]],
    experts: Sequence[str],
    *,
    border: int = BORDER,
    folds: int = FOLDS,
    source: str = "",
) -> BaseRecord:
    """Pairs (sr_ECHW, hr_CHW), read once and not kept -> the base. `source` says on what it was fitted."""
    fit = BaseFit(experts, border=border, folds=folds)
    for sr_ECHW, hr_CHW in pairs:
        fit.add(sr_ECHW, hr_CHW)
    return fit.record(source)


def _error(gram_EKEK: np.ndarray, weights_GE: np.ndarray, groups: Groups) -> float:
    """Mean squared error of a blend."""
    group_of = [next(g for g, bands in enumerate(groups) if band in bands) for band in range(len(BAND_NAMES))]
    weights_EK = weights_GE[group_of].T
    return float(np.einsum("ekfl,ek,fl->", gram_EKEK, weights_EK, weights_EK))


def _psnr(mean_squared_error: float) -> float:
    """Decibels over all values together; an exact fit is capped at 200."""
    return -10 * math.log10(max(mean_squared_error, 1e-20))


def _floats(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()
