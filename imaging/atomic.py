"""A file being written -> the finished file under its final name, or nothing; refused early where none can be."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from imaging.names import fitting, valid_text
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

_MARK = ".tmp."


def _host() -> str:
    """This machine's name without dots, so that a temporary name splits unambiguously."""
    return socket.gethostname().replace(".", "-") or "host"


def temporary_path(final: Path) -> Path:
    """`a/b.png` -> `a/.b.png.tmp.<host>.<pid>`: hidden, and it names its writer: host and process."""
    return final.with_name(fitting(".", final.name, f"{_MARK}{_host()}.{os.getpid()}"))


@contextmanager
def atomic_path(final: Path) -> Generator[Path]:
    """Yield a temporary path to write; on success it becomes `final` at once, on any error it is gone."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(final)
    try:
        yield temporary
        commit(temporary, final)
    finally:
        temporary.unlink(missing_ok=True)


def commit(temporary: Path, final: Path) -> None:
    """Flush a finished temporary file to disk and rename it.

    The order counts: renamed before its bytes are on disk, a file can be empty after a power cut; and the new name is
    on disk only once the folder is flushed too.
    """
    sync_file(temporary)
    os.replace(temporary, final)
    sync_folder(final.parent)


def require_writable(folder: Path, *, make: bool = False) -> None:
    """Refuse, before any work, a folder that cannot be written to or made; nothing is left, with `make` the folder."""
    existing, cure = folder, "choose another place, or correct its permissions"
    try:
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        if existing.is_file():
            raise Refusal(f"cannot be written to: {existing} is a file, not a folder", where=folder, cure=cure)
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        # A real file, since permission bits do not tell of read-only file systems.
        probe = temporary_path(existing / "write-test")
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        reason = f"cannot be written to (no file can be made in {existing}: {error.strerror})"
        raise Refusal(reason, where=folder, cure=cure) from None


def write_bytes(final: Path, data: bytes) -> None:
    """Write a small file whole or not at all."""
    with atomic_path(final) as temporary:
        temporary.write_bytes(data)


def write_text(final: Path, text: str) -> None:
    """Write a small UTF-8 text file whole or not at all; file names in it may be of any bytes."""
    write_bytes(final, valid_text(text).encode())


def sync_file(path: Path) -> None:
    """Force a closed file's bytes to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk, where the system can (Windows cannot open folders)."""
    if os.name == "nt":
        return
    sync_file(folder)


def remove_dead_temporaries(folder: Path) -> list[Path]:
    """Delete this machine's temporary files whose writer is no longer alive; return what was deleted."""
    removed: list[Path] = []
    for path in sorted(folder.rglob(f".*{_MARK}*")):
        host, _, pid = path.name.rpartition(_MARK)[2].rpartition(".")
        if host == _host() and pid.isdigit() and not _alive(int(pid)):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's process, or no valid process number: keep the file
        return True
    return True
