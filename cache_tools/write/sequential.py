"""Experts that do not fit into memory together -> the same cache, one expert loaded at a time.

Each expert makes a cache of its own under `.parts`; then item by item all parts become one and the parts go.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from cache_tools.convert.merge import join_item, known_specs
from cache_tools.format.location import is_address
from cache_tools.format.store import Store
from cache_tools.write.extract import Report, extract
from cache_tools.write.recipe import jobs_for, make_manifest, make_recipe, require_unmixed
from cache_tools.write.space import item_sizes, require_room
from cache_tools.write.writer import ItemWriter, name_of_rank, open_store
from experts.spec import one_scale
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cache_tools.format.store import Recipe
    from cache_tools.write.recipe import ExtractSettings
    from experts.spec import Expert


def extract_sequentially(
    settings: ExtractSettings,
    openers: Sequence[Callable[[], Expert]],
    *,
    rank: int = 0,
    world: int = 1,
) -> Report:
    """As `extract`, with one expert in memory at a time; resumable in either stage."""
    if is_address(settings.out):
        cure = "extract into a folder, then `python -m cache_tools push` it"
        raise Refusal("--sequential keeps parts beside the cache", where=settings.out, cure=cure)
    final = Store(settings.out)
    recipe = _joint_recipe(settings, openers)
    require_unmixed(final, recipe)
    # Items of the final cache are skipped by every part, whose own copies are deleted once they are joined.
    finished = frozenset(path.stem for path in final.item_paths())
    missing = [job for job in jobs_for(settings, recipe.scale)[0] if job.id not in finished]
    require_room(final.location, item_sizes(recipe, missing))
    parts: list[Store] = []
    report, stage = Report(), Report()
    for number, open_one in enumerate(openers):
        part = settings.model_copy(update={"out": final.root / ".parts" / f"{number:02d}"})
        stage = extract(part, [open_one()], rank=rank, world=world, skip=finished)
        report.failures += [failure for failure in stage.failures if failure not in report.failures]
        parts.append(Store(Path(part.out)))
    open_store(final, make_manifest(recipe, parts[0].manifest.planned, known_specs(parts)))
    writer = ItemWriter(final, name_of_rank(rank))
    entries = {entry.id: entry for entry in parts[0].index_lines()}
    for item in sorted({*stage.made, *stage.kept}):
        if all(part.item_path(item).exists() for part in parts):
            join_item(parts, item, writer, recipe, entries[item])
            report.made.append(item)
            for part in parts:
                part.item_path(item).unlink()
    report.kept = sorted(finished)
    # Other ranks may still be reading their parts, and failed items need theirs for the next run.
    if world == 1 and not report.failures:
        shutil.rmtree(final.root / ".parts")
    return report


def _joint_recipe(settings: ExtractSettings, openers: Sequence[Callable[[], Expert]]) -> Recipe:
    """Open each expert once, one at a time, for the identities of all before any work is done."""
    recipes = [make_recipe(settings, [open_one()]) for open_one in openers]
    experts = tuple(expert for recipe in recipes for expert in recipe.experts)
    one_scale({expert.name: expert.scale for expert in experts}, "experts")
    return recipes[0].model_copy(update={"experts": experts})
