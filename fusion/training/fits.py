"""A fusion source -> what is measured on it before the first step: the base, and the moments of the features' channels.

Done once per run and kept in its folder; a resumed run and the other processes read what was measured.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch

from fusion.base_fit import fit_base
from fusion.feature_fit import fit_moments
from fusion.network.base import BaseRecord
from imaging.atomic import write_text
from imaging.settings import Settings, parse_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from fusion.feature_fit import Moments
    from fusion.training.batch import FusionSource, TrainBatch

FILE = "base.json"


class Channels(Settings):
    """Mean and spread of each feature channel of an expert."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]


class Fits(Settings):
    """All of it, and the data it was measured on."""

    fingerprint: str
    base: BaseRecord
    features: dict[str, Channels]

    @property
    def moments(self) -> Moments:
        """As the network takes them."""
        return {name: (torch.tensor(one.mean), torch.tensor(one.spread)) for name, one in self.features.items()}


def fits_of(source: FusionSource, run: Path) -> Fits:
    """Read from the run's folder if they are there and of this data, else measured and written."""
    path = run / FILE
    if path.exists():
        found = parse_settings(Fits, json.loads(path.read_text(encoding="utf-8")), where=str(path))
        if found.fingerprint == source.fingerprint:
            return found
    fits = _measure(source)
    write_text(path, json.dumps(fits.model_dump(mode="json")))
    return fits


def _measure(source: FusionSource) -> Fits:
    items = (item for batch in source.fit_items() for item in _items(batch))
    names = [slot.name for slot in source.slots]
    base = fit_base(items, names, border=source.fit_border, source=source.fingerprint)
    moments = fit_moments(batch.feats for batch in source.feature_items())
    features = {
        name: Channels(mean=tuple(mean_C.tolist()), spread=tuple(spread_C.tolist()))
        for name, (mean_C, spread_C) in moments.items()
    }
    return Fits(fingerprint=source.fingerprint, base=base, features=features)


def _items(batch: TrainBatch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each image of a batch by itself: the experts' (E, 3, 4H, 4W), the truth (3, 4H, 4W), the LR (3, H, W)."""
    assert batch.sr_BECHW is not None
    return zip(batch.sr_BECHW, batch.hr_BCHW, batch.lr_BCHW, strict=True)
