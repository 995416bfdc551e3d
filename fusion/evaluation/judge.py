"""`python -m fusion judge MODEL CACHE...`: a fusion model on benchmark caches -> scores, gains over its experts.

Each cache holds a benchmark's images, run through the model's experts. Axes: B batch, E experts, C = 3, H and W (HR).
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from cache_tools.format.location import name_of, parse_location
from cache_tools.read.reader import CacheReader
from cache_tools.storage.item_cache import add_local_cache_arguments, set_local_cache
from fusion.network.network import load_model
from fusion.training.judge.gate import GateDecision, paired_bootstrap
from fusion.training.judge.scores import ScoreTable
from imaging.command import DONE, CommandParser, print_json
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion.network import FusionSR

FUSED, BASE, LEAST_SQUARES, MEAN = "fused", "base", "least squares", "mean"
CONFIDENCE, RESAMPLES, SEED = 0.95, 10_000, 0


def main(arguments: Sequence[str]) -> int:
    """Score every cache and print one table for each."""
    parser = CommandParser(prog="python -m fusion judge", description="a fusion model against its experts")
    parser.add_argument("model", type=Path, help="a fusion model file or folder")
    parser.add_argument("cache", type=parse_location, nargs="+", help="caches of benchmark images with HR")
    parser.add_argument("--experts", help="only these of the model's experts, separated by commas")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_local_cache_arguments(parser)
    words = parser.parse_args(arguments)
    set_local_cache(words)
    model = load_model(words.model).eval()
    experts = words.experts.split(",") if words.experts else list(model.settings.names)
    tables = {name_of(cache): measure(model, cache, experts) for cache in words.cache}
    if words.json:
        print_json({name: as_document(table, experts) for name, table in tables.items()})
    else:
        sys.stdout.write("\n".join(as_text(name, table, experts) for name, table in tables.items()))
    return DONE


def measure(model: FusionSR, cache: Path | str, experts: Sequence[str]) -> ScoreTable:
    """Every item of a cache: each expert, their mean, least squares, the base, the fused image."""
    reader = CacheReader(cache, experts=experts, features=model.settings.reads_features)
    model.settings.check_weights(reader.recipe.weights(experts))
    if not reader.has_hr:
        raise Refusal("has no HR images to measure against", where=cache, cure="extract it with HR images")
    table = ScoreTable()
    for entry in tqdm(reader.entries, desc=name_of(cache), unit="item", disable=None):
        batch = reader.read(entry.id)
        assert batch.hr_BCHW is not None
        with torch.no_grad():
            output = model(batch.lr_BCHW, batch.sr_BECHW, batch.feats, batch.experts)
            images = {name: batch.sr_BECHW[:, index] for index, name in enumerate(batch.experts)}
            images[MEAN] = batch.sr_BECHW.mean(1)
            images[LEAST_SQUARES] = model.base.blend(batch.sr_BECHW, batch.experts)
            images |= {BASE: output.base_BCHW, FUSED: output.image_BCHW}
        for name, image_BCHW in images.items():
            table.add(name, entry.id, image_BCHW, batch.hr_BCHW)
    table.require_scores()
    return table


def rivals(table: ScoreTable, experts: Sequence[str]) -> list[str]:
    """Those the fused image is compared with: the best expert, the mean, least squares, the base."""
    best = max(experts, key=lambda name: table.mean(name)[0])
    return [best, MEAN, LEAST_SQUARES, BASE]


def against(table: ScoreTable, rival: str) -> GateDecision:
    """Paired bootstrap of the fused image's PSNR over a rival's, image by image."""
    ours, theirs = table.decibels(FUSED), table.decibels(rival)
    own_image = {item: item for item in ours}
    return paired_bootstrap(ours, theirs, own_image, confidence=CONFIDENCE, resamples=RESAMPLES, seed=SEED)


def as_text(name: str, table: ScoreTable, experts: Sequence[str]) -> str:
    """The scores, and the differences with their intervals."""
    lines = [f"{name}:", table.text(FUSED), ""]
    for rival in rivals(table, experts):
        verdict = against(table, rival)
        ours, theirs = table.decibels(FUSED), table.decibels(rival)
        better = sum(ours[item] > theirs[item] for item in ours)
        interval = f"{verdict.low_db:+.4f} to {verdict.high_db:+.4f}"
        lines.append(f"  fused against {rival}: {verdict.gain_db:+.4f} dB ({interval} at 95 %)")
        lines[-1] += f", better on {better} of {len(ours)} images"
    return "\n".join([*lines, "", ""])


def as_document(table: ScoreTable, experts: Sequence[str]) -> dict[str, Any]:
    """The same for programs."""
    gains = {rival: asdict(against(table, rival)) for rival in rivals(table, experts)}
    return {"scores": table.as_dict(), "left_out": sorted(table.left_out), "fused_against": gains}
