"""A header and the arrays that belong to it -> the bytes of one HDF5 item.

The file is built in memory and only then written, so that a full disk is an ordinary error and never a half-open
HDF5 file. Tile by tile, all datasets of a tile follow one another: a reader fetches a tile with one read.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from cache_tools.format.checksum import crc32
from cache_tools.format.schema import CRC, HEADER, DatasetSpec, dataset_specs
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cache_tools.format.schema import Compression, Header

# Version 1.10 of the format: it checksums its own tables, and every HDF5 library since 2016 reads it.
_FORMAT = ("v110", "v110")


def serialize_item(header: Header, arrays: Mapping[str, np.ndarray]) -> memoryview:
    """Exactly the datasets that the header calls for, in their stored types -> an HDF5 file, in memory."""
    specs = dataset_specs(header)
    _require_arrays(header, specs, arrays)
    filters = compression_filters(header.compression)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=_FORMAT) as file:
        # Fixed length: HDF5 puts strings of variable length into its global heap, which has no checksum.
        file.attrs.create(HEADER, np.bytes_(header.model_dump_json().encode()))
        datasets = {
            spec.name: file.create_dataset(spec.name, spec.shape, spec.dtype, chunks=spec.chunk, **filters)
            for spec in specs.values()
        }
        crcs = {name: np.zeros(header.tiles, np.uint32) for name in specs}
        for tile in np.ndindex(*header.tiles):
            for name, spec in specs.items():
                crcs[name][tile] = _store_tile(datasets[name], spec, arrays[name], tile, raw=not filters)
        for name, values in crcs.items():
            file.create_dataset(f"{CRC}/{name}", data=values)
    return buffer.getbuffer()


def _store_tile(
    dataset: h5py.Dataset, spec: DatasetSpec, array: np.ndarray, tile: tuple[int, ...], *, raw: bool
) -> int:
    """Store one chunk; return the crc32 of its bytes as they lie in the file."""
    tile_y, tile_x = tile
    window = spec.window(tile_y, tile_x)
    origin = spec.origin(tile_y, tile_x)
    if not raw:
        dataset[window] = array[window]
        dataset.file.flush()  # or the chunk is still in HDF5's cache, not yet compressed
        _, stored = dataset.id.read_direct_chunk(origin)
        return crc32(stored)
    # A direct write bypasses HDF5's edge handling: chunks at the right and lower edges are padded to full size here.
    part = array[window]
    chunk = np.zeros(spec.chunk, spec.dtype) if part.shape != spec.chunk else np.ascontiguousarray(part)
    if part.shape != spec.chunk:
        chunk[tuple(slice(size) for size in part.shape)] = part
    dataset.id.write_direct_chunk(origin, chunk)
    return crc32(chunk.data)


def compression_filters(compression: Compression) -> dict[str, Any]:
    """A compression's name -> h5py's arguments for create_dataset; zstd needs the extra package."""
    if compression == "none":
        return {}
    if compression == "gzip":
        return {"compression": "gzip", "compression_opts": 4, "shuffle": False}  # shuffle gains nothing on uint8
    try:
        import hdf5plugin  # pyright: ignore[reportMissingImports]
    except ImportError:
        cure = "pip install 'championship-sr[zstd]', or choose --compress none or gzip"
        raise Refusal("zstd needs the package hdf5plugin", where="--compress", cure=cure) from None
    return dict(hdf5plugin.Zstd(clevel=3))


def _require_arrays(header: Header, specs: Mapping[str, DatasetSpec], arrays: Mapping[str, np.ndarray]) -> None:
    """What is stored must be what the header says, also under `python -O`."""
    cure = "the expert that gave it does not keep to its size: run `python -m experts check` on it"
    if set(arrays) != set(specs):
        raise Refusal(f"has {sorted(arrays)}, expected {sorted(specs)}", where=f"item {header.id}", cure=cure)
    for name, spec in specs.items():
        found = arrays[name]
        if found.shape != spec.shape or found.dtype != spec.dtype:
            what = f"its {name} is {found.dtype} {found.shape}, expected {spec.dtype} {spec.shape}"
            raise Refusal(what, where=f"item {header.id}", cure=cure)
