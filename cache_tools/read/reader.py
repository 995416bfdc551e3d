"""A cache folder -> whole images as tensors, one after another; with dataset.py, what other rooms read caches through.

Legend: B batch (here 1), E experts, C channels, H and W LR height and width.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING

import torch

from cache_tools.format.checksum import short_hash
from cache_tools.format.codec import decode_image, dequantize_whole
from cache_tools.format.location import is_address
from cache_tools.format.schema import FEAT, FEAT_SCALE, HR, LR, SR
from cache_tools.read.batch import FusionBatch, PatchBatch, Slice, dequantize
from cache_tools.storage.open import open_item, store_at
from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from cache_tools.format.store import Entry, Recipe, Store
    from cache_tools.read.item_file import Check, TileFile

__all__ = ["CacheReader", "FusionBatch", "PatchBatch", "dequantize", "iterate_items", "split_items"]

_ITEMS_AHEAD = 4
_OPEN_COPIES = 16  # an evicted local copy keeps its bytes as long as it is open
_OPEN_FILES = 256  # well below the usual 1024 descriptors of a process, of which loaders need some


class CacheReader:
    """A cache, open for reading. Cheap to make, to pickle and to fork: files are opened when first needed.

    `experts` chooses and orders; `items` restricts to these ids; `features=False` leaves the features unread.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        experts: Sequence[str] | None = None,
        items: Sequence[str] | None = None,
        features: bool = True,
        check: Check = "first",
    ) -> None:
        self.store = store_at(root)
        self.recipe: Recipe = self.store.manifest.recipe
        self.check: Check = check
        self.entries = _select(self.store, self.store.entries(), items)
        self.experts = _choose_experts(self.store, [one.name for one in self.recipe.experts], experts)
        channels = {one.name: one.channels for one in self.recipe.experts}
        self.channels = {name: channels[name] if features else 0 for name in self.experts}
        self._files = OpenFiles(self.store, check)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[FusionBatch]:
        for batch in self.read_each([entry.id for entry in self.entries]):
            yield batch
            self._files.drop(batch.items[0])

    def read_each(self, items: Sequence[str]) -> Iterator[FusionBatch]:
        """These items, whole, one after another; from object storage the next ones come while one is used."""
        for number, item in enumerate(items):
            self.store.prefetch(items[number : number + _ITEMS_AHEAD])
            yield self.read(item)

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The chosen experts' channels once they are stacked in the chosen order."""
        slices: list[Slice] = []
        first = 0
        for name in self.experts:
            slices.append(Slice(name, first, self.channels[name]))
            first += self.channels[name]
        return tuple(slices)

    @property
    def has_hr(self) -> bool:
        """Whether there are HR images to train and measure against."""
        # The first item is enough: one extraction gives HR to all items or to none.
        return all(self.store.header(entry.id).has_hr for entry in self.entries[:1])

    def file(self, item: str) -> TileFile:
        """The open file of an item, of this process."""
        return self._files.get(item)

    def read(self, item: str, device: torch.device | str = "cpu") -> FusionBatch:
        """One whole item as a batch of one, decoded."""
        file = self.file(item)
        order = expert_order(file, self.experts)
        feats: dict[str, torch.Tensor] = {}
        if any(self.channels.values()) and FEAT in file.layout.datasets:
            feats = self._whole_features(file, device)
        hr_CHW = file.whole(HR) if HR in file.layout.datasets else None
        return FusionBatch(
            lr_BCHW=_image(file.whole(LR), device)[None],
            hr_BCHW=None if hr_CHW is None else _image(hr_CHW, device)[None],
            sr_BECHW=_image(file.whole(SR)[order], device)[None],
            feats=feats,
            experts=tuple(self.experts),
            items=(item,),
        )

    def _whole_features(self, file: TileFile, device: torch.device | str) -> dict[str, torch.Tensor]:
        codes_CHW = torch.from_numpy(file.whole(FEAT))
        scale_TUC2 = torch.from_numpy(file.whole(FEAT_SCALE)) if FEAT_SCALE in file.layout.datasets else None
        feats: dict[str, torch.Tensor] = {}
        for expert in file.header.experts:
            if not self.channels.get(expert.name):
                continue
            own = slice(expert.first, expert.first + expert.channels)
            part_CHW = codes_CHW[own].to(device)
            if scale_TUC2 is not None:
                part_CHW = dequantize_whole(part_CHW, scale_TUC2[:, :, own].to(device))
            feats[expert.name] = part_CHW.float()[None]
        return feats


class OpenFiles:
    """The item files of this process: few open at a time, none inherited from another process.

    A closed item keeps its chunk table and which of its chunks have passed their check.
    """

    def __init__(self, store: Store, check: Check) -> None:
        self._store = store
        self._check: Check = check
        self._owner = os.getpid()
        self._known: dict[str, TileFile] = {}
        self._open: OrderedDict[str, TileFile] = OrderedDict()

    def __getstate__(self) -> tuple[Store, Check]:
        return self._store, self._check

    def __setstate__(self, state: tuple[Store, Check]) -> None:
        self.__init__(*state)

    def get(self, item: str) -> TileFile:
        """The item's file; the least recently used handle is closed for it where too many are open."""
        # After a fork: HDF5 handles inherited from the parent must not be used.
        if self._owner != os.getpid():
            self.__init__(self._store, self._check)
        file = self._known.get(item)
        if file is None:
            file = self._known[item] = open_item(self._store, item, self._check)
        self._open[item] = file
        self._open.move_to_end(item)
        if len(self._open) > (_OPEN_COPIES if is_address(self._store.location) else _OPEN_FILES):
            self._open.popitem(last=False)[1].close()
        return file

    def drop(self, item: str) -> None:
        """Forget a file that will not be needed again."""
        self._open.pop(item, None)
        self._known.pop(item, None)


def iterate_items(
    root: Path | str,
    *,
    experts: Sequence[str] | None = None,
    items: Sequence[str] | None = None,
    features: bool = True,
) -> Iterator[FusionBatch]:
    """Every item, whole, as a batch of one: for fits and for validation."""
    return iter(CacheReader(root, experts=experts, items=items, features=features))


def split_items(entries: Sequence[Entry], held_out: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Entries -> (ids to train on, ids held out), by source image: regions and flips of one never part."""
    sources = {entry.source for entry in entries}
    away = drawn(sources, round(held_out * len(sources)), seed)
    train = [entry.id for entry in entries if entry.source not in away]
    return train, [entry.id for entry in entries if entry.source in away]


def drawn(names: Iterable[str], count: int, seed: int) -> set[str]:
    """`count` of the names, by a hash of seed and name: further names change little of who is drawn."""
    return set(sorted(names, key=lambda name: short_hash(f"{seed}/{name}", 40))[:count])


def expert_order(file: TileFile, experts: Sequence[str]) -> list[int]:
    """Where these experts lie in the item's stack."""
    names = [expert.name for expert in file.header.experts]
    return [names.index(name) for name in experts]


def _image(stored: np.ndarray, device: torch.device | str) -> torch.Tensor:
    return decode_image(torch.from_numpy(stored).to(device))


def _select(store: Store, entries: list[Entry], items: Sequence[str] | None) -> list[Entry]:
    if items is not None:
        by_id = {entry.id: entry for entry in entries}
        for item in items:
            if item not in by_id:
                raise Refusal(f"has no item '{item}'", where=store.location, cure=nearest(item, by_id))
        entries = [by_id[item] for item in items]
    if not entries:
        raise Refusal("holds no items", where=store.location, cure="run `python -m cache_tools extract` first")
    return entries


def _choose_experts(store: Store, known: list[str], wanted: Sequence[str] | None) -> tuple[str, ...]:
    if wanted is None:
        return tuple(known)
    for name in wanted:
        if name not in known:
            raise Refusal(f"has no expert '{name}'", where=store.location, cure=nearest(name, known))
    if not wanted or len(set(wanted)) != len(wanted):
        raise Refusal("experts must be named once each", where=store.location, cure=f"choose among {', '.join(known)}")
    return tuple(wanted)
