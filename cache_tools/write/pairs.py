"""Folders of HR and LR images -> paired sources; what does not pair is listed as a failure.

`HR/baby.png` belongs to `LR/babyx4.png` or `LR/baby.png`: the path inside the folder, without suffix and mark.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experts.image_folder import item_name
from imaging.files import image_size, in_words, list_images, list_others
from imaging.refusal import Refusal
from imaging.scale import SCALE

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

OWN_BICUBIC = "bicubic x1/{0} (antialiased, made here from HR cropped to a multiple of {0}, rounded to 8 bits)"
GIVEN_LR = "LR files as given"


@dataclass(frozen=True)
class Source:
    """One image to cache. `height` and `width` are those of its LR; either file may be absent, not both.

    `scale`: how many times as large HR is.
    """

    name: str
    hr: Path | None
    lr: Path | None
    height: int
    width: int
    scale: int = SCALE

    @property
    def stamp(self) -> str:
        """Sizes and times of the files: if these are unchanged, so is what they hold."""
        stats = [path.stat() for path in (self.hr, self.lr) if path is not None]
        return " ".join(f"{stat.st_size}:{stat.st_mtime_ns}" for stat in stats)


@dataclass(frozen=True)
class Failure:
    """An image that could not be cached, and why."""

    item: str
    reason: str


def degradation_of(lr: Path | None, scale: int) -> str:
    """Where the LR images come from, as the cache records it."""
    return GIVEN_LR if lr is not None else OWN_BICUBIC.format(scale)


def find_sources(hr: Path | None, lr: Path | None, scale: int = SCALE) -> tuple[list[Source], list[Failure]]:
    """Pair the folders; sizes are read from the files' heads. Nothing usable at all is refused."""
    hr_by_name = _by_name(hr, scale) if hr is not None else {}
    lr_by_name = _by_name(lr, scale) if lr is not None else {}
    sources: list[Source] = []
    failures: list[Failure] = []
    expected = hr is not None, lr is not None
    for name in sorted({*hr_by_name, *lr_by_name}):
        found = _source(name, hr_by_name.get(name), lr_by_name.get(name), expected, scale)
        if isinstance(found, Source):
            sources.append(found)
        else:
            failures.append(found)
    if not sources:
        reason = f" (first: {failures[0].item}: {failures[0].reason})" if failures else ""
        cure = "give --hr and --lr folders whose files have the same names, LR may end in x" + str(scale)
        raise Refusal(f"no image can be used{reason}", where=hr or lr or "--hr", cure=cure)
    return sources, failures


def tell_unread(*folders: Path | None) -> None:
    """A line for each folder in which files are not read."""
    for folder in folders:
        if folder is not None and folder.is_dir() and (others := list_others(folder)):
            log.warning("%s", in_words(others, folder))


def _by_name(folder: Path, scale: int) -> dict[str, Path]:
    by_name: dict[str, Path] = {}
    for path in list_images(folder):
        name = item_name(path.relative_to(folder).with_suffix("").as_posix(), scale)
        if name in by_name:
            raise Refusal(f"and {by_name[name].name} are both '{name}'", where=path, cure="keep one of them")
        by_name[name] = path
    return by_name


def _source(name: str, hr: Path | None, lr: Path | None, expected: tuple[bool, bool], scale: int) -> Source | Failure:
    expect_hr, expect_lr = expected
    if expect_hr and hr is None:
        return Failure(name, f"has no HR image for {lr}")
    if expect_lr and lr is None:
        return Failure(name, f"has no LR image for {hr}")
    try:
        hr_size = image_size(hr) if hr is not None else None
        lr_size = image_size(lr) if lr is not None else None
    except (Refusal, OSError) as error:
        return Failure(name, str(error))
    if lr_size is None:
        assert hr_size is not None
        lr_size = (hr_size[0] // scale, hr_size[1] // scale)
        if 0 in lr_size:
            return Failure(name, f"{hr} is {_size_text(hr_size)}, too small to make an LR image from")
    elif hr_size is not None and hr_size != (scale * lr_size[0], scale * lr_size[1]):
        return Failure(
            name, f"HR is {_size_text(hr_size)}, LR {_size_text(lr_size)}: HR must be exactly {scale} times LR"
        )
    return Source(name, hr, lr, *lr_size, scale)


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
