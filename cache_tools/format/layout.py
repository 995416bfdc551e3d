"""An item file -> its header and where in the file each chunk lies; whatever is not whole is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

import h5py
import numpy as np
from pydantic import ValidationError

from cache_tools.format.errors import corrupt
from cache_tools.format.item import compression_filters
from cache_tools.format.schema import CRC, HEADER, SCHEMA_VERSION, DatasetSpec, Header, dataset_specs
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class DatasetLayout:
    """Per tile (rows, columns): where its chunk begins in the file, its stored bytes, and their crc32."""

    spec: DatasetSpec
    offset: np.ndarray
    size: np.ndarray
    crc: np.ndarray


@dataclass(frozen=True)
class ItemLayout:
    """One item file, known well enough to read any tile without going through HDF5 again."""

    path: Path
    header: Header
    datasets: dict[str, DatasetLayout]


class _StoredChunk(Protocol):
    """What HDF5 says of a chunk (h5py's StoreInfo, which has no types)."""

    chunk_offset: tuple[int, ...]
    byte_offset: int
    size: int


def open_layout(path: Path) -> ItemLayout:
    """Read the header and the chunk tables; check each against the other and against the file's size."""
    try:
        size = path.stat().st_size
        # Without locks: items never change once they have their name, and some network file systems cannot lock.
        with h5py.File(path, "r", locking=False) as file:
            header = _header(path, file)
            if header.compression != "none":
                compression_filters(header.compression)
            specs = dataset_specs(header)
            return ItemLayout(path, header, {name: _dataset(path, file, spec, size) for name, spec in specs.items()})
    except FileNotFoundError:
        raise corrupt(path, "item is missing") from None
    # Damaged bytes make h5py fail in any of these ways, depending on which structure they hit.
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise corrupt(path, f"HDF5 cannot read it ({error})") from error


def read_header(path: Path | str, stream: BinaryIO | None = None) -> Header:
    """Only the header of an item; from `stream` where the item is no file of this machine."""
    try:
        with h5py.File(stream or path, "r", **({} if stream else {"locking": False})) as file:
            return _header(path, file)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise corrupt(path, f"HDF5 cannot read it ({error})") from error


def _header(path: Path | str, file: h5py.File) -> Header:
    text = file.attrs[HEADER]
    if not isinstance(text, bytes):
        raise corrupt(path, "has no header")
    try:
        header = Header.model_validate_json(text)
    except ValidationError as error:
        raise corrupt(path, f"header is invalid ({error.error_count()} errors)") from None
    if header.schema_version != SCHEMA_VERSION:
        what = f"has schema {header.schema_version}, this program reads {SCHEMA_VERSION}"
        raise Refusal(what, where=path, cure="use the version of the program that made the cache")
    return header


def _dataset(path: Path, file: h5py.File, spec: DatasetSpec, file_size: int) -> DatasetLayout:
    dataset = file[spec.name]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape != spec.shape or dataset.dtype != spec.dtype:
        raise corrupt(path, f"dataset {spec.name} does not match the header")
    if dataset.chunks != spec.chunk:
        raise corrupt(path, f"dataset {spec.name} has other chunks than the schema's")
    stored_crc = file[f"{CRC}/{spec.name}"]
    if not isinstance(stored_crc, h5py.Dataset) or stored_crc.shape != _grid(spec):
        raise corrupt(path, f"has no crc32 for each chunk of dataset {spec.name}")
    crc = np.asarray(stored_crc[...], np.uint32)
    # -1 until the chunk is found: HDF5 does not list chunks that were never written and would read them as zeros.
    offset, size = np.full(crc.shape, -1, np.int64), np.zeros(crc.shape, np.int64)

    def note(chunk: _StoredChunk) -> None:
        tile = chunk.chunk_offset[spec.y] // spec.chunk[spec.y], chunk.chunk_offset[spec.x] // spec.chunk[spec.x]
        offset[tile], size[tile] = chunk.byte_offset, chunk.size

    dataset.id.chunk_iter(note)  # one pass over the chunk index; asking for each chunk by itself searches it every time
    if (offset < 0).any() or (offset + size > file_size).any():
        raise corrupt(path, f"dataset {spec.name} lacks chunks")
    return DatasetLayout(spec, offset, size, crc)


def _grid(spec: DatasetSpec) -> tuple[int, int]:
    return -(-spec.shape[spec.y] // spec.chunk[spec.y]), -(-spec.shape[spec.x] // spec.chunk[spec.x])
