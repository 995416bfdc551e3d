"""`python -m fusion fit-base CACHE --out FILE`: a fusion model without a learned part, fitted in one pass over a cache.

The base alone (least squares by frequency band, back-projection): what every training starts from and is judged
against. For experts of which only images are there, or where nothing learned has passed the gate.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tqdm import tqdm

from cache_tools.format.location import parse_location
from cache_tools.storage.item_cache import add_local_cache_arguments, set_local_cache
from fusion.network.base.fit import fit_base
from fusion.network.interface import TrainingRecord
from fusion.network.network import FusionSR
from fusion.network.save import save_model
from fusion.network.settings import FusionSettings
from fusion.training.settings import TrainSettings
from fusion.training.sources.cache import CacheSource
from imaging.command import DONE, CommandParser, output_file, print_json
from imaging.settings import parse_settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

log = logging.getLogger(__name__)
_PHASES = ("bands", "cross_band", "collaboration", "hierarchy", "gating", "refine", "edges")


def main(arguments: Sequence[str]) -> int:
    """Fit, write."""
    parser = CommandParser(prog="python -m fusion fit-base", description=__doc__)
    parser.add_argument(
        "cache", type=parse_location, help="a cache with HR images, see `python -m cache_tools extract`"
    )
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE", help="the model, as .safetensors")
    parser.add_argument("--note", default="", help="kept in the model: for example what the images are")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_local_cache_arguments(parser)
    words = parser.parse_args(arguments)
    set_local_cache(words)
    model = fit_model(words.cache, words.note)
    save_model(model, words.out)
    base = model.base.record
    if words.json:
        print_json({"model": words.out, "items": base.items, "held_out": base.held_out})
    else:
        log.info("%s: the base of %s, fitted on %d items", words.out, ", ".join(base.experts), base.items)
    return DONE


def fit_model(cache: Path | str, note: str = "") -> FusionSR:
    """Every upright item of the cache but one (sources hold out at least that) -> a model whose output is the base."""
    document = {"task": "fusion", "run": ".", "steps": 1, "network": {"name": "fusion"}}
    settings = parse_settings(
        TrainSettings, {**document, "data": {"cache": str(cache), "hold_out": 1, "patch": 8}}, where="fit-base"
    )
    source = CacheSource(settings)
    items = (
        item
        for batch in tqdm(source.fit_items(), desc="fit", unit="item")
        if batch.sr_BECHW is not None
        for item in zip(batch.sr_BECHW, batch.hr_BCHW, batch.lr_BCHW, strict=True)
    )
    names = [slot.name for slot in source.slots]
    base = fit_base(items, names, border=source.fit_border, source=source.fingerprint)
    off = {phase: {"enabled": False} for phase in _PHASES}
    slots = [slot.model_copy(update={"channels": 0}).model_dump() for slot in source.slots]
    fusion = parse_settings(FusionSettings, {**off, "experts": slots, "scale": source.scale}, where="fit-base")
    record = TrainingRecord(
        verdict="base", details={"note": note} if note else {}, expert_specs=dict(source.expert_specs)
    )
    return FusionSR(fusion, base, record)
