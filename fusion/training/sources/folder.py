"""HR image folders -> aligned LR and HR crops; whole images are kept in memory as 8-bit.

LR is made once from each whole image by antialiased bicubic and rounded to 8 bits, as benchmark LR files are; with
`data.degrade`, anew from each HR crop (fusion/training/sources/degraded.py).
Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from cache_tools.read.reader import drawn
from fusion.training.settings import hold_out_cure
from fusion.training.sources.augment import Augmentation, fitted
from fusion.training.sources.batch import TrainBatch
from fusion.training.sources.degraded import CONTEXT, degraded_crop, degraded_image, mixed
from fusion.training.sources.loader import step_loader
from fusion.training.sources.sampling import Purpose, draw, samples_of_step
from imaging.files import list_images, quantize_u8, read_rgb
from imaging.refusal import Refusal
from imaging.resize import crop_to_multiple, downscale

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import Tensor

    from fusion.training.settings import TrainSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """One image in memory: uint8 (3,H,W) at both sizes."""

    item: str
    lr_CHW: Tensor
    hr_CHW: Tensor


@dataclass(frozen=True)
class RawPairs:
    """Crops as they leave a worker: uint8, or float32 where an augmentation made new values."""

    items: tuple[str, ...]
    lr_BCHW: Tensor
    hr_BCHW: Tensor


def load_pair(path: Path, item: str, scale: int) -> Pair:
    """An HR file -> HR cropped to a multiple of the scale, and its LR."""
    hr_BCHW = crop_to_multiple(read_rgb(path), scale)
    lr_BCHW = downscale(hr_BCHW, scale)
    return Pair(item, quantize_u8(lr_BCHW)[0], quantize_u8(hr_BCHW)[0])


def load_pairs(folders: Sequence[Path], scale: int) -> tuple[list[Pair], str]:
    """All images of the folders and a fingerprint of their content; two of one name are refused."""
    paths = [(folder, path) for folder in folders for path in list_images(folder)]
    if not paths:
        raise Refusal("no training images are named", where="data.hr", cure="give data.hr=[FOLDER,...]")
    digest = hashlib.sha256()
    pairs: list[Pair] = []
    for folder, path in tqdm(paths, desc="reading images", unit="image", disable=None):
        item = path.relative_to(folder).with_suffix("").as_posix()
        if any(pair.item == item for pair in pairs):
            raise Refusal(f"two images are called '{item}'", where=folder, cure="rename one of them")
        digest.update(item.encode() + hashlib.sha256(path.read_bytes()).digest())
        pairs.append(load_pair(path, item, scale))
    return pairs, digest.hexdigest()


def as_float(image: Tensor, device: torch.device) -> Tensor:
    """uint8 -> float32 in [0, 1] on the device; float images pass."""
    moved = image.to(device, non_blocking=True)
    return moved.float() / 255 if moved.dtype == torch.uint8 else moved


class FolderSource:
    """Training images in memory; `hold_out` of them are never trained on: spread evenly over the list, or by a seed."""

    def __init__(self, settings: TrainSettings, rank: int = 0, world: int = 1) -> None:
        self._batch, self._rank, self._world = settings.data.batch, rank, world
        self._scale, self._degrade = settings.data.scale, mixed(settings.data.degrade)
        self._seed, self._patch = settings.seed, settings.data.patch
        # What is cut out of an image: a degraded crop loses its rim, where blur and JPEG saw the cut.
        self._room = self._patch if self._degrade is None else self._patch + 2 * CONTEXT
        self._pairs, self._held, self._fingerprint = self._read(settings)
        self._augment = Augmentation(settings.augment, seed=settings.seed, live=True)
        areas = np.array([_placements(pair, self._room) for pair in self._pairs], dtype=np.float64)
        if not areas.any():
            raise Refusal(f"no image has {self._room} LR pixels on both sides", where="data.patch", cure="lower it")
        self._chances = areas / areas.sum()
        small = int((areas == 0).sum())
        log.info("%d training images (%d too small for the patch), %d held out", len(areas), small, len(self._held))

    def _read(self, settings: TrainSettings) -> tuple[list[Pair], list[Pair], str]:
        """The images to train on, those held out, and the fingerprint of all."""
        pairs, fingerprint = load_pairs(settings.data.hr, self._scale)
        names = [pair.item for pair in pairs]
        held = held_out_indices(names, settings.data.hold_out, settings.data.hold_out_seed)
        kept = [pair for index, pair in enumerate(pairs) if index not in set(held)]
        return kept, [pairs[index] for index in held], fingerprint

    @property
    def fingerprint(self) -> str:
        """Hash of the names and bytes of all images."""
        return self._fingerprint

    def raw_batches(self, steps: range, workers: int) -> Iterator[RawPairs]:
        """One batch per step."""
        return step_loader(self.draw, steps, workers)

    def draw(self, step: int) -> RawPairs:
        """One random crop per sample of this process; images are drawn in proportion to their area."""
        samples = samples_of_step(step, self._batch, self._rank, self._world)
        crops = [self._crop(sample) for sample in samples]
        lr_BCHW, hr_BCHW = torch.stack([crop[1] for crop in crops]), torch.stack([crop[2] for crop in crops])
        lr_BCHW, hr_BCHW = self._augment.batch(lr_BCHW, hr_BCHW, samples)
        return RawPairs(tuple(crop[0] for crop in crops), lr_BCHW, hr_BCHW)

    def finish(self, raw: RawPairs, device: torch.device) -> TrainBatch:
        """To the device, float32 in [0, 1]."""
        return TrainBatch(raw.items, as_float(raw.lr_BCHW, device), as_float(raw.hr_BCHW, device))

    def held_out(self) -> Iterator[TrainBatch]:
        """The held-out images, whole."""
        for pair in self._held:
            yield whole(pair)

    def held_out_degraded(self) -> Iterator[TrainBatch]:
        """The same images, each with a degradation of its own that no seed changes; none where LR is bicubic."""
        if self._degrade is None:
            return
        for index, pair in enumerate(self._held):
            yield whole(replace(pair, lr_CHW=degraded_image(pair.hr_CHW, self._degrade, index)))

    def _crop(self, sample: int) -> tuple[str, Tensor, Tensor]:
        chance = draw(self._seed, Purpose.CROP, sample)
        pair = self._pairs[int(chance.choice(len(self._pairs), p=self._chances))]
        height, width = pair.lr_CHW.shape[-2:]
        size = self._augment.crop_size(self._room, min(height, width), sample)
        top, left = int(chance.integers(height - size + 1)), int(chance.integers(width - size + 1))
        lr_CHW = pair.lr_CHW[:, top : top + size, left : left + size]
        big, top, left = size * self._scale, top * self._scale, left * self._scale
        hr_CHW = pair.hr_CHW[:, top : top + big, left : left + big]
        if self._degrade is not None:
            hr_CHW = fitted(hr_CHW, self._room * self._scale)
            lr_CHW, hr_CHW = degraded_crop(hr_CHW, self._degrade, self._seed, sample)
        return (pair.item, *self._augment.sample(lr_CHW, hr_CHW, self._patch, sample))


def whole(pair: Pair) -> TrainBatch:
    """One whole image as a batch of one, float32 on the CPU."""
    cpu = torch.device("cpu")
    return TrainBatch((pair.item,), as_float(pair.lr_CHW[None], cpu), as_float(pair.hr_CHW[None], cpu))


def held_out_indices(names: Sequence[str], hold_out: int, seed: int | None = None) -> list[int]:
    """`hold_out` of the indices, spread evenly or drawn by `seed` as from a cache; at least as many must remain."""
    count = len(names)
    if hold_out * 2 > count:
        raise Refusal(
            f"holding out {hold_out} of {count} leaves less than half to train on",
            where="data.hold_out",
            cure=hold_out_cure(count),
        )
    if seed is not None:
        away = drawn(names, hold_out, seed)
        return [index for index, name in enumerate(names) if name in away]
    return [int((index + 0.5) * count / hold_out) for index in range(hold_out)]


def _placements(pair: Pair, patch: int) -> int:
    """In how many places a patch fits into the image."""
    height, width = pair.lr_CHW.shape[-2:]
    return max(height - patch + 1, 0) * max(width - patch + 1, 0)
