"""`python -m fusion render`: images -> a cache of an ensemble's outputs, what `distil` and the refiner learn from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cache_tools.format.location import parse_location
from cache_tools.storage.item_cache import add_local_cache_arguments, set_local_cache
from fusion.inference.model_selection import DEFAULT
from imaging.command import DONE, CommandParser, output_folder
from imaging.device import AUTO, choose_device
from imaging.refusal import Refusal

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


class Render(Protocol):
    """Opens the teacher and renders its images into a cache; only a front door can."""

    def __call__(self, options: argparse.Namespace, out: Path, *, device: str) -> Path:
        """The words of the command line -> the cache."""
        ...


def add_teacher_arguments(parser: argparse.ArgumentParser) -> None:
    """Which ensemble, on which images."""
    add = parser.add_argument
    add("--model", default=DEFAULT, help="the teacher, as infer.py --model: a preset, a run, none with --experts")
    add("--experts", help="as infer.py --experts: a,b,c")
    add("--hr", type=Path, action="append", default=[], metavar="DIR", help="true images; may be repeated")
    add("--lr", type=Path, action="append", default=[], metavar="DIR", help="unlabelled LR images; may be repeated")
    add(
        "--cache",
        type=parse_location,
        metavar="CACHE",
        help="a cache that holds the teacher's experts on these images already",
    )
    add("--tta", action="store_true", help="the teacher's images are means over eight turns, at eight times the cost")
    add(
        "--regions",
        type=int,
        default=0,
        metavar="N",
        help="N sampled regions of 128 LR pixels per image, not all of it",
    )
    add("--device", default=AUTO, help="where the teacher runs (the training: device=...)")
    add("--catalog", type=Path, metavar="FILE", help="a YAML file with further experts")
    add("--trust-code", action="store_true", help="run the Python file of a code: expert")


def check_images(options: argparse.Namespace, command: str) -> None:
    """Either true images or unlabelled ones."""
    if bool(options.hr) == bool(options.lr):
        raise Refusal("needs images", where=command, cure="give --hr DIR or --lr DIR, as often as wanted")


def main(arguments: Sequence[str], *, render: Render) -> int:
    """Render what is missing."""
    parser = CommandParser(prog="python -m fusion render", description=__doc__)
    add_teacher_arguments(parser)
    parser.add_argument("--out", type=output_folder, required=True, metavar="DIR", help="the cache")
    add_local_cache_arguments(parser)
    options = parser.parse_args(arguments)
    set_local_cache(options)
    check_images(options, "fusion render")
    render(options, options.out, device=choose_device(options.device))
    return DONE
