"""Scalars and images of a run -> TensorBoard, W&B or trackio, whichever are named."""

from __future__ import annotations

import importlib
import json
import secrets
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any, Protocol

from torch.utils.tensorboard.writer import SummaryWriter

from imaging.atomic import write_text
from imaging.quantize import quantize_u8
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from fusion.training.loop.run_folder import RunFolder
    from fusion.training.settings import TrainSettings


PROJECT, STEP = "championship-sr", "step"


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
    """Event files in the run's log folder; the steps that a resumed run repeats replace the old ones."""

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
    """W&B and trackio, which share one interface: init, log, Image, finish.

    A resumed run goes on in the record it began: its name there is kept in the run's folder. What these packages
    print goes to stderr, since stdout is the command's own.
    """

    def __init__(self, package: str, folder: RunFolder, settings: TrainSettings) -> None:
        self._client: Any = _client(package)
        with redirect_stdout(sys.stderr):
            self._client.init(
                project=PROJECT,
                config=settings.model_dump(mode="json"),
                resume="allow",
                **_names(package, folder),
            )
            if package == "wandb":  # steps that a resumed run repeats are dropped on wandb's own axis, not on this one
                self._client.define_metric("*", step_metric=STEP)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of one step."""
        self._log(dict(values), step)

    def images(self, images: Mapping[str, Tensor], step: int) -> None:
        """Images (3,H,W) in [0, 1]."""
        levels = {name: quantize_u8(image_CHW).permute(1, 2, 0).cpu().numpy() for name, image_CHW in images.items()}
        self._log({name: self._client.Image(image_HWC) for name, image_HWC in levels.items()}, step)

    def close(self) -> None:
        """Flush and end."""
        with redirect_stdout(sys.stderr):
            self._client.finish()

    def _log(self, values: dict[str, Any], step: int) -> None:
        with redirect_stdout(sys.stderr):
            if self._client.__name__ == "wandb":
                self._client.log({STEP: step, **values})
            else:
                self._client.log(values, step=step)


def _names(package: str, folder: RunFolder) -> dict[str, Any]:
    """Under which names the run is kept: the folder's, made unique, the same whenever it is resumed."""
    path = folder.logs / f"{package}.json"
    if not path.exists():
        write_text(path, json.dumps({"id": secrets.token_hex(4)}) + "\n")
    name = f"{folder.root.name}-{json.loads(path.read_text(encoding='utf-8'))['id']}"
    return {"name": name, "id": name, "dir": str(folder.logs)} if package == "wandb" else {"name": name}


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
