"""Scalars and images of a run -> TensorBoard, W&B or trackio, whichever are named."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.tensorboard.writer import SummaryWriter

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion.training.run_folder import RunFolder
    from fusion.training.settings import TrainSettings


class Journal(Protocol):
    """One place to write to."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""
        ...

    def images(self, images: Mapping[str, Tensor], step: int) -> None:
        """Images (3,H,W) in [0, 1]."""
        ...

    def close(self) -> None:
        """Flush and end."""
        ...


class TensorBoard:
    """Event files in the run's log folder; what a resumed run repeats replaces what was there."""

    def __init__(self, folder: RunFolder, first_step: int) -> None:
        self._writer = SummaryWriter(str(folder.logs), purge_step=first_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(self, images: Mapping[str, Tensor], step: int) -> None:
        """Images (3,H,W) in [0, 1]."""
        for name, image_CHW in images.items():
            self._writer.add_image(name, image_CHW, step)

    def close(self) -> None:
        """Flush and end."""
        self._writer.close()


class Hosted:
    """W&B and trackio, which share one interface: init, log, Image, finish."""

    def __init__(self, package: str, folder: RunFolder, settings: TrainSettings) -> None:
        self._client: Any = _client(package)
        self._client.init(
            project="championship-sr",
            name=folder.root.name,
            config=settings.model_dump(mode="json"),
            resume="allow",
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""
        self._client.log(dict(values), step=step)

    def images(self, images: Mapping[str, Tensor], step: int) -> None:
        """Images (3,H,W) in [0, 1]."""
        shown = {name: (image.permute(1, 2, 0) * 255).round().byte().numpy() for name, image in images.items()}
        self._client.log({name: self._client.Image(image) for name, image in shown.items()}, step=step)

    def close(self) -> None:
        """Flush and end."""
        self._client.finish()


def _client(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        cure = f"pip install {package}, or set log.to=[tensorboard]"
        raise Refusal(f"'{package}' is not installed", where="log.to", cure=cure) from None


def refuse_missing(settings: TrainSettings) -> None:
    """Refuse, before anything is loaded, a log that cannot be written."""
    for name in settings.log.to:
        if name != "tensorboard":
            _client(name)


def open_journals(settings: TrainSettings, folder: RunFolder, first_step: int) -> list[Journal]:
    """All places that the settings name."""
    return [
        TensorBoard(folder, first_step) if name == "tensorboard" else Hosted(name, folder, settings)
        for name in settings.log.to
    ]
