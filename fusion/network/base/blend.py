"""Experts' and LR images -> the base: the least-squares blend fitted on a cache, pulled towards the LR image.

What is stored is the Gram matrix of the experts' errors, band by band; each subset's weights are solved from its part
of it, exactly, when the base is set. Bands are Gaussian low-passes: the bands of a sum are the sums of the bands, so a
blend may be split after blending. Axes: B batch or N images, E experts, K = 3 bands, G groups of bands that share
weights, C = 3 colours, H and W of the LR image (times the
experts' scale s for their images).
"""

from __future__ import annotations

import json
import math
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fusion.network.base.back_projection import back_project
from fusion.network.parts import gaussian_blur
from imaging.refusal import Refusal, nearest
from imaging.scale import SCALE
from imaging.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

BAND_NAMES = ("low", "mid", "high")
_SIGMAS = (3.0, 1.0)  # in HR pixels: below sigma 3 is the low band, above sigma 1 the high one


def split_bands(image_NCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Low, mid and high."""
    coarse, fine = (blur(image_NCHW, sigma) for sigma in _SIGMAS)
    return coarse, fine - coarse, image_NCHW - fine


def blur(image_NCHW: Tensor, sigma: float) -> Tensor:
    """Gaussian of `sigma` pixels, cut at three sigmas."""
    return gaussian_blur(image_NCHW, sigma, radius=int(3 * sigma))


_SOLVED_AHEAD = 8  # up to this many experts (255 subsets), every subset's weights are solved when the base is set
WHOLE = (tuple(range(len(BAND_NAMES))),)


class BaseRecord(Settings):
    """The stored base. `gram` holds mean products of errors, rows and columns running over experts, then bands;
    `groups` says which bands share weights (one group: plain weights per expert). `back_projection` is how far the
    blend is pulled towards its LR image (0: not at all). `held_out` is the fit's report."""

    experts: tuple[str, ...] = Field(min_length=1)
    gram: tuple[tuple[float, ...], ...]
    groups: tuple[tuple[int, ...], ...] = WHOLE
    back_projection: float = Field(default=0.0, ge=0, le=2)
    items: int = 0
    source: str = ""
    held_out: dict[str, float] = {}

    @model_validator(mode="after")
    def _check(self) -> BaseRecord:
        side = len(self.experts) * len(BAND_NAMES)
        if len(self.gram) != side or any(len(row) != side for row in self.gram):
            raise ValueError(f"gram must be {side}x{side} for {len(self.experts)} experts")
        if not all(math.isfinite(value) for row in self.gram for value in row):
            raise ValueError("gram holds numbers that are not finite")
        if sorted(chain.from_iterable(self.groups)) != list(range(len(BAND_NAMES))):
            raise ValueError(f"groups {self.groups} do not name each of {len(BAND_NAMES)} bands once")
        return self

    @property
    def fitted(self) -> bool:
        """False for the plain mean that stands in before any fit."""
        return self.items > 0

    @classmethod
    def mean_of(cls, experts: Sequence[str]) -> BaseRecord:
        """Not fitted: equal, unrelated errors, for which least squares gives every subset its plain mean."""
        side = len(experts) * len(BAND_NAMES)
        return cls(experts=tuple(experts), gram=tuple(tuple(float(i == j) for j in range(side)) for i in range(side)))

    def solve(self, experts: Sequence[str]) -> tuple[tuple[float, ...], ...]:
        """Weights (G, E) of a subset, in its order: least squares with the sum over experts held at 1 in each group."""
        members = [self.experts.index(name) for name in experts]
        side = len(self.experts), len(BAND_NAMES)
        gram_EKEK = np.array(self.gram).reshape(side + side)[members][:, :, members]
        return tuple(map(tuple, solve_weights(gram_EKEK, self.groups).tolist()))


def solve_weights(gram_EKEK: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean error products -> weights (G, E) of least expected squared error, each group's summing to 1."""
    experts, bands = gram_EKEK.shape[:2]
    share_KG = np.zeros((bands, len(groups)))
    for index, group in enumerate(groups):
        share_KG[list(group), index] = 1
    unknowns = experts * len(groups)
    gram = np.einsum("ekfl,kg,lh->egfh", gram_EKEK, share_KG, share_KG).reshape(unknowns, unknowns)
    sums = np.tile(np.eye(len(groups)), experts)
    scale = np.trace(gram) / unknowns or 1.0
    system = np.block([[gram / scale, sums.T], [sums, np.zeros((len(groups), len(groups)))]])
    right = np.concatenate([np.zeros(unknowns), np.ones(len(groups))])
    # Minimum norm: experts that are copies of each other share their weight instead of making the system fail.
    solution = np.linalg.lstsq(system, right, rcond=1e-12)[0]
    return solution[:unknowns].reshape(experts, len(groups)).T


class BaseBlend(nn.Module):
    """Applies the record. It has no parameters; its state is bytes in the state dict, which no cast to half rounds."""

    def __init__(self, record: BaseRecord, scale: int = SCALE) -> None:
        super().__init__()
        self.scale = scale
        self.set_record(record)

    def set_record(self, record: BaseRecord) -> None:
        """Adopt a base and solve the subsets' weights ahead."""
        self.record = record
        names = record.experts
        self._solved = {names: record.solve(names)}
        if len(names) <= _SOLVED_AHEAD:
            subsets = chain.from_iterable(combinations(names, size) for size in range(1, len(names)))
            self._solved |= {subset: record.solve(subset) for subset in subsets}

    def weights(self, experts: Sequence[str]) -> tuple[tuple[float, ...], ...]:
        """(G, E) weights of these experts, in this order; the finest band's group last."""
        order = tuple(name for name in self.record.experts if name in experts)
        if len(order) != len(experts):
            unknown = next((name for name in experts if name not in self.record.experts), "")
            cure = nearest(unknown, self.record.experts) if unknown else "name each expert once"
            raise Refusal(f"the base has no weights for {', '.join(experts)}", where="base", cure=cure)
        if order not in self._solved:
            self._solved[order] = self.record.solve(order)
        solved = self._solved[order]
        return tuple(tuple(row[order.index(name)] for name in experts) for row in solved)

    def forward(self, lr_BCHW: Tensor, sr_BECHW: Tensor, experts: Sequence[str]) -> Tensor:
        """(B, 3, H, W), (B, E, 3, sH, sW) -> (B, 3, sH, sW)."""
        return back_project(self.blend(sr_BECHW, experts), lr_BCHW, self.record.back_projection, self.scale)

    def blend(self, sr_BECHW: Tensor, experts: Sequence[str]) -> Tensor:
        """The least-squares blend alone: (B, E, 3, sH, sW) -> (B, 3, sH, sW)."""
        weights_GE = self.weights(experts)
        if len(weights_GE) == 1:
            return weighted_sum(sr_BECHW, weights_GE[0])
        low, mid, high = (weights_GE[self._group_of(band)] for band in range(len(BAND_NAMES)))
        image_BCHW = weighted_sum(sr_BECHW, high)
        with torch.autocast(sr_BECHW.device.type, enabled=False):
            # As the bands of each blend summed up, in two blurs for all: of what the coarser band's weights change.
            for sigma, coarser, finer in zip(_SIGMAS, (low, mid), (mid, high), strict=True):
                if coarser != finer:
                    change_E = [one - other for one, other in zip(coarser, finer, strict=True)]
                    image_BCHW = image_BCHW + blur(weighted_sum(sr_BECHW, change_E), sigma)
        return image_BCHW

    def _group_of(self, band: int) -> int:
        return next(index for index, group in enumerate(self.record.groups) if band in group)

    def get_extra_state(self) -> Tensor:
        """The record as UTF-8 bytes."""
        return torch.tensor(list(self.record.model_dump_json().encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """The record back from its bytes."""
        self.set_record(BaseRecord.model_validate(json.loads(bytes(state.tolist()))))


def weighted_sum(sr_BECHW: Tensor, weights_E: Iterable[float]) -> Tensor:
    """Sum of the experts' images times their weights, in order."""
    images = sr_BECHW.unbind(dim=1)
    terms = [image * weight for image, weight in zip(images, weights_E, strict=True)]
    return sum(terms[1:], terms[0])
