"""Uploaded files -> jobs with their sizes, or a message for each that cannot be used."""

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
    """What one job may upload."""

    megabytes: float = 32.0  # of one file
    pixels: int = 1 << 19  # of one input: the studio keeps every picture and map of it at 16 times that size
    images: int = 16


def accept_uploads(paths: Sequence[Path], folder: Path, limits: Limits) -> tuple[list[Sized], list[str]]:
    """Jobs whose outputs go to `folder`/NUMBER/out/NAME, so that equal names do not meet; messages for the others."""
    if not paths:
        raise Refusal("no image was given", where="studio", cure="drop one first")
    if len(paths) > limits.images:
        cure = "drop fewer at a time, or use infer.py for whole folders"
        raise Refusal(f"{len(paths)} images are more than {limits.images}", where="studio", cure=cure)
    accepted: list[Sized] = []
    refused: list[str] = []
    for number, path in enumerate(paths):
        measured = _measure(path, folder / str(number), limits)
        if isinstance(measured, Sized):
            accepted.append(measured)
        else:
            refused.append(user_message(measured))
    return accepted, refused


def user_message(refusal: Refusal) -> str:
    """For a visitor, who knows files by their names only."""
    where = Path(refusal.where).name if "/" in refusal.where else refusal.where
    return f"{where}: {refusal.what}; {refusal.cure}."


def _measure(path: Path, folder: Path, limits: Limits) -> Sized | Refusal:
    # Size first, then the header's dimensions: a bomb is refused before it is decoded.
    megabytes = path.stat().st_size / 1e6
    if megabytes > limits.megabytes:
        what = f"is {megabytes:.1f} MB, more than the {limits.megabytes:g} MB that the studio accepts"
        return Refusal(what, where=path, cure="use infer.py for it")
    sized, refused = measure_jobs(make_jobs(path, folder / "out"))
    if refused:
        return refused[0][1]
    (one,) = sized
    if one.height * one.width > limits.pixels:
        what = f"is {one.width}x{one.height}, more than the {limits.pixels:,} pixels that the studio accepts"
        return Refusal(what, where=path, cure="cut it to a smaller part, or use infer.py for it")
    return one
