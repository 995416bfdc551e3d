"""A cache folder -> its manifest, its items and its index.

cache/ manifest.json   index/rank-000.jsonl   items/ab/<id>.h5   quarantine/

The folder `items` decides what is in the cache; the index saves opening every file and is rebuilt from the items.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cache_tools.format.cache_folder import CacheFolder
from cache_tools.format.checksum import crc32, short_hash
from cache_tools.format.schema import SCHEMA_VERSION, Compression, ExpertRecord, Header, ProfileName, Region
from experts.spec import FOLDER, ExpertSpec
from imaging.refusal import Refusal
from imaging.scale import SCALE
from imaging.settings import Settings, parse_settings
from imaging.tensors.seal import unsealed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

UNKNOWN = "unknown (imported from .pt)"  # recorded where the older files name neither architecture nor weights


_CRC = "crc"  # of a line of the index


class ExpertIdentityRecord(ExpertRecord):
    """`experts.spec.ExpertIdentity` as the manifest stores it."""

    name: str
    architecture: str
    tap: str | None
    channels: int
    weights_sha256: str
    precision: str
    tiling: str

    @property
    def network_sha256(self) -> str | None:
        """Of the weights; None for a folder of images, whose hash is of other files for every image set."""
        return None if self.architecture in (FOLDER, UNKNOWN) else self.weights_sha256


class Recipe(Settings):
    """All that decides the numbers of a cache besides the images; the fingerprint is its hash."""

    schema_version: int = SCHEMA_VERSION
    profile: ProfileName
    compression: Compression
    experts: tuple[ExpertIdentityRecord, ...]
    degradation: str
    regions: int
    region_size: int
    context: int
    seed: int
    dihedral: bool

    @property
    def scale(self) -> int:
        """By how much the experts enlarge."""
        return self.experts[0].scale if self.experts else SCALE

    def weights(self, experts: Collection[str]) -> dict[str, str]:
        """sha256 of these experts' weights, where they are known."""
        known = {one.name: one.network_sha256 for one in self.experts if one.name in experts}
        return {name: sha256 for name, sha256 in known.items() if sha256 is not None}

    @property
    def fingerprint(self) -> str:
        """Equal recipes, equal fingerprints."""
        # Sorted keys: the order of the fields in this class may change without making every cache foreign.
        return short_hash(json.dumps(self.model_dump(), sort_keys=True), 40)


class Manifest(Settings):
    """What the cache holds and how it came to be."""

    recipe: Recipe
    fingerprint: str
    planned: int
    made_with: dict[str, str]
    # How to open each network again, by name. Beside the recipe: where a file lies and what it is called decides no
    # number, and caches of before, which lack it, keep their fingerprints.
    expert_specs: dict[str, ExpertSpec] = {}


class Entry(Settings):
    """One line of the index: what a reader must know of an item before it opens it."""

    id: str
    group: str
    source: str
    height: int
    width: int
    region: Region | None
    dihedral: int
    fingerprint: str
    bytes: int
    stamp: str = ""

    @property
    def checksum(self) -> int:
        """Of all its values."""
        return crc32(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode())

    @property
    def line(self) -> str:
        """As the index has it: a flipped digit of a size would otherwise choose other crops."""
        return json.dumps({**self.model_dump(mode="json"), _CRC: self.checksum}) + "\n"

    @classmethod
    def of(cls, header: Header, size: int, stamp: str = "") -> Entry:
        """The entry for an item file of `size` bytes; `stamp` records sizes and times of its source files."""
        shared = {name: getattr(header, name) for name in cls.model_fields if name not in {"bytes", "stamp"}}
        return cls(bytes=size, stamp=stamp, **shared)


@dataclass(frozen=True)
class Store(CacheFolder):
    """The manifest and the entries of one cache."""

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest; a folder without one is no cache."""
        try:
            text = self.read_manifest()
        except (FileNotFoundError, NotADirectoryError):
            cure = "make one with `python -m cache_tools extract`, or check the path"
            raise Refusal("is not a cache (it has no manifest.json)", where=self.location, cure=cure) from None
        except OSError as error:
            what = f"cannot be read ({error.strerror})"
            raise Refusal(what, where=self.manifest_place, cure="check its permissions") from None
        cure = "restore it, or extract into a new folder"
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise Refusal("is damaged", where=self.manifest_place, cure=cure)
        document = unsealed(document, self.manifest_place, cure=cure)
        return parse_settings(Manifest, document, where=str(self.manifest_place))

    def entries(self) -> list[Entry]:
        """One entry per item file, from the index where it agrees with the file, else from the item itself."""
        indexed = {entry.id: entry for entry in self.index_lines()}
        fingerprint = self.manifest.fingerprint
        sizes = self.sizes()
        unknown = [item for item, size in sizes.items() if item not in indexed or indexed[item].bytes != size]
        for header in self.headers(unknown):
            indexed[header.id] = Entry.of(header, sizes[header.id])
        for item in sizes:
            require_same_recipe(self.place(item), indexed[item].fingerprint, fingerprint)
        return [indexed[item] for item in sizes]

    def index_lines(self, file: str = "*") -> Iterator[Entry]:
        """The index as it stands, all of it or one file; an unfinished line of a killed writer is skipped."""
        for path in sorted(self.index.glob(f"{file}.jsonl")):
            # A torn line may end inside a UTF-8 character; replaced, it fails to parse and is skipped.
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                entry = parse_entry(line)
                if entry is not None:
                    yield entry


def parse_entry(line: str) -> Entry | None:
    """A line of the index; None for one that a killed writer left unfinished."""
    try:
        document = json.loads(line)
        checksum = document.pop(_CRC, None) if isinstance(document, dict) else None
        entry = Entry.model_validate(document)
    except (ValueError, RecursionError):  # pydantic's errors are among them
        return None
    # Lines of earlier releases have no checksum.
    return entry if checksum in (None, entry.checksum) else None


def require_same_recipe(path: Path | str, found: str, wanted: str) -> None:
    """An item from another recipe in this folder would be mixed in unnoticed."""
    if found != wanted:
        what = f"was made by another recipe ({found[:8]}) than its cache ({wanted[:8]})"
        raise Refusal(what, where=path, cure="remove that item, then extract again")


def difference(old: Recipe, new: Recipe) -> str:
    """What two recipes differ in, as text."""
    before, after = old.model_dump(), new.model_dump()
    names = [name for name in before if before[name] != after[name] and name != "experts"]
    changes = [f"{name} is {before[name]}, requested {after[name]}" for name in names]
    if old.experts != new.experts:
        changes.append(_expert_difference(before["experts"], after["experts"]))
    return "; ".join(changes)


def _expert_difference(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    names_before, names_after = [e["name"] for e in before], [e["name"] for e in after]
    if names_before != names_after:
        return f"experts are {', '.join(names_before)}, requested {', '.join(names_after)}"
    for old, new in zip(before, after, strict=True):
        for field in {**old, **new}:  # `code` is a field only of experts that have some
            if old.get(field) != new.get(field):
                short_old, short_new = str(old.get(field))[:16], str(new.get(field))[:16]
                return f"expert {old['name']} has {field} {short_old}, requested {short_new}"
    return "experts are the same"
