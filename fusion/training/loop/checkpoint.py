"""The whole state of training <-> one file, written at once or not at all; beside it the best averaged weights by PSNR.

Old checkpoints are removed, milestones stay; of equal scores the earlier step is kept.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import torch

from imaging.atomic import atomic_path, remove_dead_temporaries
from imaging.refusal import Refusal
from imaging.tensors.seal import sealed, unsealed
from imaging.tensors.unpickle import load_tensors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fusion.training.settings import CheckpointSettings

Ranked = list[tuple[float, int]]  # (merit: PSNR, or what the task judges by; step), best first


def best_path(folder: Path, step: int) -> Path:
    """Where the averaged weights after `step` steps lie while they are among the best."""
    return folder / f"step_{step:08d}.safetensors"


def keep_best(
    ranked: Ranked, psnr: float, step: int, *, most: int, folder: Path, write: Callable[[Path], None]
) -> Ranked:
    """Insert (psnr, step); write its file if it is among the best `most`, remove the one that fell out."""
    # A resumed run validates a step again that it had already: it replaces its own entry.
    others = [entry for entry in ranked if entry[1] != step]
    ordered = sorted([*others, (psnr, step)], key=lambda entry: (-entry[0], entry[1]))
    kept = ordered[:most]
    if (psnr, step) in kept:
        write(best_path(folder, step))
    for _, fallen in ordered[most:]:
        best_path(folder, fallen).unlink(missing_ok=True)
    return kept


log = logging.getLogger(__name__)
FORMAT = 1
_CURE = "remove it and resume again: the checkpoint before it is taken"
_NAME = re.compile(r"^step_(\d{8})\.pt$")


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the state after `step` steps lies."""
    return folder / f"step_{step:08d}.pt"


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of every finished checkpoint, oldest first."""
    if not folder.is_dir():
        return []
    found = [(_NAME.match(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], settings: CheckpointSettings) -> Path:
    """Write the state after `step` steps, then remove those that are not to be kept."""
    final = checkpoint_path(folder, step)
    with atomic_path(final) as temporary:
        torch.save(sealed({"format": FORMAT, "step": step, **state}), temporary)
    steps = [(at, path) for at, path in list_checkpoints(folder) if at % settings.milestone]
    for _, path in steps[: -settings.last]:
        path.unlink()
    return final


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are ever unpickled, and only from bytes that are whole."""
    state = unsealed(load_tensors(path, cure=_CURE), path, cure=_CURE)
    if state.get("format") != FORMAT:
        raise Refusal("is a checkpoint of another format", where=path, cure="resume with the version that wrote it")
    return state


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest finished checkpoint; temporary files of dead writers are cleared away."""
    if folder.is_dir():
        remove_dead_temporaries(folder)
    found = list_checkpoints(folder)
    return found[-1][1] if found else None
