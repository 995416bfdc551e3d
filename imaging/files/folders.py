"""A folder of images -> their paths in a stable order; a name from outside -> a path that stays inside a folder."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from imaging.files.foreign import ANIMATION_CURE
from imaging.names import counted
from imaging.paths import refuse_address
from imaging.refusal import Refusal

WRITTEN = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif"})
SUFFIXES = WRITTEN | {".heic", ".heif"}  # that are read
_MOVING = frozenset({".gif", ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv"})
_NAMED = 5  # files that a line names


def list_others(folder: Path) -> list[Path]:
    """Files under `folder` that `list_images` passes over, but for hidden ones and images' records."""
    return [path for path in _files(folder) if not _is_image(path) and not _is_record(path)]


def in_words(others: list[Path], folder: Path) -> str:
    """One line that counts them and names the first few; a GIF, say, must not vanish without a word."""
    names = ", ".join(str(path.relative_to(folder)) for path in others[:_NAMED])
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    kinds = ", ".join(sorted(SUFFIXES))
    line = f"{folder}: {counted(len(others), 'file')} not read, being none of {kinds}: {names}{more}"
    moving = any(path.suffix.lower() in _MOVING for path in others)
    return f"{line}; of an animation or video: {ANIMATION_CURE}" if moving else line


def list_images(folder: Path) -> list[Path]:
    """All image files under `folder`, sorted by their path below it.

    Hidden files and folders are left out (temporary files are hidden), linked folders are entered once.
    A missing folder or one without a single image is refused.
    """
    if not folder.is_dir():
        refuse_address(folder)
        reason = "is a file, not a folder" if folder.exists() else "no such folder"
        raise Refusal(reason, where=folder, cure="name a folder that holds images")
    found = [path for path in _files(folder) if _is_image(path)]
    if not found:
        kinds = ", ".join(sorted(SUFFIXES))
        raise Refusal(f"holds no images ({kinds})", where=folder, cure="name a folder that holds images")
    return found


def _files(folder: Path) -> list[Path]:
    """All files but hidden ones, sorted by their path below it."""
    found: list[Path] = []
    entered: set[str] = set()
    for here, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_unreadable):
        if os.path.realpath(here) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(here))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [path for name in names if not name.startswith(".") and (path := Path(here, name)).is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def inside(folder: Path, relative: str | Path) -> Path:
    """`folder / relative`, refused when that would lie outside: absolute names, `..` that climb out, links that do."""
    text = str(relative)
    cure = f"use a plain name that stays inside {folder}"
    # Both systems' rules at once: a name made on one machine must not escape on another.
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    if not text or "\0" in text:
        raise Refusal("is empty or holds a NUL character", where=repr(text), cure=cure)
    if posix.is_absolute() or windows.drive or windows.root:
        raise Refusal("is an absolute name", where=text, cure=cure)
    if ".." in windows.parts and "\\" in text:
        raise Refusal("leads out of the chosen folder", where=text, cure=cure)
    try:
        target = (folder / posix).resolve()
    except (OSError, RuntimeError) as error:
        raise Refusal(f"cannot be resolved ({error})", where=text, cure=cure) from None
    if not target.is_relative_to(folder.resolve()):
        raise Refusal("leads out of the chosen folder", where=text, cure=cure)
    return folder / posix


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _is_record(path: Path) -> bool:
    """`baby.png.json`, which inference writes beside `baby.png`."""
    return path.suffix == ".json" and _is_image(path.with_suffix("")) and path.with_suffix("").exists()


def _refuse_unreadable(error: OSError) -> None:
    raise Refusal(f"cannot be listed ({error.strerror})", where=str(error.filename), cure="fix its permissions")
