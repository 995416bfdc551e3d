"""Files that a visitor dropped -> jobs with their sizes, or a sentence for each that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.inference.jobs import Sized, make_jobs, measure_jobs
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Limits:
    """What one job may bring."""

    megabytes: float = 32.0  # of one file
    pixels: int = 1 << 19  # of one image before it is enlarged
    images: int = 16


def take_in(paths: Sequence[Path], folder: Path, limits: Limits) -> tuple[list[Sized], list[str]]:
    """Jobs whose outputs go to `folder`/NUMBER/out/NAME, so that equal names do not meet; what is wrong with others."""
    if not paths:
        raise Refusal("no image was given", where="studio", cure="drop one first")
    if len(paths) > limits.images:
        cure = "drop fewer at a time, or use infer.py for whole folders"
        raise Refusal(f"{len(paths)} images are more than {limits.images}", where="studio", cure=cure)
    taken: list[Sized] = []
    amiss: list[str] = []
    for number, path in enumerate(paths):
        found = _measured(path, folder / str(number), limits)
        if isinstance(found, Sized):
            taken.append(found)
        else:
            amiss.append(sentence(found))
    return taken, amiss


def sentence(refusal: Refusal) -> str:
    """For a visitor, who knows files by their names only."""
    where = Path(refusal.where).name if "/" in refusal.where else refusal.where
    return f"{where}: {refusal.what}; {refusal.cure}."


def _measured(path: Path, folder: Path, limits: Limits) -> Sized | Refusal:
    megabytes = path.stat().st_size / 1e6
    if megabytes > limits.megabytes:
        what = f"is {megabytes:.1f} MB, more than the {limits.megabytes:g} MB that the studio takes"
        return Refusal(what, where=path, cure="use infer.py for it")
    sized, refused = measure_jobs(make_jobs(path, folder / "out"))
    if refused:
        return refused[0][1]
    (one,) = sized
    if one.height * one.width > limits.pixels:
        what = f"is {one.width}x{one.height}, more than the {limits.pixels:,} pixels that the studio takes"
        return Refusal(what, where=path, cure="cut it to a smaller part, or use infer.py for it")
    return one
