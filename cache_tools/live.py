"""Images and running experts -> the same batches that a cache gives, for comparing `--live` with `--cache`.

For equal images, seed and sampling the same patches are drawn in the same order. What differs: nothing is
quantised, flips and rotations are exact (the experts see the turned input), and an expert sees a patch with
`context` pixels around it instead of the whole image.

Legend: B patches, E experts, C channels, P patch side in LR pixels.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from cache_tools.format.schema import Region
from cache_tools.read.batch import PatchBatch, Slice
from cache_tools.read.dataset import PatchSource
from cache_tools.read.sampler import Group, Sampler, Sampling, Variant
from cache_tools.write.jobs import ItemJob, make_jobs
from cache_tools.write.load import LoadedJob, cut, load_source, with_context
from cache_tools.write.pairs import find_sources
from cache_tools.write.run_experts import FOLDER_OF_IMAGES, run_experts
from experts.spec import SCALE, ExpertOutput
from imaging.dihedral import transform
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor
    from torch.utils.data import DataLoader

    from cache_tools.read.sampler import Crop
    from experts.spec import Expert


class LiveSource(PatchSource):
    """Random patches with the experts run on the fly; decoded images are kept, `keep_images` at a time."""

    def __init__(
        self,
        experts: Sequence[Expert],
        *,
        hr: Path,
        lr: Path | None = None,
        sampling: Sampling | None = None,
        features: bool = True,
        context: int = 16,
        keep_images: int = 64,
        look_ahead: int = 1,
    ) -> None:
        how = sampling or Sampling()
        sources, failures = find_sources(hr, lr)
        if failures:
            what = f"{len(failures)} image(s) cannot be used, first {failures[0].item}: {failures[0].reason}"
            raise Refusal(what, where=hr, cure="mend or remove them")
        jobs = make_jobs(sources, regions=0, region_size=0, seed=0, dihedral=False)
        super().__init__(Sampler(_groups(jobs, how.patch, hr), how), look_ahead=look_ahead)
        self.patch = how.patch
        self.experts = tuple(expert.name for expert in experts)
        self._networks = experts
        self._jobs = {job.id: job for job in jobs}
        self._context = context
        self._load = lru_cache(maxsize=keep_images)(load_source.__wrapped__)
        # Folders of images know no flipped inputs: then what they hold is flipped, as a cache does.
        self._exact = not any(expert.identity.architecture == FOLDER_OF_IMAGES for expert in experts)
        channels = [expert.identity.channels if features else 0 for expert in experts]
        self.channels = dict(zip(self.experts, channels, strict=True))
        self._slices = tuple(
            Slice(name, sum(channels[:number]), channels[number]) for number, name in enumerate(self.experts)
        )

    def loader(self, workers: int = 0, **options: Any) -> DataLoader[PatchBatch]:
        """Experts stay in this process, where their device is."""
        if workers:
            raise Refusal("cannot run in loader workers", where="live source", cure="set workers to 0")
        return super().loader(0, **options)

    def make(self, epoch: int, step: int) -> PatchBatch:
        """One batch of this rank."""
        crops = self._sampler.batch(epoch, step)
        loaded = [self._loaded(crop) for crop in crops]
        answers = self._ask(loaded)
        outputs = [[answers[number][one] for number in range(len(crops))] for one in range(len(self._networks))]
        return PatchBatch(
            lr_BCHW=torch.stack([one.lr_CHW for one in loaded]),
            hr_BCHW=torch.stack([_present(one.hr_CHW) for one in loaded]),
            sr_BECHW=torch.stack([torch.cat([out.sr_BCHW for out in expert]) for expert in outputs], 1).cpu(),
            feats_BCHW=self._features(outputs),
            scale_BTTC2=None,
            origin_B2=torch.zeros(len(crops), 2, dtype=torch.int64),
            dihedral_B=torch.tensor([0 if self._exact else crop.dihedral for crop in crops]),
            slices=self._slices,
            items=tuple(crop.item for crop in crops),
            epoch=epoch,
            step=step,
        )

    def _loaded(self, crop: Crop) -> LoadedJob:
        source = self._jobs[crop.item].source
        image = self._load(source)
        region = Region(top=crop.top, left=crop.left, height=self.patch, width=self.patch)
        turn = crop.dihedral if self._exact else 0
        job = ItemJob(crop.item, crop.item, source, region, False, turn, self.patch, self.patch)
        lr_CHW = transform(cut(image.lr_CHW, region), turn)
        hr_CHW = transform(cut(_present(image.hr_CHW), region, SCALE), turn)
        return LoadedJob(job, image, with_context(region, source, self._context), lr_CHW, hr_CHW)

    def _ask(self, loaded: Sequence[LoadedJob]) -> list[list[ExpertOutput]]:
        """Windows of equal size go through the experts together; answers come back in the order of the crops."""

        def shape(number: int) -> tuple[int, int]:
            window = loaded[number].window
            turned = loaded[number].job.dihedral % 2
            return (window.width, window.height) if turned else (window.height, window.width)

        answers: dict[int, list[ExpertOutput]] = {}
        for _, alike in groupby(sorted(range(len(loaded)), key=shape), key=shape):
            numbers = list(alike)
            given = run_experts(self._networks, [loaded[number] for number in numbers])
            answers.update(zip(numbers, given, strict=True))
        return [answers[number] for number in range(len(loaded))]

    def _features(self, outputs: Sequence[Sequence[ExpertOutput]]) -> Tensor | None:
        stacked: list[Tensor] = []
        for part, expert in zip(self._slices, outputs, strict=True):
            if part.channels:
                stacked.append(torch.cat([_present(one.feat_BCHW) for one in expert]))
        return torch.cat(stacked, 1).cpu() if stacked else None


def _groups(jobs: Sequence[ItemJob], patch: int, where: Path) -> list[Group]:
    small = [job for job in jobs if min(job.height, job.width) < patch]
    if small:
        what = f"{len(small)} image(s) are smaller than a patch of {patch} (first: {small[0].source.name})"
        raise Refusal(what, where=where, cure="choose a smaller patch, or remove them")
    ordered = sorted(jobs, key=lambda job: job.group)
    return [Group(job.group, (Variant(job.id, 0, job.height, job.width),)) for job in ordered]


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
