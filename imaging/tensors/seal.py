"""A JSON object or a state of training <-> the same with a digest of all its values, checked when it is read."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

import torch

from imaging.refusal import Refusal
from imaging.tensors.safe import DIGEST, UNSEALED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = logging.getLogger(__name__)


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with its digest as the last entry."""
    return {**document, DIGEST: _digest(document)}


def unsealed(document: Any, path: Path | str, *, cure: str) -> Any:
    """The document without its digest; another digest than its values have is refused, none is noted."""
    if not isinstance(document, dict):
        return document
    kept = {key: value for key, value in document.items() if key != DIGEST}
    if DIGEST not in document:
        log.info("%s: %s", path, UNSEALED)
    elif document[DIGEST] != _digest(kept):
        raise Refusal("its values are not those that were written", where=path, cure=cure)
    return kept


def read_json(path: Path, *, cure: str) -> Any:
    """A JSON file's value; what is no JSON, too deep or not UTF-8 is refused."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Refusal(f"cannot be read ({error.strerror})", where=path, cure="check the path") from None
    except (ValueError, RecursionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refusal(f"is not JSON ({first[:120]})", where=path, cure=cure) from None


def _digest(document: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    _add(digest, dict(document))
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Every value with its kind and place; numbers by value, so that 1.0 and 1.00 are one."""
    if isinstance(value, dict):
        digest.update(f"{{{len(value)}".encode())
        for key in sorted(value, key=repr):
            digest.update(f"{key!r}:".encode())
            _add(digest, value[key])
    elif isinstance(value, (list, tuple)):
        digest.update(f"[{len(value)}".encode())
        for one in value:
            _add(digest, one)
    elif torch.is_tensor(value):
        digest.update(f"<{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(f"{value!r};".encode("utf-8", "surrogatepass"))
