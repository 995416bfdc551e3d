"""The reader by its laws: who is chosen, in which order, how many files stay open, which images are held out."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.format.schema import LR
from cache_tools.format.store import Entry
from cache_tools.read import reader as reader_module
from cache_tools.read.batch import Slice
from cache_tools.read.reader import CacheReader, OpenFiles, expert_order, iterate_items, split_items
from cache_tools.write.extract import extract
from cache_tools.write.recipe import ExtractSettings
from imaging.files import read_rgb
from imaging.refusal import Refusal
from tests.cache.parts import experts, make_cache, write_images

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(tmp_path_factory.mktemp("laws"), [(40, 48), (33, 70), (16, 20), (20, 16)])


def entry(item: str, source: str, **more: Any) -> Entry:
    fields = {"group": source, "dihedral": 0, "height": 8, "width": 8, "region": None, "fingerprint": "f", "bytes": 1}
    return Entry(id=item, source=source, **(fields | more))


@settings(max_examples=100, deadline=None)
@given(
    regions=st.lists(st.integers(1, 3), min_size=1, max_size=12),
    held_out=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_whole_images_are_held_out(regions: list[int], held_out: float, seed: int) -> None:
    entries = [entry(f"i{n}r{r}", f"image{n}") for n, count in enumerate(regions) for r in range(count)]
    train, held = split_items(entries, held_out, seed)
    ids = [one.id for one in entries]
    assert [item for item in ids if item in train] == train, "in the order of the cache"
    assert [item for item in ids if item in held] == held
    assert sorted(train + held) == sorted(ids)
    images = {item.partition("r")[0] for item in held}
    assert not images & {item.partition("r")[0] for item in train}
    assert len(images) == round(held_out * len(regions))
    assert set(held) == set(split_items(entries[::-1], held_out, seed)[1]), "whatever the order of the entries"
    assert split_items(entries, held_out) == split_items(entries, held_out, 0)


def test_a_split_is_the_same_in_every_version() -> None:
    """A checkpoint knows its training images by seed alone: another split would judge on images that it learned."""
    names = [f"image{n}" for n in range(10)]
    entries = [entry(name, name) for name in names]
    for seed in range(4):
        first = sorted(names, key=lambda name: hashlib.sha1(f"{seed}/{name}".encode()).hexdigest())[:3]
        assert split_items(entries, 0.3, seed)[1] == sorted(first)


def test_a_reader_knows_its_items_and_experts(cache: Path) -> None:
    reader = CacheReader(cache)
    assert (len(reader), reader.experts, reader.channels, reader.has_hr) == (4, ("e0", "e1"), {"e0": 6, "e1": 8}, True)
    assert reader.slices == (Slice("e0", 0, 6), Slice("e1", 6, 8))
    assert reader.check == "first"
    turned = CacheReader(cache, experts=["e1", "e0"])
    assert turned.slices == (Slice("e1", 0, 8), Slice("e0", 8, 6))
    assert CacheReader(cache, features=False).channels == {"e0": 0, "e1": 0}
    ids = [one.id for one in reader.entries]
    chosen = [ids[2], ids[0]]
    assert [one.id for one in CacheReader(cache, items=chosen).entries] == chosen
    assert [item.items for item in iterate_items(cache, items=chosen)] == [(ids[2],), (ids[0],)]
    assert expert_order(reader.file(ids[0]), ["e1", "e0", "e1"]) == [1, 0, 1]


@pytest.mark.parametrize(
    ("wanted", "says"), [([], "named once each"), (["e0", "e0"], "named once each"), (["e0", "e9"], "no expert 'e9'")]
)
def test_experts_are_named_once_each(cache: Path, wanted: list[str], says: str) -> None:
    with pytest.raises(Refusal, match=says):
        CacheReader(cache, experts=wanted)
    with pytest.raises(Refusal, match="holds no items"):
        CacheReader(cache, items=[])


def test_an_item_is_a_batch_of_one(cache: Path) -> None:
    reader = CacheReader(cache)
    first = reader.entries[0]
    item = reader.read(first.id)
    height, width = first.height, first.width
    assert tuple(item.lr_BCHW.shape) == (1, 3, height, width)
    assert item.hr_BCHW is not None
    assert tuple(item.hr_BCHW.shape) == (1, 3, 4 * height, 4 * width)
    assert tuple(item.sr_BECHW.shape) == (1, 2, 3, 4 * height, 4 * width)
    assert {name: tuple(feat.shape) for name, feat in item.feats.items()} == {
        "e0": (1, 6, height, width),
        "e1": (1, 8, height, width),
    }
    parts = [item.lr_BCHW, item.hr_BCHW, item.sr_BECHW, *item.feats.values()]
    assert {part.dtype for part in parts} == {torch.float32}
    assert (item.items, item.experts) == ((first.id,), ("e0", "e1"))
    only = CacheReader(cache, experts=["e1"]).read(first.id)
    assert set(only.feats) == {"e1"}


def test_everything_can_be_read_onto_another_device(cache: Path) -> None:
    reader = CacheReader(cache)
    item = reader.read(reader.entries[0].id, "meta")
    assert item.hr_BCHW is not None
    parts = [item.lr_BCHW, item.hr_BCHW, item.sr_BECHW, *item.feats.values()]
    assert {part.device.type for part in parts} == {"meta"}


def test_without_hr_there_is_none(tmp_path: Path) -> None:
    """LR images alone, lossless: as floats they are the files' levels."""
    lr = write_images(tmp_path / "lr", [(24, 24)], scale=1)
    extract(ExtractSettings(out=tmp_path / "c", lr=lr, profile="lossless"), experts(tmp_path / "w"))
    reader = CacheReader(tmp_path / "c")
    (item,) = reader
    assert not reader.has_hr
    assert item.hr_BCHW is None
    torch.testing.assert_close(item.lr_BCHW, read_rgb(lr / "a.png"))


def test_few_files_are_open_at_a_time_the_last_used_ones(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_OPEN_FILES", 2)
    reader = CacheReader(cache)
    files = OpenFiles(reader.store, "first")
    a, b, c, _ = (one.id for one in reader.entries)

    def read(item: str) -> None:
        files.get(item).whole(LR)

    def is_open(item: str) -> bool:
        return files._known[item]._descriptor is not None

    read(a)
    read(b)
    read(a)
    read(c)
    assert [is_open(item) for item in (a, b, c)] == [True, False, True]
    known = files._known[b]
    read(b)
    assert files.get(b) is known, "what proved intact is remembered"
    assert [is_open(item) for item in (a, b, c)] == [False, True, True]
    files.drop(b)
    files.drop(b)
    assert b not in files._known
    assert files.get(b) is not known


def test_items_that_were_read_in_turn_are_let_go(cache: Path) -> None:
    reader = CacheReader(cache)
    for _ in reader:
        assert len(reader._files._known) <= 1 + 1  # the first, where it was asked whether there is HR
    assert not reader._files._open


def test_a_child_process_opens_files_of_its_own(cache: Path) -> None:
    reader = CacheReader(cache, check="always")
    item = reader.entries[0].id
    mine = reader.file(item)
    mine.whole(LR)
    assert reader.file(item) is mine
    child = os.fork()
    if child == 0:
        own = reader.file(item)
        fine = own is not mine and own._check == "always" and own._descriptor is None
        os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert reader.file(item) is mine
