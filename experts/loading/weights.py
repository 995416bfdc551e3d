"""An expert's spec or a path -> the weights file on disk, verified, and its tensors, read without running any code."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imaging.hashes import file_sha256
from imaging.paths import pretrained_folder, pretrained_folders
from imaging.refusal import Refusal
from imaging.tensors.safe import WEIGHTS_KEYS, WEIGHTS_OPTIONAL, read_safetensors
from imaging.tensors.seal import read_json
from imaging.tensors.unpickle import load_tensors

if TYPE_CHECKING:
    from experts.spec import ExpertSpec, WeightsSource

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
ONNX_SUFFIX = ".onnx"  # a whole network: opened by experts/loading/onnx_network.py, not read as tensors
_PICKLE_CURE = "ask its author for a .safetensors file, or fetch it again"
HYPERPARAMETERS_KEY = "hyperparameters"
ARCHITECTURE_KEY = "architecture"


@dataclass(frozen=True)
class StateFile:
    """A weights file as read: tensors, header and hash."""

    path: Path
    tensors: dict[str, Any]
    header: dict[str, str]
    sha256: str


def find_weights(spec: ExpertSpec) -> tuple[Path, WeightsSource] | None:
    """The first of the expert's files that is there: as given, in a folder of weights, or in a folder within it."""
    for source in spec.weights:
        if Path(source.file).is_file():
            return Path(source.file), source
        for folder in pretrained_folders():
            for place in (folder / source.file, folder / spec.name / source.file):
                if place.is_file():
                    return place, source
            within = sorted(folder.glob(f"*/{Path(source.file).name}"))
            if within:
                return within[0], source
    return None


def require_weights(spec: ExpertSpec) -> tuple[Path, WeightsSource]:
    """As `find_weights`; a missing file is refused with the name of the file and where to get it."""
    found = find_weights(spec)
    if found is not None:
        return found
    source = spec.weights[0]
    if any(one.url for one in spec.weights):
        cure = f"run `python -m experts fetch {spec.name}`"
    elif source.page:
        cure = f"get it from {source.page} and put it there"
    else:
        cure = "put it there, or check the path"
    raise Refusal(f"the weights of '{spec.name}' are missing", where=pretrained_folder() / source.file, cure=cure)


def verify(path: Path, source: WeightsSource) -> str:
    """Hash the file and hold it against what is published; return the hash."""
    size = _size_of(path)
    if source.bytes is not None and size != source.bytes:
        raise Refusal(f"has {size} bytes, the published file has {source.bytes}", where=path, cure="fetch it again")
    sha256 = file_sha256(path)
    known = source.sha256 or source.sha256_prefix
    if known and not sha256.startswith(known.lower()):
        raise Refusal(f"sha256 is {sha256[:16]}..., published is {known[:16]}", where=path, cure="fetch it again")
    recorded = recorded_sha256(path)
    if recorded is not None and recorded != sha256:
        cure = "fetch or import it again; if you replaced it yourself, remove the record"
        raise Refusal(f"sha256 is {sha256[:16]}..., {path.name}.json has {recorded[:16]}", where=path, cure=cure)
    return sha256


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise Refusal(f"cannot be read ({error.strerror})", where=path, cure="check its permissions") from None


def read_state_file(path: Path, sha256: str | None = None, *, vouched: bool = False) -> StateFile:
    """A weights file -> its tensors; only formats and pickles that cannot run code are read.

    `vouched`: the whole file was held against a hash from elsewhere.
    """
    if not path.is_file():
        raise Refusal("no such weights file", where=path, cure="check the path, or see `python -m experts list`")
    if _size_of(path) == 0:
        raise Refusal("the weights file is empty", where=path, cure="fetch it again")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        header, tensors = read_safetensors(
            path, cure="fetch it again", keys=WEIGHTS_KEYS, optional=WEIGHTS_OPTIONAL, vouched=vouched
        )
    elif suffix in SUFFIXES:
        tensors, header = load_tensors(path, cure=_PICKLE_CURE), {}
    else:
        raise Refusal(f"'{suffix}' is not a weights format", where=path, cure=f"use one of {', '.join(SUFFIXES)}")
    return StateFile(path, tensors, header, sha256 or file_sha256(path))


def header_hyperparameters(state: StateFile) -> dict[str, Any]:
    """The hyperparameters in the file's own header (our files do; most others do not)."""
    text = state.header.get(HYPERPARAMETERS_KEY)
    if text is None:
        return {}
    try:
        values = json.loads(text)
    except json.JSONDecodeError:
        values = None
    if not isinstance(values, dict):
        raise Refusal(
            f"the header's '{HYPERPARAMETERS_KEY}' is not a JSON object", where=state.path, cure="export it again"
        )
    return values


def recorded_sha256(path: Path) -> str | None:
    """What the record beside the file, as `fetch` and `import` write it, says of the whole file; None without one."""
    record = path.with_name(f"{path.name}.json")
    if not record.is_file():
        return None
    document = read_json(record, cure="remove it, and import the weights again")
    found = document.get("sha256") if isinstance(document, dict) else None
    return found if isinstance(found, str) else None
