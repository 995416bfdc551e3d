"""A weights file from anywhere -> a copy in `pretrained/` with a record of where it came from, after a strict load."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from experts.loading.load import load_network
from experts.loading.weights import read_state_file, require_weights, verify
from experts.open import spec_of
from imaging import atomic
from imaging.files import inside
from imaging.hashes import file_sha256
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from experts.catalog import Catalog
    from experts.loading.load import LoadedNetwork
    from experts.loading.weights import StateFile
    from experts.spec import ExpertSpec, WeightsSource


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
    )


def import_file(wanted: Path, catalog: Catalog, folder: Path, *, licence: str | None = None) -> Record:
    """Load the file strictly, copy it into `folder`, write its record; a published file gets its catalog name."""
    spec = spec_of(str(wanted), catalog)
    path, source = require_weights(spec)
    sha256 = verify(path, source)
    known = catalog.find_published(sha256)
    name = wanted.name
    if known is not None:
        spec, source = known
        name = source.file
    state = read_state_file(path, sha256=sha256)
    loaded = load_network(state, spec)
    final = inside(folder, name)
    if final.exists() and final.resolve() != path.resolve() and file_sha256(final) != state.sha256:
        raise Refusal("another file of that name is already there", where=final, cure="remove it or rename yours")
    if final.resolve() != path.resolve():
        with atomic.atomic_path(final) as temporary:
            shutil.copyfile(path, temporary)
    record = replace(describe(state, loaded, spec, source, wanted.name), file=final.name)
    if licence is not None:
        record = replace(record, licence=licence)
    write_record(final, record)
    return record


def write_record(final: Path, record: Record) -> None:
    """Write `<file>.json` beside the weights."""
    atomic.write_text(record_path(final), json.dumps(asdict(record), indent=2) + "\n")


def record_path(weights: Path) -> Path:
    """`x.safetensors` -> `x.safetensors.json`."""
    return weights.with_name(weights.name + ".json")
