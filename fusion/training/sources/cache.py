"""A cache -> training batches with the experts' images and features, and whole held-out items."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from cache_tools.read.dataset import CacheDataset
from cache_tools.read.reader import CacheReader, FusionBatch, dequantize, split_items
from cache_tools.storage.open import store_at
from fusion.network.base.fit import BORDER
from fusion.network.settings import ExpertSlot
from fusion.training.settings import hold_out_cure
from fusion.training.sources.augment import refuse_for_cache
from fusion.training.sources.batch import TrainBatch
from imaging.dihedral import VARIANTS
from imaging.refusal import Refusal
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from fusion.training.settings import AugmentSettings, TrainSettings

FEATURE_ITEMS = 32  # enough for a channel's mean and spread; all of them would read the whole cache

log = logging.getLogger(__name__)


def at_cache_scale(settings: TrainSettings) -> TrainSettings:
    """The settings of a run on a cache, which knows by how much its experts enlarge."""
    cache = settings.data.cache
    if cache is None:
        return settings
    scale = store_at(cache).manifest.recipe.scale
    if settings.data.scale not in (SCALE, scale):
        what = f"is {settings.data.scale}; the experts of {cache} enlarge {scale} times"
        raise Refusal(what, where="data.scale", cure="leave it out")
    return settings.model_copy(update={"data": settings.data.model_copy(update={"scale": scale})})


class CacheSource:
    """Random patches of a cache's training items; images are held out whole, so no region of one is trained on."""

    fit_border = BORDER

    def __init__(self, settings: TrainSettings, rank: int = 0, world: int = 1) -> None:
        data = settings.data
        if data.cache is None:
            raise Refusal("no cache is named", where="data.cache", cure="add --cache DIR, or --live with data.hr=[DIR]")
        refuse_for_cache(settings.augment)
        features = settings.network.settings.get("features", "taps") != "none"
        self._reader = CacheReader(data.cache, features=features)
        if not self._reader.has_hr:
            raise Refusal("has no HR images to train on", where=data.cache, cure="extract it with HR images")
        train, self._held = split_sources(self._reader, settings)
        self._source_of = {entry.id: entry.source for entry in self._reader.entries}
        plain = {entry.id for entry in self._reader.entries if entry.dihedral == 0}
        self._fit = [item for item in train if item in plain]
        self._held = [item for item in self._held if item in plain]
        self._patches = CacheDataset(
            data.cache,
            patch=data.patch,
            batch=data.batch // world,
            items=train,
            features=features,
            augment=may_turn(settings.augment, self._reader),
            seed=settings.seed,
            rank=rank,
            world=world,
        )
        log.info("%d items to train on, %d held out", len(train), len(self._held))

    @property
    def fingerprint(self) -> str:
        """The cache's own, with how many items it holds."""
        return f"{self._reader.store.manifest.fingerprint}/{len(self._reader.entries)}"

    @property
    def training_items(self) -> tuple[str, ...]:
        """The plain items that are trained on."""
        return tuple(self._fit)

    @property
    def held_out_items(self) -> tuple[str, ...]:
        """The plain items that are not."""
        return tuple(self._held)

    @property
    def scale(self) -> int:
        """The cache's."""
        return self._reader.recipe.scale

    @property
    def slots(self) -> tuple[ExpertSlot, ...]:
        """The cache's experts, with the weights that they had."""
        identities = {one.name: one for one in self._reader.recipe.experts}
        return tuple(
            ExpertSlot(name=name, channels=self._reader.channels[name], sha256=identities[name].network_sha256)
            for name in self._reader.experts
        )

    @property
    def expert_specs(self) -> dict[str, dict[str, Any]]:
        """As the cache has them; one made before they were stored has none."""
        specs = self._reader.store.manifest.expert_specs
        return {
            name: specs[name].model_dump(mode="json", exclude_defaults=True)
            for name in self._reader.experts
            if name in specs
        }

    def raw_batches(self, steps: range, workers: int) -> Iterator[Any]:
        """As the cache stores them."""
        self._patches.set_position(*divmod(steps.start, self._patches.steps_per_epoch))
        return iter(self._patches.loader(workers))

    def finish(self, raw: Any, device: torch.device) -> TrainBatch:
        """Decoded on the device."""
        return as_train_batch(dequantize(raw, device))

    def fit_items(self) -> Iterator[TrainBatch]:
        """Whole training items, without features: the base is fitted on images."""
        images = CacheReader(self._reader.store.location, items=self._fit, features=False)
        return map(as_train_batch, images.read_each(self._fit))

    def feature_items(self) -> Iterator[TrainBatch]:
        """Whole training items with features, spread evenly over all."""
        every = max(len(self._fit) // FEATURE_ITEMS, 1)
        return map(as_train_batch, self._reader.read_each(self._fit[::every]))

    def held_out(self) -> Iterator[TrainBatch]:
        """Whole held-out items."""
        return map(as_train_batch, self._reader.read_each(self._held))

    def image_of(self, item: str) -> str:
        """The source image of an item."""
        return self._source_of[item]


def as_train_batch(batch: FusionBatch) -> TrainBatch:
    """The reader's batch as a training batch."""
    assert batch.hr_BCHW is not None
    return TrainBatch(batch.items, batch.lr_BCHW, batch.hr_BCHW, batch.sr_BECHW, batch.feats, batch.experts)


def may_turn(augment: AugmentSettings, reader: CacheReader) -> bool:
    """Whether patches are flipped and rotated.

    A network's features of a turned image are not its features, turned: which channel sees a horizontal edge, or the
    upper left sub-pixel, is fixed by its weights. The measured loss: docs/results/fusion-experiments.md.
    """
    wanted, rotate = augment.flip, augment.rotate
    if wanted != rotate:
        raise Refusal("flip and rotate go together for a cache", where="augment", cure="set both or neither")
    exact = {entry.dihedral for entry in reader.entries} == set(range(VARIANTS))
    right = exact or not any(reader.channels.values())
    if wanted and not right:
        cure = "leave it out, extract the cache with --dihedral, or set network.settings.features=none"
        what = "cached features cannot be flipped: no expert was run on the flipped image"
        raise Refusal(what, where="augment.flip", cure=cure)
    if wanted is None and not right:
        log.info("patches are not flipped or rotated: the cache has the features of upright images only (--dihedral)")
    return right if wanted is None else wanted


def split_sources(reader: CacheReader, settings: TrainSettings) -> tuple[list[str], list[str]]:
    """Item ids to train on and held out: `data.hold_out` source images with all their regions."""
    hold_out, seed = settings.data.hold_out, settings.data.hold_out_seed
    images = len({entry.source for entry in reader.entries})
    if hold_out * 2 > images:
        raise Refusal(
            f"holding out {hold_out} of {images} images leaves less than half to train on",
            where="data.hold_out",
            cure=hold_out_cure(images),
        )
    return split_items(reader.entries, hold_out / images, settings.seed if seed is None else seed)
