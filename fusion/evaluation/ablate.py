"""`python -m fusion ablate --config FILE --cache DIR`: the variants of a network, trained alike, in one table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusion.training.cache_source import CacheSource
from fusion.training.fusion_task import FusionTask
from fusion.training.loop import train
from fusion.training.settings import TrainSettings
from imaging.atomic import write_text
from imaging.command import DONE, print_json
from imaging.refusal import Refusal, nearest
from imaging.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

PHASES = ("bands", "cross_band", "collaboration", "hierarchy", "gating", "refine", "edges")
# Variant -> what it changes in network.settings. "base only" is not trained: it is a row of every variant's table.
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "no features": {"features": "none"},
    **{f"no {phase}": {phase: {"enabled": False}} for phase in PHASES},
}


def main(arguments: Sequence[str]) -> int:
    """Train each variant with the same seed, data and steps; one that is finished is not trained again."""
    parser = argparse.ArgumentParser(prog="python -m fusion ablate", description="train variants and compare them")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--only", help="these variants, separated by commas")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    words = parser.parse_args(arguments)
    settings = load_settings(TrainSettings, words.config, [*words.overrides, f"data.cache={words.cache}"])
    names = words.only.split(",") if words.only else list(VARIANTS)
    rows = {name: run_variant(settings, name) for name in names}
    write_text(settings.run / "ablation.json", json.dumps(rows, indent=2) + "\n")
    if words.json:
        print_json(rows)
    else:
        sys.stdout.write(table(rows))
    return DONE


def run_variant(settings: TrainSettings, name: str) -> dict[str, Any]:
    """Train one variant in a folder of its own (or read what it came to), and return its row."""
    if name not in VARIANTS:
        raise Refusal(f"unknown variant '{name}'", where="--only", cure=nearest(name, VARIANTS))
    network = settings.network.model_copy(update={"settings": merged(settings.network.settings, VARIANTS[name])})
    run = settings.run / name.replace(" ", "_")
    variant = settings.model_copy(update={"network": network, "run": run})
    summary_path = run / "summary.json"
    if summary_path.exists():
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
    else:
        summary = train(
            variant, lambda rank, world: FusionTask(variant, CacheSource(variant, rank, world)), resume=True
        )
    gate, scores = summary["gate"], summary["gate_scores"]
    return {
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


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Aligned text, the untrained base first."""
    first = next(iter(rows.values()))
    lines = [f"{'variant':<18}{'PSNR-Y':>9}{'SSIM-Y':>9}{'vs base':>9}   95% interval       gate"]
    lines.append(f"{'base only':<18}{first['base_psnr_y']:>9.3f}")
    for name, row in rows.items():
        interval = f"{row['low_db']:+.4f} to {row['high_db']:+.4f}"
        passed = "passed" if row["passed"] else "base shipped"
        lines.append(
            f"{name:<18}{row['psnr_y']:>9.3f}{row['ssim_y']:>9.4f}{row['gain_db']:>+9.4f}   {interval}  {passed}"
        )
    return "\n".join(lines) + "\n"
