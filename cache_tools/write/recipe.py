"""Settings and experts -> the recipe, the manifest and the headers that record them."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import torch
from pydantic import Field

from cache_tools.format.errors import ForeignCache
from cache_tools.format.location import Location
from cache_tools.format.schema import PROFILES, Compression, ExpertEntry, Header, ProfileName
from cache_tools.format.store import ExpertIdentityRecord, Manifest, Recipe, difference
from cache_tools.write.jobs import make_jobs
from cache_tools.write.pairs import degradation_of, find_sources
from experts.spec import scale_of
from imaging.scale import SCALE
from imaging.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cache_tools.format.store import Store
    from cache_tools.write.jobs import ItemJob
    from cache_tools.write.load import LoadedJob
    from cache_tools.write.pairs import Failure
    from experts.spec import Expert, ExpertSpec


class ExtractSettings(Settings):
    """What to cache, from where, in which form."""

    out: Location
    hr: Path | None = None
    lr: Path | None = None
    profile: ProfileName = "compact"
    compression: Compression = "none"
    regions: int = Field(default=0, ge=0)
    region_size: int = Field(default=128, ge=16)
    context: int = Field(default=16, ge=0)
    dihedral: bool = False
    batch: int = Field(default=1, ge=1)
    seed: int = 0


def jobs_for(settings: ExtractSettings, scale: int = SCALE) -> tuple[list[ItemJob], list[Failure]]:
    """Every item of these settings for experts of this scale, over all ranks, and the images that cannot be used."""
    sources, failures = find_sources(settings.hr, settings.lr, scale)
    jobs = make_jobs(
        sources,
        regions=settings.regions,
        region_size=settings.region_size,
        seed=settings.seed,
        dihedral=settings.dihedral,
    )
    return jobs, failures


def make_recipe(settings: ExtractSettings, experts: Sequence[Expert]) -> Recipe:
    """All that decides the numbers; a setting without effect is recorded as zero, so that it makes no other recipe."""
    identities = tuple(ExpertIdentityRecord.model_validate(expert.identity.document()) for expert in experts)
    sampled = settings.regions > 0
    return Recipe(
        profile=settings.profile,
        compression=settings.compression,
        # Without features, the tap makes no difference: caches of images stay comparable across taps.
        experts=tuple(_without_features(one) for one in identities) if not keeps_features(settings) else identities,
        degradation=degradation_of(settings.lr, scale_of(experts)),
        regions=settings.regions,
        region_size=settings.region_size if sampled else 0,
        context=settings.context if sampled else 0,
        seed=settings.seed if sampled else 0,
        dihedral=settings.dihedral,
    )


def keeps_features(settings: ExtractSettings) -> bool:
    """Whether the profile stores features at all."""
    return PROFILES[settings.profile].features is not None


def _without_features(identity: ExpertIdentityRecord) -> ExpertIdentityRecord:
    return identity.model_copy(update={"tap": None, "channels": 0})


def expert_entries(recipe: Recipe) -> tuple[ExpertEntry, ...]:
    """The recipe's experts with their slices of the feature dataset."""
    entries: list[ExpertEntry] = []
    first = 0
    for identity in recipe.experts:
        entries.append(ExpertEntry(first=first, **identity.model_dump()))
        first += identity.channels
    return tuple(entries)


def make_header(recipe: Recipe, loaded: LoadedJob) -> Header:
    """One item's header."""
    job, image = loaded.job, loaded.image
    return Header(
        id=job.id,
        group=job.group,
        source=job.source.name,
        hr_sha256=image.hr_sha256,
        lr_sha256=image.lr_sha256,
        height=job.height,
        width=job.width,
        region=None if job.whole else job.region,
        dihedral=job.dihedral,
        profile=recipe.profile,
        compression=recipe.compression,
        degradation=recipe.degradation,
        experts=expert_entries(recipe),
        fingerprint=recipe.fingerprint,
    )


def make_manifest(recipe: Recipe, planned: int, specs: Mapping[str, ExpertSpec]) -> Manifest:
    """The recipe with what made it, and of its experts the specs that are known."""
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "h5py": h5py.version.version,
        "hdf5": h5py.version.hdf5_version,
    }
    known = {one.name: specs[one.name] for one in recipe.experts if one.name in specs}
    return Manifest(
        recipe=recipe, fingerprint=recipe.fingerprint, planned=planned, made_with=versions, expert_specs=known
    )


def require_unmixed(store: Store, recipe: Recipe) -> None:
    """An existing cache must have the same recipe; one without items may be replaced."""
    if not store.has_manifest() or not store.sizes():
        return
    found = store.manifest.recipe
    if found != recipe:
        cure = "use the same experts and settings, or another --out"
        raise ForeignCache(f"holds another cache: {difference(found, recipe)}", where=store.location, cure=cure)
