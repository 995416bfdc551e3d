"""A job -> the experts' input, and what the item keeps of the image itself.

Legend: C channels, H and W height and width, of LR or HR as named. Images are uint8: experts see exactly the LR
that is stored, so that a cache and a live run agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from imaging.dihedral import transform
from imaging.files import quantize_u8, read_rgb
from imaging.hashes import file_sha256
from imaging.refusal import Refusal
from imaging.resize import crop_to_multiple, downscale

if TYPE_CHECKING:
    from torch import Tensor

    from cache_tools.format.schema import Region
    from cache_tools.write.jobs import ItemJob
    from cache_tools.write.pairs import Source


@dataclass(frozen=True)
class LoadedSource:
    """One image, uint8, with the hashes of the files it came from."""

    lr_CHW: Tensor
    hr_CHW: Tensor | None
    hr_sha256: str | None
    lr_sha256: str | None


@dataclass(frozen=True)
class LoadedJob:
    """One job, ready for the experts.

    `window` is the region with its surroundings, in the image's own frame; `lr_CHW` and `hr_CHW` are the region
    alone, flipped and rotated as the item is.
    """

    job: ItemJob
    image: LoadedSource
    window: Region
    lr_CHW: Tensor
    hr_CHW: Tensor | None


def load_job(job: ItemJob, context: int) -> LoadedJob:
    """Read the image (the last one is kept: regions and flips of an image follow one another) and cut it."""
    image = load_source(job.source)
    region = job.region
    lr_CHW = transform(cut(image.lr_CHW, region), job.dihedral)
    hr_CHW = None if image.hr_CHW is None else transform(cut(image.hr_CHW, region, job.source.scale), job.dihedral)
    return LoadedJob(job, image, with_context(region, job.source, context), lr_CHW, hr_CHW)


@lru_cache(maxsize=1)
def load_source(source: Source) -> LoadedSource:
    """Decode the files of a source; without an LR file, LR is made from HR."""
    hr_BCHW = read_rgb(source.hr) if source.hr is not None else None
    if source.lr is not None:
        lr_BCHW = read_rgb(source.lr)
    else:
        assert hr_BCHW is not None
        # Rounded as a file would be: HR is what was read, LR what a benchmark's LR file would hold.
        hr_BCHW = crop_to_multiple(hr_BCHW, source.scale)
        lr_BCHW = downscale(hr_BCHW, source.scale)
    if lr_BCHW.shape[-2:] != (source.height, source.width):
        raise Refusal("changed while it was being cached", where=source.lr or source.hr or "", cure="run again")
    return LoadedSource(
        lr_CHW=quantize_u8(lr_BCHW[0]),
        hr_CHW=None if hr_BCHW is None else quantize_u8(hr_BCHW[0]),
        hr_sha256=None if source.hr is None else file_sha256(source.hr),
        lr_sha256=None if source.lr is None else file_sha256(source.lr),
    )


def cut(image_CHW: Tensor, region: Region, scale: int = 1) -> Tensor:
    """The part of an image (or of features) that a region covers; `scale` is the cache's for HR."""
    rows = slice(scale * region.top, scale * (region.top + region.height))
    columns = slice(scale * region.left, scale * (region.left + region.width))
    return image_CHW[..., rows, columns]


def with_context(region: Region, source: Source, context: int) -> Region:
    """The region with `context` pixels around it, shifted rather than shrunk at the image's edges."""
    height = min(region.height + 2 * context, source.height)
    width = min(region.width + 2 * context, source.width)
    top = min(max(region.top - context, 0), source.height - height)
    left = min(max(region.left - context, 0), source.width - width)
    return region.model_copy(update={"top": top, "left": left, "height": height, "width": width})
