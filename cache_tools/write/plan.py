"""What is about to be cached -> bytes, files and time for each profile, and whether the disk has room."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache_tools.format.location import is_address
from cache_tools.format.schema import PROFILES, ProfileName
from cache_tools.write.jobs import ItemJob, too_few_regions, upright
from cache_tools.write.load import load_job
from cache_tools.write.recipe import jobs_for, make_recipe
from cache_tools.write.run_experts import run_experts
from cache_tools.write.space import format_bytes, free_bytes, item_sizes, total_pixels
from experts.spec import scale_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache_tools.write.pairs import Failure
    from cache_tools.write.recipe import ExtractSettings
    from experts.spec import Expert

_SAMPLE = 64  # LR pixels a side: a whole window of every catalog expert, seconds on a CPU for the largest


@dataclass(frozen=True)
class ExtractionPlan:
    """The forecast. `seconds` is extrapolated by LR pixels from one timed sample; None where none was run."""

    images: int
    files: int
    lr_pixels: int
    bytes: dict[ProfileName, int]
    free: int | None  # None: object storage
    seconds: float | None
    failures: list[Failure]
    too_few_regions: str | None = None


def make_plan(settings: ExtractSettings, experts: Sequence[Expert], *, timed: bool = True) -> ExtractionPlan:
    """Count, measure one sample, multiply."""
    jobs, failures = jobs_for(settings, scale_of(experts))
    sizes: dict[ProfileName, int] = {}
    for profile in PROFILES:
        as_profile = settings.model_copy(update={"profile": profile})
        sizes[profile] = item_sizes(make_recipe(as_profile, experts), jobs)
    pixels = total_pixels(jobs)
    return ExtractionPlan(
        images=len({job.source.name for job in jobs}),
        files=len(jobs),
        lr_pixels=pixels,
        bytes=sizes,
        free=None if is_address(settings.out) else free_bytes(settings.out),
        seconds=seconds_per_pixel(experts, jobs[0]) * pixels if timed else None,
        failures=failures,
        too_few_regions=too_few_regions(upright(jobs), settings.regions, settings.region_size),
    )


def seconds_per_pixel(experts: Sequence[Expert], job: ItemJob) -> float:
    """Time all experts on a part of one image; the second run counts, the first warms up."""
    size = {"height": min(_SAMPLE, job.region.height), "width": min(_SAMPLE, job.region.width)}
    region = job.region.model_copy(update=size)
    part = ItemJob(job.id, job.group, job.source, region, False, 0, region.height, region.width)
    loaded = load_job(part, context=0)
    seconds = 0.0
    # The first run allocates and, on a GPU, chooses kernels.
    for _ in range(2):
        begin = time.perf_counter()
        for output in run_experts(experts, [loaded])[0]:
            output.sr_BCHW.cpu()  # waits for the device
        seconds = time.perf_counter() - begin
    return seconds / (region.height * region.width)


def in_table(plan: ExtractionPlan, chosen: ProfileName) -> str:
    """The forecast as text."""
    lines = [f"{plan.images} images -> {plan.files} items, {plan.lr_pixels / 1e6:.2f} million LR pixels"]
    lines += [f"  {plan.too_few_regions}"] if plan.too_few_regions else []
    for name, size in plan.bytes.items():
        fits = "" if plan.free is None else "fits" if size <= plan.free else "does NOT fit"
        mark = "*" if name == chosen else " "
        lines.append(
            f"{mark} {name:9} {format_bytes(size):>10}  {size / plan.lr_pixels:8.0f} bytes per LR pixel  {fits}"
        )
    if plan.free is not None:
        lines.append(f"  free      {format_bytes(plan.free):>10}")
    if plan.seconds is not None:
        lines.append(f"  about {plan.seconds / 3600:.2f} hours by one timed sample, on one device")
    return "\n".join(lines)
