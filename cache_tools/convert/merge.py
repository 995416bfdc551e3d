"""Several caches -> one: shards of one recipe are united, different experts over the same images are joined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

from cache_tools.convert.recode import join, read_arrays
from cache_tools.format.errors import ForeignCache, storage_failed
from cache_tools.format.location import resolved
from cache_tools.format.schema import PROFILES
from cache_tools.format.store import difference, require_same_recipe
from cache_tools.storage.open import open_item, store_at
from cache_tools.write.recipe import make_manifest, require_unmixed
from cache_tools.write.space import require_room
from cache_tools.write.writer import ItemWriter, open_store
from experts.spec import one_scale
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cache_tools.format.store import Entry, Recipe, Store
    from experts.spec import ExpertSpec


@dataclass(frozen=True)
class Merged:
    """What a merge did."""

    way: str
    made: int
    kept: int


def merge(roots: Sequence[Path | str], out: Path | str) -> Merged:
    """Equal recipes: the union of their items. Same images, no expert twice: items with all experts."""
    stores = [store_at(root) for root in roots]
    if len({resolved(root) for root in (*roots, out)}) != len(roots) + 1:
        raise Refusal("is named twice", where=out, cure="name two or more different caches and a new --out")
    recipes = [store.manifest.recipe for store in stores]
    if all(recipe == recipes[0] for recipe in recipes):
        return _unite(stores, store_at(out))
    return join_caches(stores, store_at(out), joint_recipe(stores))


def joint_recipe(stores: Sequence[Store]) -> Recipe:
    """The recipe of all experts together; refused where anything but the experts differs."""
    recipes = [store.manifest.recipe for store in stores]
    experts = tuple(expert for recipe in recipes for expert in recipe.experts)
    names = [expert.name for expert in experts]
    one_scale({expert.name: expert.scale for expert in experts}, stores[-1].location)
    # A cache of images alone may join one with features: then its experts simply have none.
    profile = max((PROFILES[recipe.profile] for recipe in recipes), key=lambda one: one.exactness)
    for store, recipe in zip(stores, recipes, strict=True):
        alike = recipe.model_copy(update={"experts": recipes[0].experts})
        if recipe.profile == "images" and profile.sr == PROFILES["images"].sr:
            alike = alike.model_copy(update={"profile": profile.name})
        expected = recipes[0].model_copy(update={"profile": profile.name})
        if alike != expected:
            cure = "merge caches of one recipe, or of one kind with different experts; see `repack`"
            raise ForeignCache(f"does not fit: {difference(expected, alike)}", where=store.location, cure=cure)
    for name in names:
        if names.count(name) > 1:
            cure = "leave it out of one cache with `repack --experts`"
            raise ForeignCache(f"expert '{name}' is in two caches that differ", where=stores[-1].location, cure=cure)
    return recipes[0].model_copy(update={"experts": experts, "profile": profile.name})


def join_caches(stores: Sequence[Store], out: Store, recipe: Recipe) -> Merged:
    """Item by item, all experts into one file; an item that some cache lacks is refused before anything is written."""
    listings = [{entry.id: entry for entry in store.entries()} for store in stores]
    for store, listing in zip(stores, listings, strict=True):
        lacking = sorted({item for other in listings for item in other} - set(listing))
        if lacking:
            what = f"lacks {len(lacking)} item(s) of the other caches, first {lacking[0]}"
            raise Refusal(what, where=store.location, cure="extract them there, then merge")
    items = sorted(listings[0])
    needed = sum(entry.bytes for listing in listings for entry in listing.values())
    prepare(out, recipe, len(items), needed, known_specs(stores))
    writer = ItemWriter(out)
    kept = existing(out, items, recipe)
    for item in tqdm([item for item in items if item not in kept], unit="item", desc="merge", disable=None):
        join_item(stores, item, writer, recipe, listings[0][item])
    writer.finish()
    return Merged("experts joined", len(items) - len(kept), len(kept))


def join_item(stores: Sequence[Store], item: str, writer: ItemWriter, recipe: Recipe, entry: Entry) -> None:
    """One item with the experts of all stores, written under the joint recipe."""
    files = [open_item(store, item, "always") for store in stores]
    try:
        header, arrays = join(files, recipe)
    finally:
        for file in files:
            file.close()
    writer.write(header, arrays, entry.stamp)


def known_specs(stores: Sequence[Store]) -> dict[str, ExpertSpec]:
    """What the caches say of their experts; of two that know one, the first."""
    return {name: spec for store in reversed(stores) for name, spec in store.manifest.expert_specs.items()}


def prepare(out: Store, recipe: Recipe, planned: int, needed: int, specs: Mapping[str, ExpertSpec]) -> None:
    """Open the target, unless it holds something else or the disk has no room."""
    require_unmixed(out, recipe)
    require_room(out.location, needed)
    open_store(out, make_manifest(recipe, planned, specs))


def existing(out: Store, items: Sequence[str], recipe: Recipe) -> set[str]:
    """Items that an earlier, interrupted run finished."""
    entries = {entry.id: entry for entry in out.entries()}
    for entry in entries.values():
        require_same_recipe(out.place(entry.id), entry.fingerprint, recipe.fingerprint)
    return set(items) & set(entries)


def _unite(stores: Sequence[Store], out: Store) -> Merged:
    recipe = stores[0].manifest.recipe
    owners = _owners(stores)
    planned = max(len(owners), *(store.manifest.planned for store in stores))
    prepare(out, recipe, planned, sum(entry.bytes for _, entry in owners.values()), known_specs(stores))
    writer = ItemWriter(out)
    kept = existing(out, list(owners), recipe)
    for item in tqdm(sorted(set(owners) - kept), unit="item", desc="merge", disable=None):
        store, entry = owners[item]
        file = open_item(store, item, "always")
        try:
            arrays = read_arrays(file)
        finally:
            file.close()
        writer.write(file.header, arrays, entry.stamp)
    writer.finish()
    return Merged("shards united", len(owners) - len(kept), len(kept))


def _owners(stores: Sequence[Store]) -> Mapping[str, tuple[Store, Entry]]:
    """Which store each item is taken from; the same item in two must be the same bytes."""
    owners: dict[str, tuple[Store, Entry]] = {}
    for store in stores:
        for entry in store.entries():
            if entry.id not in owners:
                owners[entry.id] = (store, entry)
                continue
            first, again = owners[entry.id][0], store
            try:
                same = first.fetch(entry.id).read_bytes() == again.fetch(entry.id).read_bytes()
            except OSError as error:
                raise storage_failed(again.item_path(entry.id), error) from error
            if not same:
                raise Refusal(
                    f"differs from {first.place(entry.id)}",
                    where=again.place(entry.id),
                    cure="remove the wrong one, then merge",
                )
    return owners
