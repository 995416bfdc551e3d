"""A weights file from anywhere -> a copy in `pretrained/` with a record of where it came from, after a strict load."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from experts.loading.load import load_network
from experts.loading.weights import read_state_file, require_weights, verify
from experts.open import spec_of, tap_of, with_found_code
from imaging import atomic
from imaging.files import inside
from imaging.hashes import file_sha256
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from experts.catalog import Catalog
    from experts.loading.loaded import LoadedNetwork
    from experts.loading.weights import StateFile
    from experts.spec import ExpertSpec, Padding, Tap, WeightsSource


@dataclass(frozen=True)
class Record:
    """What is known of a weights file: it is written beside the file as `<file>.json`."""

    file: str
    expert: str
    architecture: str
    parameters: int
    bytes: int
    sha256: str
    source: str
    page: str
    licence: str
    recorded: str
    code: str | None = None

    def document(self) -> dict[str, Any]:
        """As plain values; the code is named only where there is some."""
        return {key: value for key, value in asdict(self).items() if key != "code" or value is not None}

    def in_words(self) -> str:
        """One line about the file."""
        return f"{self.file}: {self.architecture}, {self.parameters:,} parameters, sha256 {self.sha256}"


def describe(state: StateFile, loaded: LoadedNetwork, spec: ExpertSpec, source: WeightsSource, origin: str) -> Record:
    """What a strictly loaded file is, and where it came from."""
    return Record(
        file=state.path.name,
        expert=spec.name,
        architecture=loaded.architecture,
        parameters=loaded.parameters,
        bytes=state.path.stat().st_size,
        sha256=state.sha256,
        source=origin,
        page=source.page,
        licence=source.licence,
        recorded=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        code=loaded.code,
    )


def import_file(
    wanted: str, catalog: Catalog, folder: Path, *, licence: str | None = None, trust_code: bool = False
) -> Record:
    """Load the file strictly, copy it into `folder`, write its record; a published file gets its catalog name.

    With code, that is copied as well, and a YAML file for `--config` pins both and keeps what was found by running.
    """
    spec = spec_of(wanted, catalog)
    path, source = require_weights(spec)
    sha256 = verify(path, source)
    name = path.name
    known = catalog.find_published(sha256)
    if known is not None and spec.code is None:
        spec, source = with_found_code(known[0], path.parent), known[1]
        name = source.file
    state = read_state_file(path, sha256=sha256)
    loaded = load_network(state, spec, trust_code=trust_code)
    record = replace(describe(state, loaded, spec, source, path.name), file=name)
    if licence is not None:
        record = replace(record, licence=licence)
    final = _copy(path, inside(folder, name))
    if spec.code is not None:
        code_file = _copy(Path(spec.code.file), inside(folder, Path(spec.code.file).name))
        if spec.code.url is None:  # of published code the catalog has the pin
            tap = tap_of(spec, loaded, loaded.padding, catalog, "find")
            pinned = pin(spec, record, code_file, tap, loaded.padding)
            atomic.write_text(pin_path(folder, spec.name), yaml.safe_dump(pinned, sort_keys=False))
    write_record(final, record)
    return record


def _copy(path: Path, final: Path) -> Path:
    """Copy unless it is there already; another file under that name is refused."""
    if final.resolve() == path.resolve():
        return final
    if final.exists() and file_sha256(final) != file_sha256(path):
        raise Refusal("another file of that name is already there", where=final, cure="remove it or rename yours")
    with atomic.atomic_path(final) as temporary:
        shutil.copyfile(path, temporary)
    return final


def pin_path(folder: Path, name: str) -> Path:
    """The catalog of one expert with code."""
    return folder / f"{name}.yaml"


def pin(spec: ExpertSpec, record: Record, code_file: Path, tap: Tap | None, padding: Padding) -> dict[str, Any]:
    """A catalog of this one expert: code and weights by their hashes, so that it opens without being asked for."""
    code = spec.code
    if code is None:
        raise ValueError("only an expert with code is pinned")
    pinned = code.model_copy(update={"file": code_file.name, "sha256": file_sha256(code_file)})
    return {
        "experts": [
            {
                "name": spec.name,
                "code": pinned.model_dump(exclude_none=True),
                "weights": [{"file": record.file, "licence": record.licence, "sha256": record.sha256}],
                **({"features": False} if tap is None else {"tap": tap.model_dump()}),
                "padding": padding.model_dump(),
            }
        ]
    }


def way_to_use(record: Record, catalog: Catalog, folder: Path) -> str:
    """How a command line names what was imported."""
    if catalog.find(record.expert) is not None:
        return f"the name {record.expert}"
    if record.code is not None:
        return f"--catalog {pin_path(folder, record.expert)} and the name {record.expert}"
    return "this path"


def write_record(final: Path, record: Record) -> None:
    """Write `<file>.json` beside the weights."""
    atomic.write_text(record_path(final), json.dumps(record.document(), indent=2) + "\n")


def record_path(weights: Path) -> Path:
    """`x.safetensors` -> `x.safetensors.json`."""
    return weights.with_name(weights.name + ".json")
