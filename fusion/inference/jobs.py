"""`-i IN -o OUT` -> which file becomes which; names kept, nothing overwritten that is an input; what came of it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imaging.atomic import remove_dead_temporaries
from imaging.files import LOSSY, SUFFIXES, WRITTEN, image_size, list_images, list_others
from imaging.names import LONGEST
from imaging.paths import refuse_address
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

AUTO = "auto"
INSTEAD = ".png"  # of a format that is only read (HEIC): nothing is lost


@dataclass(frozen=True)
class ImageJob:
    """One image to make; `item` is its path below the input folder without the suffix."""

    input: Path
    output: Path
    item: str


@dataclass(frozen=True)
class Sized:
    """A job and its LR size, read from the file's header."""

    job: ImageJob
    height: int
    width: int


@dataclass
class RunResult:
    """The outcome of a run: files written and skipped, images that failed and why, events on the way."""

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: dict[Path, Refusal] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    seconds: float = 0.0
    megapixels: float = 0.0  # of output
    unread: list[Path] = field(default_factory=list)  # files of the input folder that are no images we read
    plans: dict[str, Any] = field(default_factory=dict)
    guards: dict[str, dict[str, float]] = field(default_factory=dict)  # of refined images

    def add(self, other: RunResult) -> None:
        """What another machine did, but for its time."""
        self.written += other.written
        self.skipped += other.skipped
        self.failed |= other.failed
        self.events += other.events
        self.megapixels += other.megapixels
        self.plans |= other.plans
        self.guards |= other.guards

    def document(self) -> dict[str, Any]:
        """For --json."""
        return {
            "written": [str(path) for path in self.written],
            "skipped": [str(path) for path in self.skipped],
            "failed": {str(path): f"{one.what}; {one.cure}" for path, one in self.failed.items()},
            "unread": [str(path) for path in self.unread],
            "events": self.events,
            "seconds": round(self.seconds, 3),
            "output_megapixels": round(self.megapixels, 6),
            **({"plans": self.plans} if self.plans else {}),
            **({"refined": self.guards} if self.guards else {}),
        }


def make_jobs(source: Path, target: Path, ext: str = AUTO, suffix: str = "") -> list[ImageJob]:
    """A file or a folder (recursive, structure kept) -> jobs, in order. `ext` auto keeps each file's format."""
    refuse_address(target)
    if not source.exists():
        refuse_address(source)
        raise Refusal("no such file or folder", where=source, cure="check the path after -i")
    if source.is_dir():
        jobs = _of_folder(source, target, ext, suffix)
    elif target.suffix.lower() in SUFFIXES and not target.is_dir():
        jobs = [ImageJob(source, target, source.stem)]
    else:
        jobs = [ImageJob(source, target / _name(source, ext, suffix), source.stem)]
    _check(jobs)
    return jobs


def find_unread(source: Path, target: Path) -> list[Path]:
    """Files of an input folder that are not read, but for what an earlier run left there."""
    if not source.is_dir():
        return []
    own = None if target.resolve() == source.resolve() else target.resolve()
    return [path for path in list_others(source) if own is None or not path.resolve().is_relative_to(own)]


def measure_jobs(jobs: list[ImageJob]) -> tuple[list[Sized], list[tuple[ImageJob, Refusal]]]:
    """Sizes from the headers; what cannot be opened is listed before any computing."""
    sized: list[Sized] = []
    refused: list[tuple[ImageJob, Refusal]] = []
    for job in jobs:
        found = _measured(job)
        if isinstance(found, Sized):
            sized.append(found)
        else:
            refused.append((job, found))
    return sized, refused


def _measured(job: ImageJob) -> Sized | Refusal:
    length = len(os.fsencode(job.output.name))
    if length > LONGEST:
        what = f"its output's name would have {length} bytes, a file system takes {LONGEST}"
        return Refusal(what, where=job.input, cure="rename it, or choose another --suffix or --ext")
    try:
        return Sized(job, *image_size(job.input))
    except Refusal as refusal:
        return refusal


def check_quality(jobs: Iterable[ImageJob], quality: int | None) -> None:
    """A quality is refused where a format has none: it would be dropped without a word."""
    stray = next((job for job in jobs if job.output.suffix.lower() not in LOSSY), None)
    if quality is not None and stray is not None:
        what = f"--quality {quality}: {stray.output.suffix[1:].upper()} has none"
        raise Refusal(what, where=stray.output, cure="write --ext jpg, webp or avif, or leave --quality out")


def _of_folder(source: Path, target: Path, ext: str, suffix: str) -> list[ImageJob]:
    if target.is_file() or (target.suffix.lower() in SUFFIXES and not target.is_dir()):
        raise Refusal("is a file name, the input is a folder", where=target, cure="name a folder after -o")
    inputs = list_images(source)
    if target.resolve() != source.resolve():
        # Outputs of an earlier run that lie below the inputs are not inputs.
        inputs = [path for path in inputs if not path.resolve().is_relative_to(target.resolve())]
    if not inputs:
        raise Refusal("holds no images but those in the output folder", where=source, cure="check -i and -o")
    return [
        ImageJob(path, target / path.relative_to(source).parent / _name(path, ext, suffix), _item(path, source))
        for path in inputs
    ]


def _item(path: Path, root: Path) -> str:
    return path.relative_to(root).with_suffix("").as_posix()


def _name(path: Path, ext: str, suffix: str) -> str:
    kept = path.suffix if path.suffix.lower() in WRITTEN else INSTEAD
    return f"{path.stem}{suffix}{kept if ext == AUTO else f'.{ext}'}"


def _check(jobs: list[ImageJob]) -> None:
    inputs = {job.input.resolve() for job in jobs}
    taken: dict[Path, ImageJob] = {}
    for job in jobs:
        target = job.output.resolve()
        if target in inputs:
            raise Refusal("the output would overwrite this input", where=target, cure="choose another folder after -o")
        if target in taken:
            what = f"its output and that of {taken[target].input.name} are both {target.name}"
            raise Refusal(what, where=job.input, cure="rename one of them, or leave --ext at auto")
        taken[target] = job


def megapixels_of(one: Sized, scale: int) -> float:
    """Of the experts' images."""
    return one.height * one.width * scale**2 / 1e6


def remove_temporaries(jobs: Iterable[ImageJob]) -> None:
    """What killed runs left in the folders of the outputs."""
    for folder in filter(Path.is_dir, {job.output.parent for job in jobs}):
        remove_dead_temporaries(folder)


def part_of(sized: Sequence[Sized], shard: tuple[int, int]) -> list[Sized]:
    """Every N-th image from the largest on: parts of about the same work, the same on every machine."""
    part, parts = shard
    by_size = sorted(sized, key=lambda one: (-one.height * one.width, one.job.item))
    mine = {one.job.output for one in by_size[part::parts]}
    return [one for one in sized if one.job.output in mine]
