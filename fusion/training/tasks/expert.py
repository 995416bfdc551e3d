"""Task expert: LR image -> SR image by one trainable network, compared with bicubic enlargement.

Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fusion.training.judge.scores import ScoreTable
from fusion.training.loop.export import export_weights, load_exported
from fusion.training.sources.degraded import mixed
from fusion.training.sources.folder import FolderSource, load_pair, whole
from fusion.training.tasks.networks import build_network, find_kind
from fusion.training.tasks.task import Prediction
from imaging.files import list_images
from imaging.resize import resize_bicubic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from fusion.training.settings import TrainSettings
    from fusion.training.sources.batch import TrainBatch
    from fusion.training.tasks.networks import NetworkKind

MODEL, BICUBIC, DEGRADED = "model", "bicubic", " degraded"


class ExpertTask:
    """Trains one of the networks that train.py offers.

    Where it is trained on degraded images, these decide which weights are best; clean ones are only scored.
    """

    def __init__(
        self, settings: TrainSettings, kinds: Mapping[str, NetworkKind], rank: int = 0, world: int = 1
    ) -> None:
        self._settings = settings
        self._kind = find_kind(kinds, settings.network.name)
        self.network = build_network(kinds, settings.network, settings.seed, settings.data.scale)
        self.judged = MODEL if mixed(settings.data.degrade) is None else MODEL + DEGRADED
        self.source = FolderSource(settings, rank, world)
        self._watched = _watched(settings)

    def predict(self, network: nn.Module, batch: TrainBatch, step: int) -> Prediction:  # noqa: ARG002 (the loop's protocol)
        """The network's image; a network that balances its experts returns (image, balance)."""
        answer = network(batch.lr_BCHW)
        if isinstance(answer, tuple):
            image_BCHW, balance = answer
            return Prediction(image_BCHW.float(), balance)
        return Prediction(answer.float())

    def validate(self, network: nn.Module) -> ScoreTable:
        """Held-out images, whole; the watched sets get rows of their own and decide nothing."""
        table = ScoreTable()
        for batch in self.source.held_out():
            self._score(table, network, batch, "")
        for batch in self.source.held_out_degraded():
            self._score(table, network, batch, DEGRADED)
        for name, batches in self._watched.items():
            for batch in batches:
                self._score(table, network, batch, f" on {name}")
        return table

    def pictures(self, network: nn.Module, count: int) -> Mapping[str, Tensor]:
        """The network's output for the first held-out images."""
        shown: dict[str, Tensor] = {}
        for batch, _ in zip(self.source.held_out(), range(count), strict=False):
            shown[f"{batch.items[0]}/model"] = self._run(network, batch)[0].clamp(0, 1)
        return shown

    def export(self, path: Path, weights: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """A file that experts/loading/weights.py loads."""
        export_weights(
            path,
            weights,
            architecture=self._kind.architecture,
            hyperparameters=self._settings.network.settings,
            provenance=provenance,
            dtype=self._settings.export.dtype,
        )

    def load(self, network: nn.Module, path: Path) -> None:
        """Strictly."""
        load_exported(network, path)

    def conclude(self, network: nn.Module, run: Path) -> Mapping[str, Any]:  # noqa: ARG002 (the loop's protocol)
        """An expert replaces nothing, so there is no gate."""
        return {}

    def _score(self, table: ScoreTable, network: nn.Module, batch: TrainBatch, where: str) -> None:
        hr_BCHW = batch.hr_BCHW
        table.add(MODEL + where, batch.items[0], self._run(network, batch), hr_BCHW)
        table.add(BICUBIC + where, batch.items[0], resize_bicubic(batch.lr_BCHW, size=_size(hr_BCHW)), hr_BCHW)

    def _run(self, network: nn.Module, batch: TrainBatch) -> Tensor:
        device = next(network.parameters()).device
        with torch.no_grad():
            answer = network(batch.lr_BCHW.to(device))
        return (answer[0] if isinstance(answer, tuple) else answer).float().cpu()


def _size(image_BCHW: Tensor) -> tuple[int, int]:
    return image_BCHW.shape[-2], image_BCHW.shape[-1]


def _watched(settings: TrainSettings) -> dict[str, list[TrainBatch]]:
    """The first images of each watched folder."""
    watched: dict[str, list[TrainBatch]] = {}
    for name, folder in settings.validation.watch.items():
        paths = list_images(folder)[: settings.validation.watch_images]
        watched[name] = [whole(load_pair(path, path.stem, settings.data.scale)) for path in paths]
    return watched
