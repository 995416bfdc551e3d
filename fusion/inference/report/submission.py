"""`python -m fusion submit`: a folder of outputs and the folder of their inputs -> the flat zip a challenge takes.

Names, count and sizes are checked against the inputs; an incomplete or wrong set is refused.
"""

from __future__ import annotations

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fusion.inference.report.provenance import read_record
from imaging.atomic import atomic_path
from imaging.command import DONE, CommandParser, output_file, print_json
from imaging.files import image_size, list_images, read_raster
from imaging.files.png import without_metadata
from imaging.names import valid_text
from imaging.refusal import Refusal
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

README = "readme.txt"
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the zip of the same images is the same file

EXTRA_DATA_ADVICE = (
    "assumed, since experts bring the data they were trained on; `python -m fusion submit OUT -i IN --no-extra-data`"
    " where the challenge's own was all"
)


@dataclass(frozen=True)
class Facts:
    """The entries of readme.txt."""

    seconds_per_image: float
    on_gpu: bool
    extra_data: bool
    description: str

    def __post_init__(self) -> None:
        if not 0 <= self.seconds_per_image < 1e6:
            raise Refusal(f"{self.seconds_per_image} s per image", where=README, cure="give seconds per image")
        if "\n" in self.description:
            raise Refusal("the description has several lines", where=README, cure="give one line")

    @classmethod
    def of_run(cls, seconds_per_image: float, device_type: str, experts: Sequence[str]) -> Facts:
        """As far as a run knows them; experts bring the data they were trained on, so extra data is assumed."""
        return cls(seconds_per_image, device_type != "cpu", True, f"Fusion of {', '.join(experts)}")

    def text(self) -> str:
        """The form that the challenges prescribe."""
        return (
            f"runtime per image [s] : {self.seconds_per_image:.2f}\n"
            f"CPU[1] / GPU[0] : {0 if self.on_gpu else 1}\n"
            f"Extra Data [1] / No Extra Data [0] : {int(self.extra_data)}\n"
            f"Other description : {self.description}\n"
        )


def main(arguments: Sequence[str]) -> int:
    """Parse, check, pack."""
    parser = CommandParser(prog="python -m fusion submit", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, help="the outputs")
    add("-i", "--input", type=Path, required=True, metavar="IN", help="the LR images they were made from")
    add("-o", "--output", type=output_file, metavar="ZIP", help="default: FOLDER/submission.zip")
    add("--runtime", type=float, metavar="S", help="seconds per image; default: as infer.py recorded")
    add("--cpu", action="store_true", help="the runtime was measured on a CPU")
    add("--no-extra-data", action="store_true", help="trained on the challenge's own data only")
    add("--description", default="Fusion of frozen experts", help="one line about the method")
    add("--json", action="store_true", help="print one JSON document")
    words = parser.parse_args(arguments)
    target = words.output or words.folder / "submission.zip"
    chosen = check_set(words.folder, words.input)
    runtime = words.runtime if words.runtime is not None else recorded_runtime(list(chosen.values()))
    pack(chosen, target, Facts(runtime, not words.cpu, not words.no_extra_data, words.description))
    if words.json:
        print_json({"submission": target, "images": len(chosen), "runtime": runtime})
    else:
        log.info("%s: %d images", target, len(chosen))
    return DONE


def pack(chosen: Mapping[str, Path], target: Path, facts: Facts) -> Path:
    """A checked set -> the zip, whole or not at all; EXIF and XMP stay behind, whatever the images carry."""
    if target.suffix.lower() != ".zip":
        raise Refusal("is not a .zip name", where=target, cure="end it in .zip")
    with atomic_path(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, path in chosen.items():
            archive.writestr(zipfile.ZipInfo(name, _FIRST_DAY), without_metadata(path))
        archive.writestr(zipfile.ZipInfo(README, _FIRST_DAY), facts.text())
    return target


def check_set(folder: Path, inputs: Path) -> dict[str, Path]:
    """Name in the zip -> output file, one for each input; anything missing, surplus or misshapen is refused."""
    wanted = zip_names(list_images(inputs) if inputs.is_dir() else [inputs], inputs)
    found = zip_names(list_images(folder), folder)
    for problem, names in (("lacks", wanted.keys() - found.keys()), ("has surplus", found.keys() - wanted.keys())):
        if names:
            listed = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            cure = "run infer.py on the whole input folder" if problem == "lacks" else "move other images away"
            raise Refusal(f"{problem} {listed}", where=folder, cure=cure)
    for name in sorted(wanted):
        _check_output(found[name], wanted[name])
    return {name: found[name] for name in sorted(found)}


def recorded_runtime(outputs: Sequence[Path]) -> float:
    """Mean seconds per image from the JSON beside each output."""
    seconds: list[float] = []
    for path in outputs:
        record = read_record(path)
        if record is None or "seconds" not in record:
            raise Refusal("has no recorded runtime", where=path, cure="give --runtime SECONDS")
        seconds.append(float(record["seconds"]))
    return sum(seconds) / len(seconds)


def zip_names(paths: Sequence[Path], root: Path) -> dict[str, Path]:
    """The flat name each image has in the zip: its own, as .png."""
    named: dict[str, Path] = {}
    for path in paths:
        name = f"{path.stem}.png"
        if valid_text(name) != name:
            raise Refusal("is a name that a zip cannot carry (not UTF-8)", where=path, cure="rename it and its input")
        if name in named:
            cure = "a flat zip needs different names: rename one"
            raise Refusal(f"and {named[name].relative_to(root)} are both {name} in a flat zip", where=path, cure=cure)
        named[name] = path
    return named


def _check_output(output: Path, source: Path) -> None:
    """PNG, 8-bit RGB without transparency, four times the input, and readable to the last pixel."""
    if output.suffix.lower() != ".png":
        raise Refusal("is not a PNG", where=output, cure="run infer.py with --ext png")
    height, width = image_size(source)
    if image_size(output) != (SCALE * height, SCALE * width):
        what = f"is not {SCALE * width}x{SCALE * height}, four times {source.name}"
        raise Refusal(what, where=output, cure="make it again from that input")
    raster, _ = read_raster(output)
    if raster.levels_HWC.dtype.itemsize != 1 or raster.alpha_HW is not None:
        raise Refusal("is not 8-bit without transparency", where=output, cure="run infer.py with --depth 8 on RGB")
