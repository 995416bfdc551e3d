"""Flipped bits and cut files: each is noticed, or changes nothing that anybody reads."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from cache_tools.format.errors import CorruptItem
from cache_tools.format.layout import ItemLayout
from cache_tools.read.dataset import CacheDataset
from cache_tools.read.item_file import TileFile
from cache_tools.read.reader import CacheReader
from imaging.refusal import Refusal
from tests.cache.parts import command, command_json, item_bytes_of, make_cache

if TYPE_CHECKING:
    from pathlib import Path


def everything(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    file = TileFile(path)
    try:
        return file.header, {name: file.whole(name) for name in file.layout.datasets}
    finally:
        file.close()


def silent(path: Path, truth: tuple[Any, dict[str, np.ndarray]]) -> bool:
    """Whether reading gives something else than the truth without a word."""
    try:
        header, arrays = everything(path)
    except Refusal:
        return False
    same = header == truth[0] and all(np.array_equal(arrays[name], truth[1][name]) for name in truth[1])
    return not same


def data_bytes(layout: ItemLayout) -> set[int]:
    """The positions in the file that hold chunks."""
    found: set[int] = set()
    for dataset in layout.datasets.values():
        for offset, size in zip(dataset.offset.flat, dataset.size.flat, strict=True):
            found.update(range(int(offset), int(offset + size)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_no_bit_flip_is_silent(tmp_path: Path, compression: str) -> None:
    """Every byte of HDF5's own tables and our header, and eight hundred bytes of data."""
    (path,) = make_cache(tmp_path, [(8, 8)], compression=compression).glob("items/*/*.h5")
    good, truth = bytearray(path.read_bytes()), everything(path)
    inside = data_bytes(TileFile(path).layout)
    rng = random.Random(1)
    tables = [position for position in range(len(good)) if position not in inside]
    positions = [*tables, *rng.sample(sorted(inside), min(800, len(inside)))]
    if compression != "none":
        positions = rng.sample(positions, 800)
    else:
        assert len(positions) > 2800
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(good)
    with damaged.open("r+b", buffering=0) as stream:
        for position in positions:
            flipped = good[position] ^ (1 << rng.randrange(8))
            stream.seek(position)
            stream.write(bytes([flipped]))
            assert not silent(damaged, truth), f"byte {position}"
            stream.seek(position)
            stream.write(bytes([good[position]]))
    assert not silent(damaged, truth)
    assert everything(damaged)[0] == truth[0]


def test_every_flip_in_data_is_refused_by_name(tmp_path: Path) -> None:
    (path,) = make_cache(tmp_path, [(8, 8)]).glob("items/*/*.h5")
    good = path.read_bytes()
    for name, dataset in TileFile(path).layout.datasets.items():
        position = int(dataset.offset[0, 0]) + int(dataset.size[0, 0]) // 2
        path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
        with pytest.raises(CorruptItem, match=f"{name} tile 0,0 fails its crc32") as caught:
            everything(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("replacement", ["group", "scalar", "longer"])
def test_checksums_of_another_form_are_refused(tmp_path: Path, replacement: str) -> None:
    (path,) = make_cache(tmp_path, [(8, 8)]).glob("items/*/*.h5")
    with h5py.File(path, "r+") as file:
        del file["crc/lr"]
        if replacement == "group":
            file.create_group("crc/lr")
        else:
            file["crc/lr"] = np.zeros(() if replacement == "scalar" else (1, 2), np.uint32)
    with pytest.raises(CorruptItem, match="has no crc32 for each chunk of dataset lr"):
        everything(path)


@pytest.mark.slow
def test_no_truncation_is_silent(tmp_path: Path) -> None:
    (path,) = make_cache(tmp_path, [(8, 8)]).glob("items/*/*.h5")
    good, truth = path.read_bytes(), everything(path)
    lengths = sorted({*range(0, len(good), 7), len(good) - 1, 0})
    assert len(lengths) > 1000
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(good)
    for length in reversed(lengths):
        with damaged.open("r+b") as stream:
            stream.truncate(length)
        with pytest.raises(Refusal):
            everything(damaged)
    damaged.write_bytes(good)
    assert not silent(damaged, truth)


def test_always_checks_again_and_first_trusts_what_it_saw(tmp_path: Path) -> None:
    (path,) = make_cache(tmp_path, [(8, 8)]).glob("items/*/*.h5")
    for check in ("first", "always"):
        good = path.read_bytes()
        file = TileFile(path, check)
        file.tile((0, 0), ["sr"])
        position = int(file.layout.datasets["sr"].offset[0, 0])
        with path.open("r+b") as stream:
            stream.seek(position)
            stream.write(bytes([good[position] ^ 1]))
        if check == "always":
            with pytest.raises(CorruptItem):
                file.tile((0, 0), ["sr"])
        path.write_bytes(good)


def test_training_stops_at_a_damaged_item_and_names_it(tmp_path: Path) -> None:
    root = make_cache(tmp_path, [(40, 40), (48, 48)])
    reader = CacheReader(root)
    path = reader.store.item_path(reader.entries[1].id)
    dataset = TileFile(path).layout.datasets["feat"]
    with path.open("r+b") as stream:
        for offset in dataset.offset.flat:
            stream.seek(int(offset) + 3)
            byte = stream.read(1)[0]
            stream.seek(int(offset) + 3)
            stream.write(bytes([byte ^ 16]))
    with pytest.raises(CorruptItem, match=path.name):
        for _, _ in zip(range(10), CacheDataset(root, patch=32, batch=2), strict=False):
            pass


def test_verify_finds_quarantines_and_extract_mends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_cache(tmp_path)
    before = item_bytes_of(root)
    flipped, cut, lost = sorted(root.glob("items/*/*.h5"), key=lambda path: path.name)
    content = bytearray(flipped.read_bytes())
    content[int(TileFile(flipped).layout.datasets["hr"].offset[0, 0])] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1000])
    lost.unlink()
    assert command("verify", root, "--quick") == 1
    code, verdict = command_json(capsys, "verify", root, "--full", "--quarantine")
    assert code == 1
    assert {failure["item"][0] for failure in verdict["failures"]} == {"a", "b", "c"}
    assert "crc32" in next(one["reason"] for one in verdict["failures"] if one["item"].startswith("a"))
    assert sorted(verdict["quarantined"]) == sorted([flipped.stem, cut.stem])
    assert {path.name for path in (root / "quarantine").iterdir()} == {flipped.name, cut.name}
    code, verdict = command_json(capsys, "verify", root, "--full")
    assert (code, verdict["unfinished"]) == (0, 3)
    make_cache(tmp_path)
    assert item_bytes_of(root) == before
    assert command("verify", root, "--full") == 0
