"""`python -m fusion ablate --config FILE --cache DIR`: variants of a network, trained alike over seeds -> one table."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_tools.format.location import parse_location
from cache_tools.storage.item_cache import add_local_cache_arguments, set_local_cache
from fusion.network.settings import FusionSettings
from fusion.training.loop.loop import train
from fusion.training.settings import TrainSettings
from fusion.training.sources.cache import CacheSource
from fusion.training.tasks.fusion import FusionTask
from fusion.training.tasks.initial_statistics import FILE as STATISTICS_FILE
from fusion.training.tasks.initial_statistics import initial_statistics_of
from imaging.atomic import write_text
from imaging.command import DONE, CommandParser, print_json
from imaging.refusal import Refusal, nearest
from imaging.settings import load_settings, parse_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

PHASES = ("bands", "cross_band", "collaboration", "hierarchy", "gating", "refine", "edges", "consistency", "envelope")
CONFIGURED = "as configured"


def main(arguments: Sequence[str]) -> int:
    """Train each variant with each seed on the same data and steps; one that is finished is not trained again."""
    parser = CommandParser(prog="python -m fusion ablate", description="train variants and compare them")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--cache", type=parse_location, required=True, help="a folder, or s3://BUCKET/CACHE")
    add_local_cache_arguments(parser)
    parser.add_argument("--only", help="these variants, separated by commas")
    parser.add_argument("--seeds", default="0", help="train each once per seed, separated by commas")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    words = parser.parse_args(arguments)
    set_local_cache(words)
    settings = load_settings(TrainSettings, words.config, [*words.overrides, f"data.cache={words.cache}"])
    variants = variants_of(settings.network.settings)
    names = words.only.split(",") if words.only else list(variants)
    for name in names:
        if name not in variants:
            raise Refusal(f"unknown variant '{name}'", where="--only", cure=nearest(name, variants))
    seeds = _seeds(words.seeds)
    settings = with_the_same_images_held_out(settings)
    initial_statistics_of(CacheSource(settings), settings.run)
    rows = {name: summarize([run_variant(settings, name, variants[name], seed) for seed in seeds]) for name in names}
    write_text(settings.run / "ablation.json", json.dumps(rows, indent=2) + "\n")
    if words.json:
        print_json(rows)
    else:
        sys.stdout.write(table(rows))
    return DONE


def variants_of(configured: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Variant -> what it changes in network.settings: each phase that is on, off; each that is off, on."""
    settings = parse_settings(FusionSettings, configured, where="network.settings")
    variants: dict[str, dict[str, Any]] = {CONFIGURED: {}}
    if settings.reads_features:
        variants["no features"] = {"features": "none"}
    for phase in PHASES:
        enabled = getattr(settings, phase).enabled
        variants[f"{'no' if enabled else 'with'} {phase}"] = {phase: {"enabled": not enabled}}
    return variants


def with_the_same_images_held_out(settings: TrainSettings) -> TrainSettings:
    """A variant's seed changes initial weights and patches, not the held-out images."""
    if settings.data.hold_out_seed is not None:
        return settings
    return settings.model_copy(update={"data": settings.data.model_copy(update={"hold_out_seed": settings.seed})})


def run_variant(settings: TrainSettings, name: str, change: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train one variant in a folder of its own (or read its summary), and return its row."""
    network = settings.network.model_copy(update={"settings": merged(settings.network.settings, change)})
    run = settings.run / f"{name.replace(' ', '_')}-{seed}"
    variant = settings.model_copy(update={"network": network, "run": run, "seed": seed})
    summary_path = run / "summary.json"
    if not (run / STATISTICS_FILE).exists():  # the same for all: measured once
        write_text(run / STATISTICS_FILE, (settings.run / STATISTICS_FILE).read_text(encoding="utf-8"))
    if summary_path.exists():
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
    else:
        summary = train(
            variant, lambda rank, world: FusionTask(variant, CacheSource(variant, rank, world)), resume=True
        )
    gate, scores = summary["gate"], summary["gate_scores"]
    return {
        "seed": seed,
        "psnr_y": scores["fused"]["psnr_y"],
        "ssim_y": scores["fused"]["ssim_y"],
        "base_psnr_y": scores["base"]["psnr_y"],
        "gain_db": gate["gain_db"],
        "low_db": gate["low_db"],
        "high_db": gate["high_db"],
        "passed": gate["passed"],
    }


def merged(settings: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A variant's change laid over the config's own network settings, section by section."""
    result = dict(settings)
    for key, value in change.items():
        result[key] = {**result.get(key, {}), **value} if isinstance(value, dict) else value
    return result


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The runs of one variant -> their means, the spread of the gain over seeds, and the runs themselves."""
    keys = ("psnr_y", "ssim_y", "base_psnr_y", "gain_db", "low_db", "high_db")
    means = {key: statistics.fmean(run[key] for run in runs) for key in keys}
    spread = statistics.stdev(run["gain_db"] for run in runs) if len(runs) > 1 else None
    return {**means, "spread_db": spread, "passed": sum(run["passed"] for run in runs), "runs": runs}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Aligned text, the untrained base first; gain, its spread over seeds and the mean of its intervals over images."""
    first = next(iter(rows.values()))
    lines = [f"{'variant':<20}{'PSNR-Y':>9}{'SSIM-Y':>9}{'vs base':>9}{'+- seeds':>10}   95% over images      gate"]
    lines.append(f"{'base only':<20}{first['base_psnr_y']:>9.3f}")
    for name, row in rows.items():
        interval = f"{row['low_db']:+.4f} to {row['high_db']:+.4f}"
        spread = "-" if row["spread_db"] is None else f"{row['spread_db']:.4f}"
        passed = f"passed {row['passed']} of {len(row['runs'])}"
        lines.append(
            f"{name:<20}{row['psnr_y']:>9.3f}{row['ssim_y']:>9.4f}{row['gain_db']:>+9.4f}{spread:>10}   {interval}"
            f"   {passed}"
        )
    return "\n".join(lines) + "\n"


def _seeds(words: str) -> list[int]:
    try:
        seeds = [int(word) for word in words.split(",")]
    except ValueError:
        raise Refusal(f"'{words}' are not seeds", where="--seeds", cure="write numbers, as in 0,1,2") from None
    if len(set(seeds)) != len(seeds):
        raise Refusal(f"'{words}' names a seed twice", where="--seeds", cure="name each once")
    return seeds
