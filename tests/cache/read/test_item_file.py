"""An item's file as it is read: opened again, told ahead, checked tile by tile, near chunks fetched together."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.format.errors import CorruptItem
from cache_tools.format.schema import TILE, dataset_specs
from cache_tools.read import item_file
from cache_tools.read.item_file import TileFile, tiles_of
from tests.cache.parts import arrays_for, header_of, store

if TYPE_CHECKING:
    from pathlib import Path

    from cache_tools.format.layout import DatasetLayout


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_closed_file_is_opened_again_when_read(tmp_path: Path, compression: str) -> None:
    header = header_of(40, 40, "half", compression=compression)
    arrays = arrays_for(header)
    file = TileFile(store(tmp_path, header, arrays))
    for _ in range(2):
        np.testing.assert_array_equal(file.whole("feat"), arrays["feat"])
        descriptor = file._descriptor
        assert descriptor is not None
        os.fstat(descriptor)
        file.close()
        file.close()
        with pytest.raises(OSError):
            os.fstat(descriptor)
        assert file._hdf5 is None


def test_a_file_that_nobody_holds_is_closed(tmp_path: Path) -> None:
    header = header_of(10, 10, "images")
    path = store(tmp_path, header, arrays_for(header))
    file = TileFile(path)
    file.whole("lr")
    descriptor = file._descriptor
    assert descriptor is not None
    del file
    with pytest.raises(OSError):
        os.fstat(descriptor)
    TileFile(path)  # never read: there is nothing to close
    with pytest.raises(CorruptItem, match="is missing"):
        TileFile(tmp_path / "other.h5")


def test_asking_ahead_names_what_will_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system is told of each asked chunk and of nothing else, and reading gives what it did."""
    header = header_of(70, 70, "half")
    arrays = arrays_for(header)
    file = TileFile(store(tmp_path, header, arrays))
    told: list[tuple[int, int, int]] = []
    advise = os.posix_fadvise

    def note(descriptor: int, start: int, length: int, advice: int) -> None:
        told.append((start, start + length, advice))
        advise(descriptor, start, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", note)
    asked = [(0, 0), (2, 2)]
    file.prefetch(asked, ["feat", "lr"])
    for tile in asked:
        for name in ("feat", "lr"):
            start = int(file.layout.datasets[name].offset[tile])
            stop = start + int(file.layout.datasets[name].size[tile])
            assert any(low <= start and stop <= high for low, high, _ in told)
    assert {advice for _, _, advice in told} == {os.POSIX_FADV_WILLNEED}
    edges = {int(file.layout.datasets[name].offset[tile]) for tile in asked for name in ("feat", "lr")}
    assert {low for low, _, _ in told} <= edges
    np.testing.assert_array_equal(file.tile((2, 2), ["feat"])["feat"], arrays["feat"][:, 64:, 64:])


def test_a_file_that_ends_too_soon_is_refused(tmp_path: Path) -> None:
    header = header_of(64, 64, "images")
    path = store(tmp_path, header, arrays_for(header))
    file = TileFile(path)
    end = int((file.layout.datasets["lr"].offset + file.layout.datasets["lr"].size).max())
    os.truncate(path, end - 1)
    with pytest.raises(CorruptItem, match=f"ends before byte {end}"):
        file.whole("lr")


@pytest.mark.parametrize("check", ["first", "always"])
def test_each_tile_of_each_dataset_is_checked_for_itself(tmp_path: Path, check: Any) -> None:
    """Trust in one chunk is no trust in its neighbours."""
    header = header_of(64, 64, "images")
    arrays = arrays_for(header)
    path = store(tmp_path, header, arrays)
    file = TileFile(path, check)
    file.tile((0, 0), ["lr"])
    for name, tile in (("lr", (0, 1)), ("lr", (1, 0)), ("sr", (0, 0))):
        place = int(file.layout.datasets[name].offset[tile]) + 5
        good = path.read_bytes()
        with path.open("r+b") as stream:
            stream.seek(place)
            stream.write(bytes([good[place] ^ 8]))
        with pytest.raises(CorruptItem, match=rf"{name} tile {tile[0]},{tile[1]} fails its crc32 [0-9a-f]{{8}}"):
            file.tile(tile, [name])
        path.write_bytes(good)
        np.testing.assert_array_equal(
            file.tile(tile, [name])[name], arrays[name][dataset_specs(header)[name].window(*tile)]
        )


@pytest.mark.parametrize("check", [None, "first", "always"])
def test_what_was_once_intact_is_trusted_but_where_always_is_asked_for(tmp_path: Path, check: Any) -> None:
    header = header_of(20, 20, "images")
    path = store(tmp_path, header, arrays_for(header))
    file = TileFile(path) if check is None else TileFile(path, check)
    good = file.tile((0, 0), ["lr"])["lr"].copy()
    place = int(file.layout.datasets["lr"].offset[0, 0])
    content = bytearray(path.read_bytes())
    content[place] ^= 255
    path.write_bytes(content)
    if check == "always":
        with pytest.raises(CorruptItem):
            file.tile((0, 0), ["lr"])
    else:
        assert (file.tile((0, 0), ["lr"])["lr"] != good).sum() == 1


@pytest.mark.parametrize(("gap", "parts"), [(0, 1), (65536, 1), (65537, 2)])
def test_chunks_64_kib_apart_are_near(gap: int, parts: int) -> None:
    datasets = [SimpleNamespace(offset=np.full((1, 1), begin), size=np.full((1, 1), 10)) for begin in (10 + gap, 0)]
    assert len(list(item_file._spans(cast("list[DatasetLayout]", datasets), (0, 0)))) == parts


@settings(max_examples=200, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.integers(0, 120_000), st.integers(1, 9_000)), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_near_chunks_are_fetched_together(chunks: list[tuple[int, int]], order: Any) -> None:
    """Parts of the file: in order, each begins and ends with a chunk, and no gap in them is longer than 64 KiB."""
    placed, at = list[tuple[int, int]](), 0
    for gap, size in chunks:
        at += gap
        placed.append((at, size))
        at += size
    order.shuffle(placed)
    datasets = [SimpleNamespace(offset=np.full((1, 1), begin), size=np.full((1, 1), size)) for begin, size in placed]
    spans = list(item_file._spans(cast("list[DatasetLayout]", datasets), (0, 0)))
    expected = list[list[int]]()
    for begin, size in sorted(placed):
        if expected and begin - expected[-1][1] <= 65536:
            expected[-1][1] = begin + size
        else:
            expected.append([begin, begin + size])
    assert [list(span) for span in spans] == expected


@settings(max_examples=100, deadline=None)
@given(top=st.integers(0, 130), left=st.integers(0, 130), height=st.integers(1, 70), width=st.integers(1, 70))
def test_the_tiles_of_a_rectangle_are_those_of_its_pixels(top: int, left: int, height: int, width: int) -> None:
    expected = {(y // TILE, x // TILE) for y in range(top, top + height) for x in range(left, left + width)}
    assert tiles_of(top, left, height, width) == sorted(expected)
