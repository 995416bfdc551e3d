"""`python -m experts bench-native`: the tables that were asked for, as text and as a document."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.native.cost import as_json, as_markdown, bench, machine
from benchmarks.native.fold import bench_fold, fold_json, fold_markdown
from benchmarks.native.quality import measure_quality, quality_json, quality_markdown
from experts.open import open_experts
from imaging.degrade import DegradeSettings
from imaging.refusal import Refusal
from imaging.settings import load_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def measure(options: argparse.Namespace) -> tuple[str, dict[str, object]]:
    """Costs, what folding saves, quality: each that `--what` names."""
    on, threads = machine(), options.threads
    texts = [
        "# Native experts: measured\n",
        f"{time.strftime('%Y-%m-%d')}, `python -m experts bench-native {shlex.join(options.words[1:])}`, "
        f"torch {on['torch']}, CPU {on['processor']}, float32.\n",
    ]
    document: dict[str, object] = {**on, "threads": threads, "repeats": options.repeats}
    if "cost" in options.what:
        costs = bench(options.size, threads=threads, repeats=options.repeats, only=options.network)
        texts.append(as_markdown(costs, threads=threads, repeats=options.repeats))
        document["cost"] = as_json(costs)
    if "fold" in options.what:
        folded = bench_fold(min(options.size), threads=threads, pairs=options.pairs, only=options.network)
        texts.append(fold_markdown(folded, threads=threads))
        document["fold"] = fold_json(folded)
    if "quality" in options.what:
        experts = open_experts(options.experts, config=options.config)
        mixed = None if options.degrade is None else load_settings(DegradeSettings, options.degrade)
        scores = measure_quality(experts, _named_folders(options.hr), images=options.images, mixed=mixed)
        texts.append(quality_markdown(scores))
        document["quality"] = quality_json(scores)
    return "\n".join(texts), document


def _named_folders(words: Sequence[str]) -> dict[str, Path]:
    """NAME=FOLDER words."""
    named: dict[str, Path] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not (name and equals and folder) or name in named:
            raise Refusal(f"'{word}' is not NAME=FOLDER with a name of its own", where="--hr", cure="write Set5=DIR/HR")
        named[name] = Path(folder)
    return named
