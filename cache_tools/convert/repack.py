"""A cache -> the same cache in a smaller profile, with fewer experts or other compression; never a more exact one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm import tqdm

from cache_tools.convert.merge import Merged, existing, known_specs, prepare
from cache_tools.convert.recode import recode
from cache_tools.format.item import compression_filters
from cache_tools.format.location import resolved
from cache_tools.format.schema import PROFILES
from cache_tools.storage.open import open_item, store_at
from cache_tools.write.writer import ItemWriter
from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cache_tools.format.schema import Compression, ProfileName
    from cache_tools.format.store import ExpertIdentityRecord, Recipe, Store


def repack(
    root: Path | str,
    out: Path | str,
    *,
    profile: ProfileName | None = None,
    experts: Sequence[str] | None = None,
    compression: Compression | None = None,
) -> Merged:
    """Rewrite every item; what is not named stays as it is. Interrupted runs go on where they stopped."""
    if resolved(root) == resolved(out):
        raise Refusal("is the cache itself", where=out, cure="choose another --out")
    store, target = store_at(root), store_at(out)
    recipe = _recipe(store, profile, experts, compression)
    compression_filters(recipe.compression)
    entries = store.entries()
    needed = sum(entry.bytes for entry in entries) if compression == "none" else 0
    prepare(target, recipe, len(entries), needed, known_specs([store]))
    kept = existing(target, [entry.id for entry in entries], recipe)
    writer = ItemWriter(target)
    for entry in tqdm([one for one in entries if one.id not in kept], unit="item", desc="repack", disable=None):
        file = open_item(store, entry.id, "always")
        try:
            header, arrays = recode(file, recipe)
        finally:
            file.close()
        writer.write(header, arrays, entry.stamp)
    writer.finish()
    return Merged("repacked", len(entries) - len(kept), len(kept))


def _recipe(
    store: Store, profile: ProfileName | None, experts: Sequence[str] | None, compression: Compression | None
) -> Recipe:
    old = store.manifest.recipe
    new = profile or old.profile
    if PROFILES[new].exactness > PROFILES[old.profile].exactness:
        what = f"is {old.profile}; what it rounded cannot be restored as {new}"
        raise Refusal(what, where=store.location, cure=f"extract again with --profile {new}")
    known = {expert.name: expert for expert in old.experts}
    chosen: list[ExpertIdentityRecord] = []
    for name in experts or known:
        if name not in known:
            raise Refusal(f"has no expert '{name}'", where=store.location, cure=nearest(name, known))
        bare = {} if PROFILES[new].features is not None else {"tap": None, "channels": 0}
        chosen.append(known[name].model_copy(update=bare))
    update = {"profile": new, "experts": tuple(chosen), "compression": compression or old.compression}
    return old.model_copy(update=update)
