"""Scores and averaged weights -> the best few by PSNR as ready-to-use files; ties go to the earlier step."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Ranked = list[tuple[float, int]]  # (PSNR, step), best first


def best_path(folder: Path, step: int) -> Path:
    """Where the averaged weights after `step` steps lie while they are among the best."""
    return folder / f"step_{step:08d}.safetensors"


def keep_best(
    ranked: Ranked, psnr: float, step: int, *, most: int, folder: Path, write: Callable[[Path], None]
) -> Ranked:
    """Enter (psnr, step); write its file if it is among the best `most`, remove the one that fell out."""
    others = [entry for entry in ranked if entry[1] != step]
    ordered = sorted([*others, (psnr, step)], key=lambda entry: (-entry[0], entry[1]))
    kept = ordered[:most]
    if (psnr, step) in kept:
        write(best_path(folder, step))
    for _, fallen in ordered[most:]:
        best_path(folder, fallen).unlink(missing_ok=True)
    return kept
