"""A name -> where it lies, in a checkout or an installed wheel: shipped and fetched weights, configs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from imaging.refusal import Refusal

ENVIRONMENT = "CHAMPIONSHIP_SR_PRETRAINED"
PRETRAINED, CONFIG_FOLDER = "pretrained", "configs"

# The folder that holds the rooms: the checkout, or site-packages. The working directory of child processes.
ROOT = Path(__file__).resolve().parents[1]
# A wheel carries data within the package championship_sr, a checkout at its top: setup.py maps one to the other.
IN_CHECKOUT = not (ROOT / "championship_sr" / PRETRAINED).is_dir()
DATA = ROOT if IN_CHECKOUT else ROOT / "championship_sr"
CONFIGS = DATA / CONFIG_FOLDER


def refuse_address(path: Path) -> None:
    """An address (`s3://bucket`), of which a path keeps one slash, is no folder here: not to be read or made as one."""
    scheme, colon, rest = str(path).partition(":/")
    if colon and len(scheme) > 1 and scheme.replace("+", "").isalnum() and scheme.isascii():
        cure = "copy it to this machine first, or mount it, and name the folder"
        raise Refusal("is an address, not a file or folder here", where=f"{scheme}://{rest.lstrip('/')}", cure=cure)


def pretrained_folder() -> Path:
    """Where fetched and imported weights are written: never into an installed package.

    `CHAMPIONSHIP_SR_PRETRAINED`, else `pretrained/` of the checkout, else the user's data folder.
    """
    chosen = os.environ.get(ENVIRONMENT)
    if chosen:
        return Path(chosen)
    return DATA / PRETRAINED if IN_CHECKOUT else user_data_folder() / PRETRAINED


def pretrained_folders() -> tuple[Path, ...]:
    """Where weights are looked for, first to last: the environment's folder, the user's, the shipped one."""
    own = DATA / PRETRAINED if IN_CHECKOUT else user_data_folder() / PRETRAINED
    return tuple(dict.fromkeys((pretrained_folder(), own, DATA / PRETRAINED)))


def find_pretrained(name: str) -> Path | None:
    """The first file or folder `name` (relative) in the folders of weights; None where none has it."""
    return next((folder / name for folder in pretrained_folders() if (folder / name).exists()), None)


def find_shipped(path: Path) -> Path:
    """A path as given, if it is there; else `configs/...` or `pretrained/...` among the shipped files, else unchanged.

    Configs and commands name them relative to the checkout; this makes them work from any folder.
    """
    if path.exists() or path.is_absolute() or len(path.parts) < 2:
        return path
    inner = Path(*path.parts[1:])
    if path.parts[0] == PRETRAINED:
        return find_pretrained(str(inner)) or path
    if path.parts[0] == CONFIG_FOLDER and (CONFIGS / inner).exists():
        return CONFIGS / inner
    return path


def user_data_folder() -> Path:
    """Where this user's programs keep data, by the habits of the system (XDG on Linux)."""
    given = os.environ.get("XDG_DATA_HOME")
    if given:
        base = Path(given)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path.home() / ".local" / "share"
    return base / "championship-sr"


def require_checkout(command: str) -> None:
    """Refuse what needs `benchmarks/`, which no wheel carries."""
    if not IN_CHECKOUT:
        cure = f"run `{command}` in a checkout of the repository"
        raise Refusal("its benchmarks are not part of the installed package", where=command, cure=cure)
