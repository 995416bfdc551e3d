"""A file -> its sha256, the one way in which every room names files by their content."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tqdm import tqdm

from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = 1 << 22
_LARGE = 1 << 28  # bytes from which on a bar shows how far it is


def file_sha256(path: Path) -> str:
    """The whole file's hash, in hex."""
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        with (
            path.open("rb") as stream,
            tqdm(
                total=size, unit="B", unit_scale=True, desc=f"checking {path.name}", leave=False, disable=size < _LARGE
            ) as bar,
        ):
            while block := stream.read(_BLOCK):
                digest.update(block)
                bar.update(len(block))
    except OSError as error:
        raise Refusal(f"cannot be read ({error.strerror})", where=path, cure="check the file's permissions") from None
    return digest.hexdigest()
