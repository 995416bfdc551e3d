"""catalog.yaml and a user's YAML -> the known experts by name, and what is known of each architecture."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

from experts.spec import ExpertSpec, Padding, WeightsSource
from imaging.refusal import Refusal, nearest
from imaging.settings import Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path


class Catalog(Settings):
    """Experts, lists of them by name, and per architecture the tap and the padding that hold for any file of it."""

    experts: tuple[ExpertSpec, ...] = ()
    presets: dict[str, tuple[str, ...]] = {}
    taps: dict[str, str] = {}
    paddings: dict[str, Padding] = {}

    @property
    def names(self) -> list[str]:
        """All names in catalog order."""
        return [spec.name for spec in self.experts]

    def find(self, name: str) -> ExpertSpec | None:
        """The expert of that name, if there is one."""
        return next((spec for spec in self.experts if spec.name == name), None)

    def get(self, name: str) -> ExpertSpec:
        """The expert of that name; a mistyped one is refused with the nearest."""
        spec = self.find(name)
        if spec is None:
            raise Refusal(f"unknown expert '{name}'", where="experts", cure=nearest(name, self.names))
        return spec

    def preset(self, name: str) -> tuple[str, ...]:
        """The experts of a preset; a mistyped one is refused with the nearest."""
        if name not in self.presets:
            raise Refusal(f"unknown preset '{name}'", where="experts", cure=nearest(name, list(self.presets)))
        return self.presets[name]

    def find_published(self, sha256: str) -> tuple[ExpertSpec, WeightsSource] | None:
        """The expert whose published file has that hash, whatever the file is called here."""
        return next(
            ((spec, source) for spec in self.experts for source in spec.weights if source.sha256 == sha256), None
        )


@lru_cache(maxsize=1)
def built_in_catalog() -> Catalog:
    """The experts that come with the project."""
    with resources.as_file(resources.files("experts") / "catalog.yaml") as path:
        return load_settings(Catalog, path)


def load_catalog(extra: Path | None = None) -> Catalog:
    """The built-in catalog and, if given, a user's file in the same form; a name may stand only once."""
    catalog = built_in_catalog()
    if extra is None:
        return catalog
    added = _beside(load_settings(Catalog, extra), extra.parent)
    merged = Catalog(
        experts=(*catalog.experts, *added.experts),
        presets={**catalog.presets, **added.presets},
        taps={**catalog.taps, **added.taps},
        paddings={**catalog.paddings, **added.paddings},
    )
    twice = sorted({name for name in merged.names if merged.names.count(name) > 1})
    if twice:
        raise Refusal(f"the expert name '{twice[0]}' is taken", where=extra, cure="give it another name")
    return merged


def _beside(catalog: Catalog, folder: Path) -> Catalog:
    """Weights and code of a user's catalog that lie relative to it -> full paths, found from anywhere."""

    def placed(spec: ExpertSpec) -> ExpertSpec:
        sources = tuple(
            source.model_copy(update={"file": str(folder / source.file)})
            if (folder / source.file).is_file()
            else source
            for source in spec.weights
        )
        code = spec.code
        if code is not None and (code.url is None or (folder / code.file).is_file()):
            code = code.model_copy(update={"file": str(folder / code.file)})
        return spec.model_copy(update={"weights": sources, "code": code})

    return catalog.model_copy(update={"experts": tuple(placed(spec) for spec in catalog.experts)})
