"""A pickled file of tensors -> its dictionary, read without running any code from it, or a refusal."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import torch

from imaging.refusal import Refusal
from imaging.tensors.walk import require_plain_tensors

if TYPE_CHECKING:
    from pathlib import Path


def load_tensors(path: Path, *, cure: str) -> dict[str, Any]:
    """A file that holds a dictionary; anything else is refused."""
    document = load_plain(path, cure=cure)
    if not isinstance(document, dict):
        raise Refusal(f"holds a {type(document).__name__}, not named tensors", where=path, cure=cure)
    return document


def load_plain(path: Path, *, cure: str) -> Any:
    """Dense tensors of known types and plain containers; anything else in the pickle is refused, not made, not run."""
    require_plain_tensors(path, cure=cure)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        what = "is damaged, or holds more than tensors and was not opened, since that could run foreign code"
        raise Refusal(what, where=path, cure=cure) from None
    except Exception as error:  # arbitrary bytes make the unpickler fail in arbitrary ways
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refusal(f"is damaged: cannot be read as tensors ({first[:120]})", where=path, cure=cure) from error
