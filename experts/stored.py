"""An opened expert <-> its whole spec as a cache or a fusion model records it, without any path.

What is stored opens the expert again on any machine that has its file: by name, size and hash.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experts.catalog import built_in_catalog
from experts.loading.find_file import find_file
from experts.loading.weights import SUFFIXES
from experts.run import NetworkExpert
from experts.spec import ExpertSpec, WeightsSource
from imaging.hashes import file_sha256
from imaging.names import valid_text
from imaging.refusal import Refusal
from imaging.settings import parse_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from experts.catalog import Catalog
    from experts.spec import CodeSource, Expert


def stored_specs(experts: Sequence[Expert]) -> dict[str, ExpertSpec]:
    """Of every network, by name; a folder of images has no spec: it is another one for every set of images."""
    return {one.name: _stored_spec(one) for one in experts if isinstance(one, NetworkExpert)}


def _stored_spec(expert: NetworkExpert) -> ExpertSpec:
    """All that opening it again needs: what was found by running it stands there as if it had been written down."""
    spec, source = expert.spec, expert.spec.weights[0]
    public = {key: value for key in ("url", "page") if (value := getattr(source, key) or "").startswith("https://")}
    weights = WeightsSource(
        file=valid_text(Path(source.file).name),
        licence=source.licence,
        bytes=source.bytes,
        sha256=expert.identity.weights_sha256,
        **public,
    )
    return ExpertSpec(
        name=spec.name,
        weights=(weights,),
        title=spec.title,
        architecture=expert.identity.architecture if spec.code is None else spec.architecture,
        hyperparameters={} if spec.code is not None else _plain_hyperparameters(expert),
        code=None if spec.code is None else _stored_code(spec.code, expert.identity.code or ""),
        parameters=spec.parameters,
        tap=expert.tap or spec.tap,
        features=spec.features,
        padding=expert.padding,
        precision=spec.precision,
        overlap=spec.overlap,
    )


def _stored_code(code: CodeSource, identity: str) -> CodeSource:
    """The file by its name and hash; the identity begins with the latter."""
    return code.model_copy(update={"file": valid_text(Path(code.file).name), "sha256": identity.partition(" ")[0]})


def _plain_hyperparameters(expert: NetworkExpert) -> dict[str, Any]:
    """Those that the network was built with and that JSON can hold: classes of layers are left to the architecture."""
    values = {**getattr(expert.network, "hyperparameters", {}), **expert.spec.hyperparameters}
    return {key: json.loads(json.dumps(value)) for key, value in values.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))


@dataclass(frozen=True)
class StoredExperts:
    """The experts of a cache or a model: their hashes, and their specs where it was made with these in it.

    `source` is what a user calls it, `beside` are folders that may hold the experts' files, `option` is how experts
    are named by hand in the command that reads it.
    """

    hashes: Mapping[str, str | None]
    specs: Mapping[str, ExpertSpec]
    source: str
    beside: tuple[Path, ...] = ()
    option: str = "--experts"

    @classmethod
    def read(
        cls, hashes: Mapping[str, str | None], documents: Mapping[str, Any], source: str, *beside: Path, option: str
    ) -> StoredExperts:
        """From a header's plain values."""
        specs = {name: parse_settings(ExpertSpec, one, where=source) for name, one in documents.items()}
        return cls(hashes, specs, source, beside, option)

    def find(self, wanted: str, catalog: Catalog, *, trust_code: bool) -> ExpertSpec | None:
        """The spec of a name or file that is one of these, its files found here; None where others must know it.

        A name of the built-in catalog whose very file is not here is left to the catalog, which knows where to get it.
        """
        spec = self.specs.get(wanted) or self._of_file(wanted)
        if spec is None:
            if wanted in self.hashes and catalog.find(wanted) is None:
                raise self._unknown(wanted)
            return None
        source = spec.weights[0]
        path = Path(wanted) if wanted not in self.specs else self._find(source.file, source.sha256, source.bytes)
        if path is None:
            if catalog.find(wanted) is not None:
                return None
            raise self._gone(f"the weights of expert '{spec.name}'", source.file, source.sha256)
        located = spec.model_copy(update={"weights": (source.model_copy(update={"file": str(path)}),)})
        return located if spec.code is None else self._with_code(located, spec.code, path, trust_code)

    def _with_code(self, spec: ExpertSpec, code: CodeSource, weights: Path, trust_code: bool) -> ExpertSpec:
        """A header may come from anybody: its hash finds the code, but the user or our own catalog must let it run."""
        path = self._find(code.file, code.sha256, None, weights.parent)
        if path is None:
            raise self._gone(f"the code of expert '{spec.name}'", code.file, code.sha256)
        if not trust_code and code.sha256 not in {one.code.sha256 for one in built_in_catalog().experts if one.code}:
            cure = "read it, then add --trust-code"
            raise Refusal(f"is Python code that would be run to build {code.name}", where=path, cure=cure)
        return spec.model_copy(update={"code": code.model_copy(update={"file": str(path)})})

    def _of_file(self, wanted: str) -> ExpertSpec | None:
        """A file given by hand that is one of ours, whatever it is called now."""
        path = Path(wanted)
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            return None
        size, digest = path.stat().st_size, None
        for spec in self.specs.values():
            if spec.weights[0].bytes in (None, size):
                digest = digest or file_sha256(path)
                if spec.weights[0].sha256 == digest:
                    return spec
        return None

    def _find(self, name: str, sha256: str | None, size: int | None, *more: Path) -> Path | None:
        return None if sha256 is None else find_file(Path(name).name, sha256, size, (*self.beside, *more))

    def _gone(self, what: str, name: str, sha256: str | None) -> Refusal:
        cure = f"put it beside the model or into pretrained/, or name the experts by {self.option}, with its path"
        return Refusal(f"{what} are gone: {name}, sha256 {sha256}", where=self.source, cure=cure)

    def _unknown(self, name: str) -> Refusal:
        digest = self.hashes[name]
        known = "" if digest is None else f", weights with sha256 {digest}"
        cure = f"name the experts by {self.option}, this one by its file or images:FOLDER, or add --catalog FILE"
        return Refusal(f"does not say what its expert '{name}' is{known}", where=self.source, cure=cure)
