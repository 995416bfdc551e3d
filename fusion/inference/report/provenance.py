"""What made an image <-> a text chunk in the PNG and a JSON file beside the image; and whether it still holds.

The manifest is all that decides the pixels: input, experts, fusion, options. The record beside the image adds times,
events and the output's own hash; in it the manifest lies under the key "claim", as in all files written before.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, get_args

from imaging.atomic import write_text
from imaging.device import Precision
from imaging.files.png import SIGNATURE, chunks
from imaging.hashes import file_sha256
from imaging.names import fitting
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KEY = "championship-sr"
FORMAT = 1


def make_manifest(input_sha256: str, identity: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides an image's pixels, as plain JSON."""
    manifest = {"format": FORMAT, "version": _version(), "input_sha256": input_sha256, **identity, "options": options}
    # As it will be read back from a file (tuples become lists), so that equal manifests compare equal.
    return json.loads(json.dumps(manifest))


def record_path(image: Path) -> Path:
    """`out/baby.png` -> `out/baby.png.json`."""
    return image.with_name(fitting("", image.name, ".json"))


def write_record(image: Path, manifest: Mapping[str, Any], seen: Mapping[str, Any]) -> None:
    """Write the JSON beside a finished image."""
    document = {"claim": manifest, "output_sha256": file_sha256(image), **seen}
    write_text(record_path(image), json.dumps(document, indent=2) + "\n")


def read_manifest(image: Path) -> dict[str, Any]:
    """The manifest in a PNG's text, else that in the JSON beside the file; an image without either is refused."""
    if not image.is_file():
        raise Refusal("no such file", where=image, cure="check the path")
    with image.open("rb") as stream:
        is_png = stream.read(len(SIGNATURE)) == SIGNATURE
        found = next((text for text in _texts(stream, image)), None) if is_png else None
    if found is not None:
        return _decoded(found, image)
    record = read_record(image)
    if record is None:
        raise Refusal("carries no record of what made it", where=image, cure="only outputs of infer.py do")
    return record["claim"]


def recorded_precision(image: Path) -> Precision:
    """What the experts of an output ran in, by its manifest."""
    experts = read_manifest(image).get("experts")
    found = {str(one.get("precision")) for one in dict[str, Any](experts or {}).values() if isinstance(one, dict)}
    return next((one for one in get_args(Precision) if found == {one}), "fp32")


def read_record(image: Path) -> dict[str, Any] | None:
    """The JSON beside an image; None where there is none."""
    path = record_path(image)
    if not path.is_file():
        return None
    document = _decoded(path.read_text(encoding="utf-8", errors="replace"), path)
    if not isinstance(document.get("claim"), dict) or not isinstance(document.get("output_sha256"), str):
        raise Refusal("is not a record of infer.py", where=path, cure="delete it and run again")
    return document


@dataclass(frozen=True)
class ManifestCheck:
    """What `--verify` finds: differences (empty: these weights and options made it), and what could not be checked."""

    differences: list[str]
    unchecked: list[str]


def verify(image: Path, manifest: Mapping[str, Any], input_path: Path | None = None) -> ManifestCheck:
    """Compare an image with the manifest that these weights and options would write."""
    written, record = read_manifest(image), read_record(image)
    differences = compare(written, manifest, leave_out=("input_sha256",))
    unchecked: list[str] = []
    if record is None:
        unchecked.append("the pixels: there is no JSON beside the image")
    else:
        if record["output_sha256"] != file_sha256(image):
            differences.append("the file was changed after it was written (its sha256 is not the recorded one)")
        differences += [f"its text and the JSON beside it differ: {one}" for one in compare(written, record["claim"])]
    if input_path is None:
        unchecked.append("the input: name it with -i")
    elif not input_path.is_file():
        raise Refusal("is no file", where=input_path, cure="name with -i the one input that the image was made from")
    elif written.get("input_sha256") != file_sha256(input_path):
        differences.append(f"it was made from another input than {input_path}")
    return ManifestCheck(differences, unchecked)


def is_current(image: Path, manifest: Mapping[str, Any]) -> bool:
    """Does an existing, unchanged image carry exactly this manifest? Anything invalid counts as no."""
    if not image.is_file():
        return False
    try:
        record = read_record(image)
    except Refusal:
        return False
    return record is not None and record["claim"] == manifest and record["output_sha256"] == file_sha256(image)


def compare(
    written: Mapping[str, Any], current: Mapping[str, Any], place: str = "", leave_out: tuple[str, ...] = ()
) -> list[str]:
    """Every difference between two manifests, by its place."""
    found: list[str] = []
    for key in sorted({*written, *current} - set(leave_out)):
        before, now = written.get(key), current.get(key)
        where = f"{place}.{key}" if place else key
        if isinstance(before, dict) and isinstance(now, dict):
            found += compare(before, now, where)
        elif before != now:
            found.append(f"{where}: {_short(before)} in the file, {_short(now)} here")
    return found


def _texts(stream: Any, path: Path) -> list[str]:
    """Our iTXt chunks of a PNG."""
    found: list[str] = []
    for kind, data in chunks(stream, where=path, pixels=False):
        keyword, _, rest = data.partition(b"\0")
        if kind != b"iTXt" or keyword != KEY.encode():
            continue
        packed, (_, _, text) = rest[:1] == b"\1", rest[2:].split(b"\0", 2)
        try:
            found.append((zlib.decompress(text) if packed else text).decode())
        except (zlib.error, UnicodeDecodeError):
            raise Refusal("its record is damaged", where=path, cure="make the image again") from None
    return found


def _decoded(text: str, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise Refusal("its record is damaged", where=path, cure="make the image again")
    return document


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _version() -> str:
    try:
        return version("championship-sr")
    except PackageNotFoundError:
        return "source"
