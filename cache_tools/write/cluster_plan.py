"""A plan on this machine -> worker hours, storage and requests of large data sets on a cluster, and what is assumed.

Multiply-adds are counted on the experts themselves; how fast a GPU does them is assumed, unless a rate was measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from cache_tools.write.space import format_bytes
from experts.run import NetworkExpert
from imaging.dihedral import VARIANTS
from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cache_tools.write.plan import ExtractionPlan
    from cache_tools.write.recipe import ExtractSettings
    from experts.spec import Expert

_SIDE = 64  # LR pixels: a whole window of every catalog expert
_SHARE = 0.3  # of a GPU's stated speed that such networks are assumed to reach
_LINES_PER_INDEX = 64  # items whose index lines go into one object
_ITEMS_PER_LISTING = 1000
# Makers' figures, dense, in 10^12 operations a second: (fp32 without tensor cores, bf16 or fp16 with them).
_GPUS = {
    "a100": (19.5, 312.0),
    "h100": (67.0, 989.0),
    "h200": (67.0, 989.0),
    "l40s": (91.6, 362.0),
    "rtx4090": (82.6, 165.2),
    "v100": (15.7, 125.0),
}
# Images, and LR pixels of a mean one: 339x510 is the usual LR size of DIV2K and Flickr2K.
_SETS = {"DF2K": (3450, 339 * 510), "LSDIR": (84991, 339 * 510)}


@dataclass(frozen=True)
class SetPlan:
    """One data set on the cluster. `hours` is the wall time of all workers together at work."""

    name: str
    items: int
    lr_pixels: int
    worker_hours: float
    hours: float
    bytes: int
    puts: int
    heads: int
    lists: int
    gets_per_epoch: int


@dataclass(frozen=True)
class ClusterPlan:
    """The forecast and what it stands on."""

    workers: int
    seconds_per_megapixel: float
    sets: list[SetPlan]
    assumed: list[str] = field(default_factory=list)


def plan_cluster(
    plan: ExtractionPlan,
    settings: ExtractSettings,
    experts: Sequence[Expert],
    *,
    workers: int,
    gpu: str | None,
    rate: float | None,
) -> ClusterPlan:
    """`rate`: measured seconds for a million LR pixels; without it a named GPU's is estimated, else this machine's."""
    for option, given in (("--workers", workers), ("--rate", rate)):
        if given is not None and not 0 < given < math.inf:
            raise Refusal(f"{given} is too few", where=option, cure="give a number above 0")
    assumed: list[str] = []
    seconds = _seconds(plan, experts, gpu, rate, assumed)
    per_pixel = plan.bytes[settings.profile] / plan.lr_pixels
    # Of the given images the sizes are known: small ones have fewer regions than were asked for.
    load = _computed(settings, _SETS["DF2K"][1]) / _stored(settings, _SETS["DF2K"][1])
    own = plan.files, plan.lr_pixels, plan.lr_pixels * load / 1e6 * seconds, plan.bytes[settings.profile]
    sets = [_set_plan("the given images", *own, workers)]
    for name, (images, pixels) in _SETS.items():
        items = images * (settings.regions or 1) * _turns(settings)
        stored, computed = images * _stored(settings, pixels), images * _computed(settings, pixels)
        sets.append(_set_plan(name, items, stored, computed / 1e6 * seconds, int(stored * per_pixel), workers))
    assumed += [
        f"a mean LR image of DF2K and of LSDIR has {_SETS['DF2K'][1]} pixels (339x510)",
        f"{workers} workers, one GPU or machine each, are as fast as {workers} times one, and the storage keeps up",
        "requests: a PUT, a look before and after it for every item; an epoch from an empty local cache GETs each item",
        "time to start, to load weights and to read and write what overlaps with computing: none",
    ]
    return ClusterPlan(workers, seconds, sets, assumed)


def _seconds(
    plan: ExtractionPlan, experts: Sequence[Expert], gpu: str | None, rate: float | None, assumed: list[str]
) -> float:
    """For a million LR pixels through all experts."""
    if rate is not None:
        assumed.append(f"--rate as given: {rate:g} s for a million LR pixels")
        return rate
    if gpu is None:
        if plan.seconds is None:
            cure = "leave --no-timing out, or give --gpu or --rate"
            raise Refusal("nothing tells how fast a worker is", where="--workers", cure=cure)
        assumed.append("a worker is as fast as this machine's device in one timed sample")
        return plan.seconds / plan.lr_pixels * 1e6
    if gpu not in _GPUS:
        raise Refusal(f"no figures for '{gpu}'", where="--gpu", cure=f"{nearest(gpu, _GPUS)} Or give --rate")
    networks = [one for one in experts if isinstance(one, NetworkExpert)]
    seconds = 0.0
    for one in networks:
        operations = _operations_per_pixel(one)
        speed = _GPUS[gpu][0 if one.identity.precision == "fp32" else 1]
        seconds += operations * 1e6 / (_SHARE * speed * 1e12)
        assumed.append(
            f"{one.name}: {operations / 1e6:.1f} million operations per LR pixel (counted), {speed:g} TFLOP/s"
        )
    assumed.append(
        f"one {gpu} reaches {_SHARE:.0%} of its maker's figure: no {gpu} was timed; --rate takes a measured one"
    )
    return seconds


def _operations_per_pixel(expert: NetworkExpert) -> float:
    from torch.utils.flop_counter import FlopCounterMode  # this and spandrel's architectures: most commands need none

    from experts.folded_tail import unfold_upsampler

    unfold_upsampler(expert.network)  # as a GPU runs it: folding is for CPUs
    lr_BCHW = torch.zeros(1, 3, _SIDE, _SIDE, device=expert.device)
    with FlopCounterMode(display=False) as counter:
        expert.run(lr_BCHW)
    return counter.get_total_flops() / _SIDE**2


def _turns(settings: ExtractSettings) -> int:
    return VARIANTS if settings.dihedral else 1


def _stored(settings: ExtractSettings, pixels: int) -> int:
    """LR pixels that are kept of an image: of regions, these alone."""
    if not settings.regions:
        return pixels * _turns(settings)
    return min(settings.regions * settings.region_size**2, pixels) * _turns(settings)


def _computed(settings: ExtractSettings, pixels: int) -> int:
    """LR pixels that the experts see: of regions, their surroundings as well."""
    if not settings.regions:
        return pixels * _turns(settings)
    side = settings.region_size + 2 * settings.context
    return settings.regions * min(side**2, pixels) * _turns(settings)


def _set_plan(name: str, items: int, lr_pixels: int, seconds: float, size: int, workers: int) -> SetPlan:
    return SetPlan(
        name=name,
        items=items,
        lr_pixels=lr_pixels,
        worker_hours=seconds / 3600,
        hours=seconds / 3600 / workers,
        bytes=size,
        puts=items + -(-items // _LINES_PER_INDEX),
        heads=2 * items,
        lists=-(-items // _ITEMS_PER_LISTING),
        gets_per_epoch=items,
    )


def cluster_in_table(plan: ClusterPlan, settings: ExtractSettings) -> str:
    """The forecast as text."""
    rate = f"{plan.seconds_per_megapixel:.3g} s for a million LR pixels"
    lines = [
        f"  {one.name:16} {one.items:8} items  {one.worker_hours:10.3g} worker hours  {one.hours:8.3g} h"
        f"  {format_bytes(one.bytes):>10}  {one.puts} PUT, {one.heads} HEAD, {one.lists} LIST"
        f"; {one.gets_per_epoch} GET an epoch"
        for one in plan.sets
    ]
    head = f"{plan.workers} workers, {rate}, profile {settings.profile}:"
    return "\n".join([head, *lines, "assumed:", *(f"  - {one}" for one in plan.assumed)])
