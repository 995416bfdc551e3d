"""Loaded jobs of equal size and the experts -> every expert's output for every job.

Legend: B jobs, C channels, H and W LR height and width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cache_tools.format.codec import decode_image
from cache_tools.write.load import cut
from experts.spec import ExpertOutput
from imaging.device import is_out_of_memory
from imaging.dihedral import transform, undo
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cache_tools.write.load import LoadedJob
    from experts.spec import Expert


def run_experts(experts: Sequence[Expert], jobs: Sequence[LoadedJob]) -> list[list[ExpertOutput]]:
    """For each job, for each expert: its SR image (1, 3, sH, sW) and features (1, C, H, W), cut to the region."""
    by_expert = [_run_one(expert, jobs) for expert in experts]
    return [list(outputs) for outputs in zip(*by_expert, strict=True)]


def _run_one(expert: Expert, jobs: Sequence[LoadedJob]) -> list[ExpertOutput]:
    if expert.identity.is_image_folder:
        return [_look_up(expert, job) for job in jobs]
    windows_BCHW = torch.stack([transform(cut(job.image.lr_CHW, job.window), job.job.dihedral) for job in jobs])
    try:
        output = expert.run(decode_image(windows_BCHW), [job.job.id for job in jobs])
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        size = f"{windows_BCHW.shape[-1]}x{windows_BCHW.shape[-2]}"
        what = f"{len(jobs)} LR image(s) of {size} do not fit into the device's memory"
        cure = "use --tile 128, a smaller --batch or --sequential"
        # Not retried in tiles, as inference does: tiles change the numbers, which the recipe records beforehand.
        raise Refusal(what, where=f"expert {expert.name}", cure=cure) from None
    outputs = [_of_job(output, index) for index in range(len(jobs))]
    return [_cut_window(one, job) for one, job in zip(outputs, jobs, strict=True)]


def _of_job(output: ExpertOutput, index: int) -> ExpertOutput:
    feat_BCHW = output.feat_BCHW
    one = slice(index, index + 1)
    return ExpertOutput(output.sr_BCHW[one], None if feat_BCHW is None else feat_BCHW[one])


def _cut_window(output: ExpertOutput, job: LoadedJob) -> ExpertOutput:
    """The region's part of the window's output: turned back, cut where the region lies in the image, turned again."""
    region, window = job.job.region, job.window
    if region == window:
        return output
    inner = region.model_copy(update={"top": region.top - window.top, "left": region.left - window.left})

    def part(image: Tensor, scale: int) -> Tensor:
        return transform(cut(undo(image, job.job.dihedral), inner, scale), job.job.dihedral)

    feat_BCHW = output.feat_BCHW
    return ExpertOutput(part(output.sr_BCHW, job.job.source.scale), None if feat_BCHW is None else part(feat_BCHW, 1))


def _look_up(expert: Expert, job: LoadedJob) -> ExpertOutput:
    """A folder of images holds whole, unflipped images by name."""
    if job.job.dihedral:
        cure = "leave out --dihedral, or the folder"
        raise Refusal("a folder of images has no outputs for flipped inputs", where=f"expert {expert.name}", cure=cure)
    output = expert.run(decode_image(job.image.lr_CHW)[None], [job.job.source.name])
    feat_BCHW = output.feat_BCHW
    region = job.job.region
    sr_BCHW = cut(output.sr_BCHW, region, job.job.source.scale)
    return ExpertOutput(sr_BCHW, None if feat_BCHW is None else cut(feat_BCHW, region))
