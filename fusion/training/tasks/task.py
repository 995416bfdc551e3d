"""What the loop needs to know of a task, so that one loop trains experts and fusion alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from fusion.training.judge.scores import ScoreTable
    from fusion.training.sources.batch import Source, TrainBatch


@dataclass(frozen=True)
class Prediction:
    """What the network made of a batch: the HR-size image, not clamped, and its load-balance term if it has one."""

    image_BCHW: Tensor
    balance: Tensor | None = None


class Task(Protocol):
    """A network, its data, and how the two meet."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        ...

    @property
    def source(self) -> Source:
        """What it is trained on."""
        ...

    @property
    def judged(self) -> str:
        """The row of the score table that decides which weights are best."""
        ...

    def predict(self, network: nn.Module, batch: TrainBatch, step: int) -> Prediction:
        """The training forward."""
        ...

    def validate(self, network: nn.Module) -> ScoreTable:
        """Whole held-out images through the averaged network, and what it is compared with."""
        ...

    def pictures(self, network: nn.Module, count: int) -> Mapping[str, Tensor]:
        """A few images to look at in the log, (3,H,W) in [0, 1] each."""
        ...

    def export(self, path: Path, weights: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """Write weights as a file that the rest of the program can load."""
        ...

    def load(self, network: nn.Module, path: Path) -> None:
        """Read such a file's weights back."""
        ...

    def conclude(self, network: nn.Module, run: Path) -> Mapping[str, Any]:
        """What is decided once training is over (the gate); goes into the summary and the file's header."""
        ...
