"""Items of any size and make: what is stored is what h5py finds and what every way of reading gives back."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.format.item import compression_filters, serialize_item
from cache_tools.format.schema import PROFILES, dataset_specs
from cache_tools.read.item_file import TileFile
from imaging.refusal import Refusal
from tests.cache.parts import arrays_for, header_of, store

if TYPE_CHECKING:
    from pathlib import Path


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    profile=st.sampled_from(sorted(PROFILES)),
    compression=st.sampled_from(["none", "gzip"]),
    with_hr=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_is_stored_is_read_by_tiles_whole_and_by_h5py(
    tmp_path_factory: pytest.TempPathFactory,
    height: int,
    width: int,
    profile: Any,
    compression: Any,
    with_hr: bool,
    seed: int,
) -> None:
    header = header_of(height, width, profile, compression=compression, hr_sha256="1" * 64 if with_hr else None)
    arrays = arrays_for(header, seed)
    path = store(tmp_path_factory.mktemp("item"), header, arrays)
    with h5py.File(path) as opened:
        for name, array in arrays.items():
            stored: Any = opened[name]
            assert stored.dtype == array.dtype
            np.testing.assert_array_equal(stored[...], array)
            crcs: Any = opened[f"crc/{name}"]
            assert (crcs.shape, crcs.dtype) == (header.tiles, np.uint32)
            for tile in np.ndindex(*header.tiles):
                chunk = stored.id.read_direct_chunk(dataset_specs(header)[name].origin(*tile))[1]
                assert crcs[tile] == zlib.crc32(chunk)
        assert set(opened) == {*arrays, "crc"}
    file = TileFile(path)
    assert file.header == header
    for name, array in arrays.items():
        found = file.whole(name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    for tile in np.ndindex(*header.tiles):
        together = file.tile((tile[0], tile[1]), list(arrays))
        assert list(together) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(together[name], array[dataset_specs(header)[name].window(*tile)])
    file.close()


def test_chunks_at_the_edge_are_filled_up_with_nought(tmp_path: Path) -> None:
    """So that equal items are equal files."""
    header = header_of(33, 40, "images")
    path = store(tmp_path, header, arrays_for(header))
    with h5py.File(path) as opened:
        dataset: Any = opened["lr"]
        chunk = np.frombuffer(dataset.id.read_direct_chunk((0, 32, 32))[1], np.uint8).reshape(3, 32, 32)
    assert chunk[:, 1:].max() == chunk[:, :, 8:].max() == 0
    assert bytes(serialize_item(header, arrays_for(header))) == path.read_bytes()


@pytest.mark.parametrize("what", ["missing", "too many", "shape", "type"])
def test_arrays_that_are_not_those_of_the_header_are_not_stored(what: str) -> None:
    header = header_of(20, 20, "images")
    arrays = arrays_for(header)
    changed = {
        "missing": {"sr": arrays["sr"]},
        "too many": arrays | {"hr": arrays["lr"]},
        "shape": arrays | {"lr": arrays["lr"][:, 1:]},
        "type": arrays | {"lr": arrays["lr"].astype(np.int16)},
    }
    with pytest.raises(Refusal, match="item"):
        serialize_item(header, changed[what])


def test_compression_is_what_the_header_says(tmp_path: Path) -> None:
    assert compression_filters("none") == {}
    header = header_of(64, 64, "half", compression="gzip")
    with h5py.File(store(tmp_path, header, arrays_for(header))) as opened:
        dataset: Any = opened["feat"]
        assert (dataset.compression, dataset.compression_opts, dataset.shuffle) == ("gzip", 4, False)
