"""The losses that need trained weights: which file, from where, and where to put it. Nothing is ever downloaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imaging.paths import find_pretrained, pretrained_folder
from imaging.refusal import Refusal
from imaging.tensors.safe import read_safetensors
from imaging.tensors.unpickle import load_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


@dataclass(frozen=True)
class LossFile:
    """A file or folder that a loss reads; `place` is relative to the folder of pretrained weights."""

    place: str
    what: str
    page: str

    def find(self, loss: str, given: Path | None) -> Path:
        """Where it is: as the setting weights.LOSS says, or in its place; refused by name when it is in neither."""
        path = given or find_pretrained(self.place) or pretrained_folder() / self.place
        if not path.exists():
            raise Refusal(
                f"the loss '{loss}' needs {self.what}, which is not there",
                where=path,
                cure=f"get it from {self.page} and put it there, or set weights.{loss}=PATH",
            )
        return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict in safetensors or torch's format; only tensors are unpickled."""
    if path.suffix != ".safetensors":
        return load_tensors(path, cure="get it again")
    return read_safetensors(path, cure="get it again")[1]
