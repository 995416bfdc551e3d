"""Downloads -> a folder of limited size, shared by the processes of this machine; the longest unused go first."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.atomic import commit, remove_dead_temporaries, temporary_path
from imaging.refusal import Refusal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Generator, Iterator

FOLDER, SIZE = "CHAMPIONSHIP_SR_LOCAL_CACHE", "CHAMPIONSHIP_SR_LOCAL_CACHE_GB"
_DEFAULT_GB = 20.0
_ROOM = ".room"  # files that only hold space while a download runs
_PATIENCE = 600.0  # seconds to wait for other processes' downloads to leave room


def add_local_cache_arguments(parser: argparse.ArgumentParser) -> None:
    """For every command that reads a cache from object storage."""
    parser.add_argument("--local-cache", type=Path, metavar="DIR", help="where items of s3:// and the like are kept")
    parser.add_argument(
        "--local-cache-size", type=float, metavar="GB", help=f"how much of them at most (default {_DEFAULT_GB:g})"
    )


def set_local_cache(words: argparse.Namespace) -> None:
    """Into the environment, where loader workers and later ranks find it as well."""
    if words.local_cache is not None:
        os.environ[FOLDER] = str(words.local_cache.absolute())
    if words.local_cache_size is not None:
        os.environ[SIZE] = str(words.local_cache_size)


@dataclass(frozen=True)
class ItemCache:
    """Files by name; a name stands for one content for ever."""

    folder: Path
    limit: int

    @classmethod
    def of_environment(cls) -> ItemCache:
        """The user's choice, or the usual folder for what can be fetched again."""
        text = os.environ.get(SIZE, str(_DEFAULT_GB))
        try:
            limit = int(float(text) * 1e9)
        except (ValueError, OverflowError):  # the latter: of "inf"
            limit = 0
        if limit <= 0:
            where = f"--local-cache-size ({SIZE})"
            raise Refusal(f"'{text}' is no size", where=where, cure="give a number of GB above 0")
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return cls(Path(os.environ.get(FOLDER) or Path(base) / "championship-sr" / "items"), limit)

    def get(self, name: str, size: int, download: Callable[[Path], None]) -> Path:
        """The file, downloaded unless it is there; `download` writes and checks it, and raises if it is not whole."""
        path = self.folder / name
        try:
            os.utime(path)  # used now: the last to go
        except FileNotFoundError:
            with self._room_for(path, size):
                temporary = temporary_path(path)
                try:
                    download(temporary)
                    commit(temporary, path)
                finally:
                    temporary.unlink(missing_ok=True)
        return path

    def discard(self, name: str) -> None:
        """Forget a damaged file."""
        (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _room_for(self, path: Path, size: int) -> Generator[None]:
        """Hold `size` bytes, so that downloads at the same time do not exceed the limit together."""
        if size > self.limit:
            what = f"an item of {size / 1e9:.3g} GB does not fit into a local cache of {self.limit / 1e9:.3g} GB"
            raise Refusal(what, where=self.folder, cure="raise --local-cache-size")
        path.parent.mkdir(parents=True, exist_ok=True)
        held = temporary_path(path.with_name(path.name + _ROOM))
        begin = time.monotonic()
        while not self._hold(held, size):
            if time.monotonic() - begin > _PATIENCE:
                cure = "end other programs that use it, or raise --local-cache-size"
                raise Refusal("downloads of other processes fill the local cache", where=self.folder, cure=cure)
            time.sleep(0.05)
            remove_dead_temporaries(self.folder)
        try:
            yield
        finally:
            held.unlink(missing_ok=True)

    def _hold(self, held: Path, size: int) -> bool:
        """Evict until `size` fits; False while what is being downloaded leaves no room."""
        with (self.folder / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            files = list(self._files())
            total = sum(one.size for one in files)
            for one in sorted((one for one in files if not one.held), key=lambda one: one.used):
                if total + size <= self.limit:
                    break
                one.path.unlink(missing_ok=True)
                total -= one.size
            if total + size > self.limit:
                return False
            with held.open("wb") as stream:
                stream.truncate(size)  # no bytes on disk, but counted
            return True

    def _files(self) -> Iterator[_Kept]:
        for path in self.folder.rglob("*"):
            held = _ROOM in path.name
            if path.name.startswith(".") and not held:  # a download, whose room is held
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process was faster
                continue
            if path.is_file():
                yield _Kept(path, stat.st_size, stat.st_mtime, held)


@dataclass(frozen=True)
class _Kept:
    path: Path
    size: int
    used: float
    held: bool
