"""A fusion source -> the initial statistics of a run: the base, and every feature channel's mean and spread.

Done once per run and kept in its folder; a resumed run and the other processes read that file.
Axes: B batch, C an expert's feature channels, N the pixels of a batch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusion.network.base.blend import BaseRecord
from fusion.network.base.fit import fit_base
from imaging.atomic import write_text
from imaging.refusal import Refusal
from imaging.settings import Settings, parse_settings
from imaging.tensors.seal import read_json, sealed, unsealed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from fusion.training.sources.batch import FusionSource, TrainBatch

Moments = dict[str, tuple[Tensor, Tensor]]  # expert -> mean (C), spread (C)


def fit_moments(items: Iterable[Mapping[str, Tensor]]) -> Moments:
    """Features by expert, each (B, C, H, W), one item after the other -> their moments; a flat channel has spread 1."""
    sums: dict[str, Tensor] = {}
    for feats in items:
        for name, feat_BCHW in feats.items():
            # float64: the variance is a difference of two large sums.
            feat_CN = feat_BCHW.transpose(0, 1).flatten(1).double()
            count_C = torch.full_like(feat_CN[:, 0], feat_CN.shape[1])
            terms_3C = torch.stack([count_C, feat_CN.sum(1), feat_CN.square().sum(1)])
            sums[name] = sums.get(name, torch.zeros_like(terms_3C)) + terms_3C
    return {name: _moments(name, terms_3C) for name, terms_3C in sums.items()}


def _moments(name: str, terms_3C: Tensor) -> tuple[Tensor, Tensor]:
    if not terms_3C.isfinite().all():
        raise Refusal("its features are not finite", where=f"expert {name}", cure="verify the cache")
    count_C, sum_C, square_C = terms_3C
    mean_C = sum_C / count_C
    spread_C = (square_C / count_C - mean_C.square()).clamp(min=0).sqrt().float()
    # A dead channel has spread 0: dividing by it would make every later value infinite.
    return mean_C.float(), torch.where(spread_C > 0, spread_C, torch.ones_like(spread_C))


FILE = "base.json"


class Channels(Settings):
    """Mean and spread of each feature channel of an expert."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]


class InitialStatistics(Settings):
    """All of it, and the data it was measured on."""

    fingerprint: str
    base: BaseRecord
    features: dict[str, Channels]

    @property
    def moments(self) -> Moments:
        """As the network takes them."""
        return {name: (torch.tensor(one.mean), torch.tensor(one.spread)) for name, one in self.features.items()}


def initial_statistics_of(source: FusionSource, run: Path) -> InitialStatistics:
    """Read from the run's folder if they are there and of this data, else measured and written."""
    path = run / FILE
    if path.exists():
        cure = "remove it: it is measured again"
        document = unsealed(read_json(path, cure=cure), path, cure=cure)
        found = parse_settings(InitialStatistics, document, where=str(path))
        if found.fingerprint == source.fingerprint:
            return found
    statistics = _measure(source)
    write_text(path, json.dumps(sealed(statistics.model_dump(mode="json"))))
    return statistics


def _measure(source: FusionSource) -> InitialStatistics:
    items = (item for batch in source.fit_items() for item in _items(batch))
    names = [slot.name for slot in source.slots]
    base = fit_base(items, names, border=source.fit_border, source=source.fingerprint)
    moments = fit_moments(batch.feats for batch in source.feature_items())
    features = {
        name: Channels(mean=tuple(mean_C.tolist()), spread=tuple(spread_C.tolist()))
        for name, (mean_C, spread_C) in moments.items()
    }
    return InitialStatistics(fingerprint=source.fingerprint, base=base, features=features)


def _items(batch: TrainBatch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each image of a batch by itself: the experts' (E, 3, sH, sW), the truth (3, sH, sW), the LR (3, H, W)."""
    assert batch.sr_BECHW is not None
    return zip(batch.sr_BECHW, batch.hr_BCHW, batch.lr_BCHW, strict=True)
