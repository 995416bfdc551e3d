"""The interface of a task, so that one loop trains experts and fusion alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from fusion.training.judge.scores import ScoreTable
    from fusion.training.sources.batch import Source, TrainBatch


@dataclass(frozen=True)
class Prediction:
    """The network's output for a batch: the HR-size image, not clamped, its load-balance term if it has one, and terms
    that the task reports itself, by the names by which stages weigh them."""

    image_BCHW: Tensor
    balance: Tensor | None = None
    terms: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def reported(self) -> dict[str, Tensor]:
        """Everything that is weighed and compares no two images."""
        return dict(self.terms) if self.balance is None else {**self.terms, "balance": self.balance}


class Task(Protocol):
    """A network, its data, and the forward pass that joins them."""

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
        """Scores of the averaged network on whole held-out images, and of what it is compared with."""
        ...

    def pictures(self, network: nn.Module, count: int) -> Mapping[str, Tensor]:
        """A few images for the log, (3,H,W) in [0, 1] each."""
        ...

    def export(self, path: Path, weights: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """Write weights as a file that the rest of the program can load."""
        ...

    def load(self, network: nn.Module, path: Path) -> None:
        """Read such a file's weights back."""
        ...

    def conclude(self, network: nn.Module, run: Path) -> Mapping[str, Any]:
        """Decisions taken after training (the gate); they go into the summary and the file's header."""
        ...
