"""`python -m fusion analyze CACHE`: what fusion could gain from this cache, before any training."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cache_tools.format.location import parse_location
from cache_tools.storage.item_cache import add_local_cache_arguments, set_local_cache
from fusion.evaluation.headroom import LEAST_SQUARES, analyze
from imaging.command import DONE, CommandParser, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion.evaluation.headroom import Headroom


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = CommandParser(prog="python -m fusion analyze", description="the headroom of a cache")
    parser.add_argument("cache", type=parse_location, help="the cache to measure on; it must hold HR images")
    parser.add_argument("--fit", type=parse_location, help="fit the blends on this cache instead of on the same one")
    parser.add_argument("--experts", help="only these, separated by commas")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    add_local_cache_arguments(parser)
    words = parser.parse_args(arguments)
    set_local_cache(words)
    found = analyze(words.cache, words.fit, words.experts.split(",") if words.experts else None)
    if words.json:
        print_json(_document(found))
    else:
        sys.stdout.write(_text(found))
    return DONE


def _text(found: Headroom) -> str:
    width = max(len(name) for name in found.experts)
    lines = [
        found.table.text(LEAST_SQUARES),
        "",
        f"blends were fitted on {found.fitted_on}; weights ({', '.join(found.experts)}):",
    ]
    lines += [f"  {name}: {weights}" for name, weights in found.weights.items()]
    lines.append(f"back-projection onto the LR image: strength {found.back_projection}")
    lines += ["", "correlation of the errors:"]
    lines += [f"  {name:<{width}} {row}" for name, row in zip(found.experts, found.correlation, strict=True)]
    lines += ["", "dB lost by leaving one out:"]
    lines += [f"  {name:<{width}} {loss:.4f}" for name, loss in found.without.items()]
    return "\n".join([*lines, "", found.sentence, ""])


def _document(found: Headroom) -> dict[str, object]:
    return {
        "scores": found.table.as_dict(),
        "left_out": sorted(found.table.left_out),
        "experts": found.experts,
        "fitted_on": found.fitted_on,
        "weights": found.weights,
        "back_projection": found.back_projection,
        "correlation": found.correlation,
        "loss_without": found.without,
        "sentence": found.sentence,
    }
