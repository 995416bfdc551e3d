"""A catalog -> the table of `python -m experts list`: which experts are known, which weights are here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from experts.loading.weights import find_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from experts.catalog import Catalog

LISTED_SET = "Set5"


@dataclass(frozen=True)
class ListedExpert:
    """One line of `python -m experts list`."""

    name: str
    title: str
    architecture: str | None
    parameters: int | None
    measured: dict[str, float]
    published: dict[str, float]
    present: bool
    file: str
    licence: str
    page: str


def listed(catalog: Catalog) -> list[ListedExpert]:
    """Every known expert and whether its weights are there (presence only; `check` verifies)."""
    lines = []
    for spec in catalog.experts:
        found = find_weights(spec)
        source = found[1] if found else spec.weights[0]
        path: Path | None = found[0] if found else None
        lines.append(
            ListedExpert(
                name=spec.name,
                title=spec.title or spec.name,
                architecture=spec.architecture,
                parameters=spec.parameters,
                measured=spec.measured,
                published=spec.published,
                present=path is not None,
                file=str(path or source.file),
                licence=source.licence,
                page=source.page,
            )
        )
    return lines


def listing(lines: Sequence[ListedExpert]) -> list[str]:
    """The table that `python -m experts list` prints."""
    table = [
        f"{'':9}{'expert':10} {'size':>8}  {LISTED_SET + ' dB':>11}  licence      file (dB: measured here/published)"
    ]
    for line in lines:
        size = f"{line.parameters / 1e6:6.2f} M" if line.parameters else "       -"
        state = "here   " if line.present else "missing"
        both = (line.measured, line.published)
        score = "/".join(f"{one[LISTED_SET]:.2f}" if LISTED_SET in one else "-" for one in both)
        table.append(f"{state}  {line.name:10} {size}  {score:>11}  {line.licence:12} {line.file}  ({line.title})")
    return table
