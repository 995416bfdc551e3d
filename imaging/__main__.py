"""`python -m imaging check-resize DIR`: show how closely the bicubic downscale agrees with MATLAB's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.check_resize import as_json, check_folders
from imaging.command import DONE, FAILURES_LISTED, print_json, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imaging.check_resize import Agreement


def main(arguments: Sequence[str]) -> int:
    """Run one subcommand; the exit code says whether the requirement is met."""
    parser = argparse.ArgumentParser(prog="python -m imaging", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check-resize", help="compare our x4 downscale of HR/ with the files in LRx4/")
    check.add_argument("folder", type=Path, help="holds HR/ and LRx4/, or folders that do")
    check.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    agreements = check_folders(options.folder)
    if options.json:
        print_json(as_json(agreements))
    else:
        print(_table(agreements))
    return DONE if all(agreement.passed for agreement in agreements) else FAILURES_LISTED


def _table(agreements: Sequence[Agreement]) -> str:
    """A Markdown table, ready for docs/results."""
    head = ("set", "method", "images", "pixels", "equal", "within 1 grey level", "worst")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [
        f"| {a.folder} | `{a.method}` | {a.images} | {a.pixels:,} | {a.exact:.3%} | {a.within_one:.4%} | {a.worst} |"
        for a in agreements
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run(main))
