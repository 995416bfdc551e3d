"""Names below one address of object storage -> their bytes, by fsspec; what fails in passing is tried again.

Credentials, endpoint and region are the environment's, as the provider's own tools read them: nothing is passed here.
"""

from __future__ import annotations

import logging
import os
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cache_tools.format.errors import StorageFailed
from cache_tools.storage.providers import connect, denied, errors_of, is_denied, provider_of, reason
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_WAIT = 0.5  # seconds before the second attempt, doubled for each further one


@dataclass(frozen=True)
class Listed:
    """An object's size and what changes when its content does (ETag, else its time)."""

    size: int
    version: str


class Bucket:
    """The objects below one address. Cheap to make, pickle and fork: it connects when first used."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._protocol, _, self._root = address.partition("://")
        self._files: Any = None
        self._owner = 0

    def __getstate__(self) -> str:
        return self.address

    def __setstate__(self, state: str) -> None:
        self.__init__(state)

    def at(self, name: str) -> str:
        """A name's full address, for messages."""
        return f"{self.address}/{name}"

    def list(self, folder: str) -> dict[str, Listed]:
        """Every object below a folder, by its name from the address on."""

        def find(files: Any) -> dict[str, Any]:
            try:
                files.invalidate_cache(f"{self._root}/{folder}")  # hf:// keeps listings whatever it is told
                return files.find(f"{self._root}/{folder}", detail=True)
            except FileNotFoundError:
                return {}

        found = self._try(find, folder)
        # Some providers begin names with the bucket's, some with a slash.
        return {path.strip("/")[len(self._root) + 1 :]: _listed(info) for path, info in found.items()}

    def look(self, name: str) -> Listed | None:
        """One object, or None."""

        def info(files: Any) -> dict[str, Any]:
            files.invalidate_cache(self._path(name))
            return files.info(self._path(name))

        try:
            return _listed(self._try(info, name))
        except FileNotFoundError:
            return None

    def read(self, name: str) -> bytes:
        """A small object; FileNotFoundError where there is none."""
        return self._try(lambda files: files.cat_file(self._path(name)), name)

    def read_part(self, name: str, use: Callable[[Any], Result]) -> Result:
        """Open an object as a file that fetches only what is read of it."""

        def opened(files: Any) -> Result:
            with files.open(self._path(name), "rb", block_size=1 << 16) as stream:
                return use(stream)

        return self._try(opened, name)

    def write(self, name: str, data: bytes) -> None:
        """A small object, whole or not at all."""
        self._send(lambda files: files.pipe_file(self._path(name), data), name)

    def get(self, name: str, target: Path) -> None:
        """Download; the caller checks what came."""
        self._try(lambda files: files.get_file(self._path(name), str(target)), name)

    def put(self, name: str, source: Path) -> None:
        """Upload a finished file. An object is seen only when all of it has come; its size is looked at again."""

        def send(files: Any) -> None:
            files.put_file(str(source), self._path(name))
            size = int(files.info(self._path(name))["size"])
            if size != source.stat().st_size:
                raise OSError(f"{size} of {source.stat().st_size} bytes arrived")

        self._send(send, name)

    def put_all(self, files: Mapping[str, Path]) -> None:
        """Upload several; to the Hub in one commit."""
        if self._protocol != "hf":
            for name, source in files.items():
                self.put(name, source)
            return
        from huggingface_hub import CommitOperationAdd

        def commit(hub: Any) -> None:
            place = hub.resolve_path(self._root)
            inside = f"{place.path_in_repo}/" if place.path_in_repo else ""
            additions = [CommitOperationAdd(f"{inside}{name}", str(source)) for name, source in files.items()]
            hub._api.create_commit(
                place.repo_id,
                additions,
                repo_type=place.repo_type,
                revision=place.revision,
                commit_message=f"{len(files)} items",
            )

        self._send(commit, next(iter(files)))

    def remove(self, name: str) -> None:
        """Delete an object."""
        self._try(lambda files: files.rm_file(self._path(name)), name)

    def move(self, name: str, to: str) -> None:
        """Copy within the storage, then delete."""
        self._try(lambda files: files.cp_file(self._path(name), self._path(to)), name)
        self.remove(name)

    def _send(self, action: Callable[[Any], None], name: str) -> None:
        try:
            self._try(action, name)
        except FileNotFoundError as error:
            cure = "make the bucket or repository first, correct the address, or check the credentials"
            raise StorageFailed(f"there is no such place ({reason(error)})", where=self.at(name), cure=cure) from None

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _connect(self) -> Any:
        # After a fork: connections and threads of the parent are not there in the child.
        if self._files is None or self._owner != os.getpid():
            self._files = connect(self.address)
            self._owner = os.getpid()
        return self._files

    def _try(self, action: Callable[[Any], Result], name: str) -> Result:
        files, provider = self._connect(), provider_of(self.address)
        for attempt in range(1, provider.attempts + 1):
            try:
                return action(files)
            except FileNotFoundError:
                raise
            except (OSError, *errors_of(provider)) as error:
                if is_denied(error):
                    raise denied(self.at(name), error) from None
                if attempt == provider.attempts:
                    times = f"{attempt} times" if attempt > 1 else "after its own attempts"
                    cure = "see whether the storage answers, then run the same command again: what is committed is kept"
                    raise StorageFailed(f"failed {times} ({reason(error)})", where=self.at(name), cure=cure) from None
                log.warning("%s: %s; trying again", self.at(name), reason(error))
            except (ValueError, NotImplementedError) as error:  # names that the provider does not allow
                cure = "correct the address: s3://BUCKET/CACHE, hf://datasets/USER/NAME"
                raise Refusal(f"is no place for a cache ({reason(error)})", where=self.address, cure=cure) from None
            # Random, so that many workers do not come back at the same moment.
            time.sleep(_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311
        raise AssertionError


def _listed(info: dict[str, Any]) -> Listed:
    version = next(
        (str(info[key]) for key in ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "oid") if info.get(key)), ""
    )
    if not version:
        version = str(info.get("LastModified") or info.get("last_modified") or info.get("created") or info["size"])
    return Listed(int(info["size"]), version)
