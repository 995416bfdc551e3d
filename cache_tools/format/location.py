"""What a user writes for a cache -> a folder of this machine, or an address in object storage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator

from imaging.atomic import require_writable
from imaging.names import LONGEST
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from typing_extensions import TypeIs

_MARK = "://"
_FILE = "file://"


def parse_location(text: str | Path) -> Path | str:
    """`s3://bucket/cache` stays text without a slash at its end; everything else, `file://` too, is a path."""
    if isinstance(text, Path) or _MARK not in text:
        return _local(Path(text))
    if text.startswith(_FILE):
        return _local(Path(text.removeprefix(_FILE)))
    protocol, _, place = text.partition(_MARK)
    if "@" in place.partition("/")[0] or "?" in place:
        cure = "set the credentials in the environment; addresses are written into records and logs"
        raise Refusal("an address must not hold credentials or options", where=f"{protocol}{_MARK}...", cure=cure)
    if not place.strip("/"):
        raise Refusal("names no bucket", where=text, cure=f"write {protocol}{_MARK}BUCKET/CACHE")
    return f"{protocol}{_MARK}{place.strip('/')}"


def parse_target(text: str) -> Path | str:
    """As `parse_location`, for a cache to be written: refused before the work where that cannot be."""
    location = parse_location(text)
    if isinstance(location, Path):
        require_writable(location)
    return location


def _local(path: Path) -> Path:
    if any(len(os.fsencode(part)) > LONGEST for part in path.parts):
        cure = "choose a shorter one"
        raise Refusal(f"has a name of more than {LONGEST} bytes, which no file system takes", where=path, cure=cure)
    return path


def is_address(location: Path | str) -> TypeIs[str]:
    """Whether it is in object storage."""
    return isinstance(location, str) and _MARK in location


def name_of(location: Path | str) -> str:
    """Its last part."""
    return location.rpartition("/")[2] if isinstance(location, str) else location.name


def resolved(location: Path | str) -> str:
    """One text for one place, however it was written."""
    return location if is_address(location) else str(Path(location).resolve())


# In settings: text from a command line or a YAML file becomes one or the other.
Location = Annotated[Path | str, BeforeValidator(parse_location)]
