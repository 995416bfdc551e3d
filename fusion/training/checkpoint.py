"""The whole state of training <-> one file, written at once or not at all; old ones are removed, milestones stay."""

from __future__ import annotations

import logging
import pickle
import re
from typing import TYPE_CHECKING, Any

import torch

from imaging.atomic import atomic_path, remove_dead_temporaries
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from fusion.training.settings import CheckpointSettings

log = logging.getLogger(__name__)
FORMAT = 1
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
    """Write the state after `step` steps, then let go of what need not be kept."""
    final = checkpoint_path(folder, step)
    with atomic_path(final) as temporary:
        torch.save({"format": FORMAT, "step": step, **state}, temporary)
    steps = [(at, path) for at, path in list_checkpoints(folder) if at % settings.milestone]
    for _, path in steps[: -settings.last]:
        path.unlink()
    return final


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; only tensors and plain values are ever unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise Refusal(
            f"is not a readable checkpoint ({error})", where=path, cure="remove it and resume again"
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise Refusal("is a checkpoint of another format", where=path, cure="resume with the version that wrote it")
    return state


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest finished checkpoint; temporary files of dead writers are cleared away."""
    if folder.is_dir():
        remove_dead_temporaries(folder)
    found = list_checkpoints(folder)
    return found[-1][1] if found else None
