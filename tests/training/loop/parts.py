"""Runs of a tiny EDSR, and the states that runs end with, compared."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from fusion.training.loop import loop
from fusion.training.loop.checkpoint import list_checkpoints, load_checkpoint
from fusion.training.tasks.expert import ExpertTask
from tests.training.parts import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fusion.training.loop.state import TrainingState
    from fusion.training.loop.step import StepResult
    from fusion.training.settings import TrainSettings


def run(settings: TrainSettings, *, resume: bool = False) -> dict[str, Any]:
    """A training of an expert by the loop itself -> its summary."""
    return loop.train(settings, lambda rank, world: ExpertTask(settings, KINDS, rank, world), resume=resume)


@contextmanager
def power_cut(step: int) -> Iterator[None]:
    """Whatever trains within dies when it is about to take this step."""
    real = loop.take_step

    def die(state: TrainingState, *rest: Any) -> StepResult:
        if state.step == step:
            raise RuntimeError("power cut")
        return real(state, *rest)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(RuntimeError, match="power cut"):
        patched.setattr(loop, "take_step", die)
        yield


def last_state(folder: Path) -> dict[str, Any]:
    """What the last checkpoint of a run holds."""
    return load_checkpoint(list_checkpoints(folder / "checkpoints")[-1][1])


def assert_same(one: Any, other: Any) -> None:
    """Equal tensors, bit for bit, in nested containers."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif torch.is_tensor(one):
        assert torch.equal(one, other)
    else:
        assert one == other
