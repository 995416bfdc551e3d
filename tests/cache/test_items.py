"""What an item file holds, read by plain h5py, in every profile."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest
import torch

from cache_tools.format.schema import PROFILES, ProfileName, dataset_specs, item_bytes
from cache_tools.read.item_file import TileFile
from cache_tools.read.reader import CacheReader
from imaging.files import read_rgb
from imaging.refusal import Refusal
from imaging.resize import downscale
from tests.cache.parts import dequantized_by_hand, experts, make_cache

if TYPE_CHECKING:
    from pathlib import Path


def plain(path: Path) -> Any:
    """The file as h5py gives it, without any of our code."""
    return h5py.File(path, "r")


@pytest.mark.parametrize("profile", PROFILES)
def test_an_item_holds_what_the_experts_said(tmp_path: Path, profile: ProfileName) -> None:
    root = make_cache(tmp_path, [(33, 40)], profile=profile)
    hr = read_rgb(tmp_path / "hr" / "a.png")
    lr = (downscale(hr) * 255).round().clamp(0, 255)
    outputs = [expert.run(lr / 255) for expert in experts(tmp_path / "weights")]
    (path,) = root.glob("items/*/*.h5")
    with plain(path) as file:
        data = {name: np.asarray(file[name][...]) for name in file if name != "crc"}
    np.testing.assert_array_equal(data["lr"], lr[0].numpy())
    np.testing.assert_array_equal(data["hr"], (hr[0] * 255).round().numpy())
    sr = torch.cat([output.sr_BCHW for output in outputs]).numpy()
    if profile == "lossless":
        np.testing.assert_array_equal(data["sr"], sr)
    else:
        np.testing.assert_array_equal(data["sr"], np.round(np.clip(sr, 0, 1) * np.float32(255)))
    if profile == "images":
        assert "feat" not in data
        return
    feat = np.concatenate([output.feat_BCHW[0].numpy() for output in outputs if output.feat_BCHW is not None])
    if profile == "compact":
        back = dequantized_by_hand(data["feat"], data["feat_scale"])
        assert np.abs(back - feat).max() <= 0.5001 * data["feat_scale"][..., 0].max() + 1e-5
    else:
        np.testing.assert_array_equal(data["feat"], feat.astype(data["feat"].dtype))


def test_reader_and_plain_hdf5_agree(tmp_path: Path) -> None:
    root = make_cache(tmp_path, [(70, 45)])
    reader = CacheReader(root)
    item = reader.read(reader.entries[0].id)
    with plain(reader.store.item_path(reader.entries[0].id)) as file:
        feat = dequantized_by_hand(file["feat"][...], file["feat_scale"][...])
        sr = file["sr"][...] / 255.0
    np.testing.assert_allclose(np.concatenate([part[0] for part in item.feats.values()]), feat, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(item.sr_BECHW[0], sr, rtol=1e-6)


def test_stored_crcs_are_zlibs(tmp_path: Path) -> None:
    (path,) = make_cache(tmp_path, [(33, 40)]).glob("items/*/*.h5")
    with plain(path) as file:
        for name in ("feat", "feat_scale", "sr", "hr", "lr"):
            dataset = file[name]
            for index in range(dataset.id.get_num_chunks()):
                place = dataset.id.get_chunk_info(index).chunk_offset
                axes = (0, 1) if name == "feat_scale" else (-2, -1)
                tile = tuple(place[axis] // dataset.chunks[axis] for axis in axes)
                stored = dataset.id.read_direct_chunk(place)[1]
                assert file[f"crc/{name}"][tile] == zlib.crc32(stored)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("size", [(9, 9), (64, 96), (40, 33)])
def test_forecast_bytes_are_the_files_bytes(tmp_path: Path, profile: ProfileName, size: tuple[int, int]) -> None:
    (path,) = make_cache(tmp_path, [size], profile=profile).glob("items/*/*.h5")
    header = TileFile(path).header
    assert abs(item_bytes(header) - path.stat().st_size) < 0.01 * path.stat().st_size + 1500


def test_gzip_keeps_the_numbers_and_saves_bytes(tmp_path: Path) -> None:
    plain = make_cache(tmp_path / "plain", [(40, 48)])
    packed = make_cache(tmp_path / "packed", [(40, 48)], compression="gzip")
    one, other = (next(iter(CacheReader(root))) for root in (plain, packed))
    assert torch.equal(one.sr_BECHW, other.sr_BECHW)
    assert all(torch.equal(one.feats[name], other.feats[name]) for name in one.feats)
    sizes = [next(root.glob("items/*/*.h5")).stat().st_size for root in (plain, packed)]
    assert sizes[1] < sizes[0]


def test_zstd_without_its_package_is_refused(tmp_path: Path) -> None:
    try:
        import hdf5plugin  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        with pytest.raises(Refusal, match="hdf5plugin"):
            make_cache(tmp_path, [(16, 16)], compression="zstd")
    else:
        plain = next(iter(CacheReader(make_cache(tmp_path / "plain", [(40, 48)]))))
        packed = next(iter(CacheReader(make_cache(tmp_path / "packed", [(40, 48)], compression="zstd"))))
        assert torch.equal(plain.sr_BECHW, packed.sr_BECHW)


def test_header_names_everything_that_made_the_item(tmp_path: Path) -> None:
    (path,) = make_cache(tmp_path, [(16, 20)]).glob("items/*/*.h5")
    with plain(path) as file:
        header = json.loads(file.attrs["header"])
    assert header["schema_version"] == 1
    assert (header["height"], header["width"]) == (16, 20)
    assert [(one["name"], one["first"], one["channels"]) for one in header["experts"]] == [("e0", 0, 6), ("e1", 6, 8)]
    assert all(len(one["weights_sha256"]) == 64 and one["architecture"] == "EDSR" for one in header["experts"])
    assert "bicubic" in header["degradation"]
    assert len(header["hr_sha256"]) == 64


def test_tiles_of_one_place_lie_together(tmp_path: Path) -> None:
    (path,) = make_cache(tmp_path, [(64, 64)]).glob("items/*/*.h5")
    layout = TileFile(path).layout
    assert list(layout.datasets) == list(dataset_specs(layout.header))
    for tile in np.ndindex(2, 2):
        starts = [int(dataset.offset[tile]) for dataset in layout.datasets.values()]
        whole = sum(int(dataset.size[tile]) for dataset in layout.datasets.values())
        assert max(starts) + int(layout.datasets["lr"].size[tile]) - min(starts) < whole + 4096
