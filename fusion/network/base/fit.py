"""A stream of (experts' images, high-resolution image, LR image) -> the least-squares base, in one pass.

Only sums of products are kept: one Gram matrix of the experts' errors per fold. Items go to folds in turn, so that
held-out data can say whether weights per frequency band beat plain weights per expert, and whether pulling the blend
towards the LR image (fusion/network/base/back_projection.py) beats leaving it alone. For experts that undo more than a
bicubic downscale it does not, and the strength stays 0.
Axes: E experts, K = 3 bands, C = 3 colours, H and W of the high-resolution image, N = 3 H W values.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fusion.network.base.back_projection import certain, enlarge
from fusion.network.base.blend import BAND_NAMES, WHOLE, BaseRecord, solve_weights, split_bands
from imaging.names import counted
from imaging.refusal import Refusal
from imaging.resize import downscale

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Groups = tuple[tuple[int, ...], ...]

logger = logging.getLogger(__name__)

BORDER = 16  # HR pixels left out on each side: there, cut regions lack the context a whole image gives
FOLDS = 5  # four of five must agree
WORTHWHILE_DB = 0.005  # a smaller gain on held-out items is not worth two blurs of every image at run time
CANDIDATES: dict[str, Groups] = {
    "whole": WHOLE,
    "low | mid+high": ((0,), (1, 2)),
    "low+mid | high": ((0, 1), (2,)),
    "low | mid | high": ((0,), (1,), (2,)),
}


class BaseFit:
    """Accumulates pairs one after the other; `record` solves for the base."""

    def __init__(self, experts: Sequence[str], *, border: int = BORDER, folds: int = FOLDS) -> None:
        self.experts = tuple(experts)
        self.border = border
        self.items = 0
        side = len(self.experts), len(BAND_NAMES)
        self._products = np.zeros((folds, *side, *side))
        self._values = np.zeros(folds)
        # Per fold, of each expert's enlarged LR residual (its pull): products with the errors, and with the pulls.
        self._pulls = np.zeros((folds, 2, len(self.experts), len(self.experts)))

    def add(self, sr_ECHW: Tensor, hr_CHW: Tensor, lr_CHW: Tensor | None = None) -> None:
        """One item: float images in [0, 1], or uint8. The experts are in the order given at the start."""
        sr_ECHW, hr_CHW = _floats(sr_ECHW), _floats(hr_CHW).to(sr_ECHW.device)
        self._check(sr_ECHW, hr_CHW)
        inner = slice(self.border, -self.border or None)
        bands_KECHW = torch.stack(split_bands(sr_ECHW - hr_CHW))[..., inner, inner]
        errors_XN = bands_KECHW.transpose(0, 1).flatten(0, 1).flatten(1).double()
        fold = self.items % len(self._values)
        self._products[fold] += (errors_XN @ errors_XN.T).cpu().numpy().reshape(self._products.shape[1:])
        self._values[fold] += errors_XN.shape[1]
        if lr_CHW is not None:
            self._add_pull(fold, sr_ECHW, hr_CHW, _floats(lr_CHW).to(sr_ECHW.device))
        self.items += 1

    def record(self, source: str = "") -> BaseRecord:
        """The base of all that was added; weights go by band only where held-out items say that this wins."""
        if not self.items:
            raise Refusal("there was not one item to fit on", where="base", cure="give a cache with items")
        gram = self._mean(range(len(self._values)))
        if not np.isfinite(gram).all():
            raise Refusal("the errors are not finite", where="base", cure="verify the cache")
        if not gram.any():
            what = f"no expert's image differs from HR in any of {counted(self.items, 'item')}: there is nothing to fit"
            raise Refusal(
                what, where="base", cure="give images of more than one colour, and experts that are not HR itself"
            )
        choice, report = self._choose()
        strength, pulled = self._choose_pull(CANDIDATES[choice])
        side = len(self.experts) * len(BAND_NAMES)
        record = BaseRecord(
            experts=self.experts,
            gram=tuple(map(tuple, gram.reshape(side, side).tolist())),
            groups=CANDIDATES[choice],
            back_projection=strength,
            items=self.items,
            source=source,
            held_out=report | pulled,
        )
        weights = record.solve(self.experts)
        logger.info("base of %d items: %s, %s, back-projection %.3f", self.items, choice, weights, strength)
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

    def _add_pull(self, fold: int, sr_ECHW: Tensor, hr_CHW: Tensor, lr_CHW: Tensor) -> None:
        """Linear in the experts where the LR image is not clipped, so that any blend's pull is the blend of theirs."""
        inner = slice(self.border, -self.border or None)
        scale = sr_ECHW.shape[-1] // lr_CHW.shape[-1]
        lack_ECHW = (lr_CHW - downscale(sr_ECHW, scale)) * certain(lr_CHW[None])
        pulls_EN = enlarge(lack_ECHW, scale)[..., inner, inner].flatten(1).double()
        errors_EN = (sr_ECHW - hr_CHW)[..., inner, inner].flatten(1).double()
        self._pulls[fold, 0] += (pulls_EN @ errors_EN.T).cpu().numpy()
        self._pulls[fold, 1] += (pulls_EN @ pulls_EN.T).cpu().numpy()

    def _choose_pull(self, groups: Groups) -> tuple[float, dict[str, float]]:
        """The best strength, if strengths fitted on the other folds win in all folds but one; else none.

        What is missing at LR size lies in the low band, so that band's weights stand for the blend.
        """
        folds = range(len(self._values))
        if not self._pulls.any() or self.items < 2 * len(folds):
            return 0.0, {}
        won, total = 0, 0.0
        for fold in folds:
            others = [other for other in folds if other != fold]
            weights_GE = solve_weights(self._mean(others), groups)
            own = self._pull_terms([fold], weights_GE[0])
            strength = _strength(*self._pull_terms(others, weights_GE[0]))
            gain = -(2 * strength * own[0] + strength**2 * own[1])
            error = self._held_out(fold, groups)
            won += gain > 0
            total += (error - gain) * self._values[fold] / self._values.sum()
        weights_E = solve_weights(self._mean(folds), groups)[0]
        strength = _strength(*self._pull_terms(folds, weights_E)) if won >= len(folds) - 1 else 0.0
        return strength, {"back-projected": _psnr(total)} if strength else {}

    def _pull_terms(self, folds: Iterable[int], weights_E: np.ndarray) -> tuple[float, float]:
        """Mean product of a blend's pull with its error, and with itself."""
        chosen = list(folds)
        mean = self._pulls[chosen].sum(axis=0) / self._values[chosen].sum()
        return float(weights_E @ mean[0] @ weights_E), float(weights_E @ mean[1] @ weights_E)

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
    items: Iterable[tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]],
    experts: Sequence[str],
    *,
    border: int = BORDER,
    folds: int = FOLDS,
    source: str = "",
) -> BaseRecord:
    """Items (sr_ECHW, hr_CHW, lr_CHW), read once and not kept -> the base. `source` says on what it was fitted.

    Without LR images no back-projection is fitted.
    """
    fit = BaseFit(experts, border=border, folds=folds)
    for item in items:
        fit.add(*item)
    return fit.record(source)


def _strength(product: float, power: float) -> float:
    """The least-squares strength of a pull; nothing is ever pushed away from its LR image, nor pulled beyond twice."""
    return min(max(-product / power, 0.0), 2.0) if power else 0.0


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
