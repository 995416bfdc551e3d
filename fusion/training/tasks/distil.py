"""Task distil: LR image -> SR image by one network that learns from a teacher's images, and from the truth if known.

It ends in a gate: better on held-out images than the file that it started from, or it says so. Legend: B batch, C
channels, H and W height and width.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion.training.judge.gate import GateDecision, half_of, paired_bootstrap
from fusion.training.judge.scores import ScoreTable
from fusion.training.loop.export import export_weights, load_exported
from fusion.training.sources.teacher import TeacherSource
from fusion.training.tasks.task import Prediction
from imaging.refusal import Refusal
from imaging.resize import resize_bicubic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from fusion.training.settings import TrainSettings
    from fusion.training.sources.batch import TrainBatch

log = logging.getLogger(__name__)

STUDENT, TEACHER, BICUBIC = "student", "teacher", "bicubic"


@dataclass(frozen=True)
class Student:
    """A trainable network, what its file's header says of it, and how it is run on an image of any size."""

    network: nn.Module
    architecture: str
    hyperparameters: Mapping[str, Any]
    run: Callable[[nn.Module, Tensor], Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rival:
    """What the student must beat."""

    name: str
    run: Callable[[Tensor], Tensor]


class DistilTask:
    """Half of the held-out images choose the best weights, the other half is the gate's."""

    judged = STUDENT

    def __init__(
        self, settings: TrainSettings, student: Student, rival: Rival | None, rank: int = 0, world: int = 1
    ) -> None:
        if settings.data.hold_out < 2:
            what = "one half of the held-out images chooses the weights, the other judges: 1 image is no two halves"
            raise Refusal(what, where="data.hold_out", cure="hold out at least 2 images")
        self._settings, self._student = settings, student
        self._rival = rival or Rival(BICUBIC, self._bicubic)
        self.network = student.network
        self.source = TeacherSource(settings, rank, world)
        self._by_rival: dict[str, Tensor] = {}

    def predict(self, network: nn.Module, batch: TrainBatch, step: int) -> Prediction:  # noqa: ARG002 (the loop's protocol)
        """The student's image; one that balances its experts returns (image, balance)."""
        answer = self._student.run(network, batch.lr_BCHW)
        if isinstance(answer, tuple):
            return Prediction(answer[0].float(), answer[1])
        return Prediction(answer.float())

    def validate(self, network: nn.Module) -> ScoreTable:
        """The half of the held-out images on which the best weights are chosen."""
        return self._table(network, 0)

    def pictures(self, network: nn.Module, count: int) -> Mapping[str, Tensor]:
        """The student's output for the first held-out images."""
        batches = zip(self._half(0), range(count), strict=False)
        return {f"{batch.items[0]}/{STUDENT}": self._run(network, batch)[0].clamp(0, 1) for batch, _ in batches}

    def export(self, path: Path, weights: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """A file that spandrel loads where it knows the architecture, and experts/ in any case."""
        export_weights(
            path,
            weights,
            architecture=self._student.architecture,
            hyperparameters=self._student.hyperparameters,
            provenance=provenance,
            dtype=self._settings.export.dtype,
        )

    def load(self, network: nn.Module, path: Path) -> None:
        """Strictly."""
        load_exported(network, path)

    def conclude(self, network: nn.Module, run: Path) -> Mapping[str, Any]:  # noqa: ARG002 (the loop's protocol)
        """Is the student better than its rival, image by image?"""
        table = self._table(network, 1)
        log.info("the gate's images\n%s", table.text(STUDENT))
        verdict = self._gate(table)
        interval = f"{verdict.gain_db:+.4f} dB, {verdict.low_db:+.4f} to {verdict.high_db:+.4f}"
        log.info("gate: %s (%s, %d images)", verdict.reason, interval, verdict.images)
        return {
            "teacher": self.source.teacher,
            "rival": self._rival.name,
            "gate": asdict(verdict),
            "gate_scores": table.as_dict(),
        }

    def _gate(self, table: ScoreTable) -> GateDecision:
        psnr = {row: table.decibels(row) for row in table.rows}
        return paired_bootstrap(
            psnr[STUDENT],
            psnr[self._rival.name],
            {item: self.source.image_of(item) for item in psnr[STUDENT]},
            confidence=self._settings.distil.gate_confidence,
            resamples=self._settings.distil.gate_resamples,
            seed=self._settings.seed,
            rival=self._rival.name,
            otherwise="nothing is shipped",
        )

    def _half(self, which: int) -> Iterator[TrainBatch]:
        return half_of(self.source.held_out(), self.source.image_of, which)

    def _table(self, network: nn.Module, half: int) -> ScoreTable:
        table = ScoreTable()
        for batch in self._half(half):
            item, hr_BCHW = batch.items[0], batch.hr_BCHW
            table.add(STUDENT, item, self._run(network, batch), hr_BCHW)
            if self.source.truth:  # without it, the teacher's image is what the others are measured against
                table.add(TEACHER, item, self.source.taught(item), hr_BCHW)
            if item not in self._by_rival:
                self._by_rival[item] = self._rival.run(batch.lr_BCHW).cpu()
            table.add(self._rival.name, item, self._by_rival[item], hr_BCHW)
            if self._rival.name != BICUBIC:
                table.add(BICUBIC, item, self._bicubic(batch.lr_BCHW), hr_BCHW)
        return table

    def _run(self, network: nn.Module, batch: TrainBatch) -> Tensor:
        device = next(network.parameters()).device
        with torch.no_grad():
            answer = self._student.run(network, batch.lr_BCHW.to(device))
        return (answer[0] if isinstance(answer, tuple) else answer).float().cpu()

    def _bicubic(self, lr_BCHW: Tensor) -> Tensor:
        return resize_bicubic(lr_BCHW, scale=self._settings.data.scale)
