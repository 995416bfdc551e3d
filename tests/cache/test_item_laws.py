"""Items of any size and make: what is stored is what h5py finds and what every way of reading gives back."""

from __future__ import annotations

import os
import zlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache_tools.format.codec import decode_image, dequantize_whole, encode_features, encode_sr, quantize
from cache_tools.format.errors import CorruptItem
from cache_tools.format.item import compression_filters, serialize_item
from cache_tools.format.schema import PROFILES, TILE, ExpertEntry, Header, dataset_specs
from cache_tools.read import item_file
from cache_tools.read.item_file import TileFile, tiles_of
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path

    from cache_tools.format.layout import DatasetLayout


def header_of(height: int, width: int, profile: Any, *, channels: tuple[int, ...] = (3, 2), **more: Any) -> Header:
    """Experts named a, b, ... of these channels; no HR image unless asked for."""
    channels = channels if PROFILES[profile].features else (0,) * len(channels)
    firsts = np.cumsum([0, *channels])
    entries = tuple(
        ExpertEntry(
            name="abc"[number],
            architecture="EDSR",
            tap=None,
            first=int(firsts[number]),
            channels=count,
            weights_sha256="0" * 64,
            precision="fp32",
            tiling="whole",
        )
        for number, count in enumerate(channels)
    )
    fields: dict[str, Any] = {
        "id": "item",
        "group": "item",
        "source": "item.png",
        "hr_sha256": None,
        "lr_sha256": None,
        "height": height,
        "width": width,
        "profile": profile,
        "compression": "none",
        "degradation": "bicubic",
        "experts": entries,
        "fingerprint": "f",
    }
    return Header(**(fields | more))


def arrays_for(header: Header, seed: int = 0) -> dict[str, np.ndarray]:
    """Random numbers of the stored types."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 256, spec.shape).astype(spec.dtype)
        if spec.dtype == np.uint8
        else rng.normal(size=spec.shape).astype(spec.dtype)
        for name, spec in dataset_specs(header).items()
    }


def store(folder: Path, header: Header, arrays: dict[str, np.ndarray]) -> Path:
    path = folder / "item.h5"
    path.write_bytes(serialize_item(header, arrays))
    return path


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


@pytest.mark.parametrize("value", [65504.0, -65504.0, 70000.0, -70000.0])
def test_half_holds_up_to_its_largest(value: float) -> None:
    feat = torch.zeros(2, 3, 3)
    feat[1, 2, 0] = value
    if abs(value) <= 65504:
        stored, scales = encode_features(feat, PROFILES["half"], where="x")
        assert (stored.dtype, scales) == (torch.float16, None)
        assert torch.equal(stored.float(), feat)
    else:
        with pytest.raises(Refusal, match="x: features exceed what 16-bit"):
            encode_features(feat, PROFILES["half"], where="x")


def test_each_profile_has_its_types() -> None:
    feat, image = torch.rand(2, 40, 40, dtype=torch.float64), torch.rand(3, 8, 8, dtype=torch.float64)
    codes, scales = encode_features(feat, PROFILES["compact"], where="x")
    assert scales is not None
    assert (codes.dtype, scales.dtype, tuple(scales.shape)) == (torch.uint8, torch.float32, (2, 2, 2, 2))
    assert dequantize_whole(codes, scales).dtype == torch.float32
    whole, none = encode_features(feat, PROFILES["lossless"], where="x")
    assert (whole.dtype, none) == (torch.float32, None)
    kept = encode_sr(image, PROFILES["lossless"], where="x")
    assert kept.dtype == torch.float32
    with pytest.raises(Refusal, match="x: .*NaN or infinity"):
        encode_sr(image / 0, PROFILES["lossless"], where="x")
    assert decode_image(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    assert decode_image(kept) is not None and torch.equal(decode_image(kept), kept)


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), seed=st.integers(0, 99))
def test_codes_are_the_nearest_of_256_steps(height: int, width: int, seed: int) -> None:
    """Tile by tile in NumPy; at the edges only pixels that exist decide the range."""
    feat = np.random.default_rng(seed).normal(size=(2, height, width)).astype(np.float32)
    codes, scales = (part.numpy() for part in quantize(torch.from_numpy(feat)))
    assert (codes.dtype, codes.shape, scales.dtype) == (np.uint8, feat.shape, np.float32)
    for y, x in np.ndindex(scales.shape[:2]):
        here = np.s_[:, TILE * y : TILE * (y + 1), TILE * x : TILE * (x + 1)]
        low, high = feat[here].min((1, 2)), feat[here].max((1, 2))
        scale = (high - low) / np.float32(255)
        np.testing.assert_allclose(scales[y, x], np.stack([scale, low], -1), rtol=1e-6)
        step = np.where(scale > 0, scale, 1)[:, None, None]
        assert np.abs(codes[here] - (feat[here] - low[:, None, None]) / step).max() <= 0.501
    assert scales.shape == (-(-height // TILE), -(-width // TILE), 2, 2)
