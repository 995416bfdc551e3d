"""A file's name, size and sha256 -> where it lies on this machine: where it was last, beside a model, in pretrained/.

Caches and models name an expert's file without its folder, since a path says who made them where. What this machine
has opened is therefore noted in the user's own data folder, one small file per hash; nothing of it is ever shared.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.atomic import write_bytes
from imaging.hashes import file_sha256
from imaging.paths import pretrained_folders, user_data_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

log = logging.getLogger(__name__)

SEEN = "seen_files"  # in the user's data folder: one file per sha256, holding the path where it was last opened


def note_place(path: Path, sha256: str) -> None:
    """Remember where a file was opened; without a writable data folder nothing is remembered."""
    note, place = _note(sha256), os.fsencode(path.resolve())
    try:
        if not note.is_file() or note.read_bytes() != place:
            write_bytes(note, place)
    except OSError as error:  # a read-only home must not stop an expert that is here
        log.debug("%s: its place is not noted (%s)", path, error)


def find_file(name: str, sha256: str, size: int | None, beside: Sequence[Path]) -> Path | None:
    """The file of that content; whatever else bears its name is passed over."""
    seen = set[Path]()
    for path in _candidates(name, sha256, size, [*beside, *pretrained_folders()]):
        if path in seen or not path.is_file() or (size is not None and path.stat().st_size != size):
            continue
        seen.add(path)
        if file_sha256(path) == sha256:
            return path
    return None


def _candidates(name: str, sha256: str, size: int | None, folders: Sequence[Path]) -> Iterator[Path]:
    noted = _noted(sha256)
    if noted is not None:
        yield noted
    for folder in folders:
        yield folder / name
        yield from sorted(folder.glob(f"*/{name}"))
    if size is None:  # else every file of these folders would have to be hashed
        return
    for folder in folders:
        yield from sorted(path for path in folder.glob("*") if path.suffix == Path(name).suffix)


def _note(sha256: str) -> Path:
    return user_data_folder() / SEEN / sha256


def _noted(sha256: str) -> Path | None:
    try:
        return Path(os.fsdecode(_note(sha256).read_bytes()))
    except OSError:
        return None
