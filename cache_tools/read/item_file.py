"""Item file, tile rows and columns -> its stored arrays, every chunk's crc32 checked when it is first touched.

Chunks are read by their place in the file, past HDF5: one system call fetches all that belongs to a tile, without
HDF5's global lock. Compressed chunks are checked as stored and then decoded by HDF5.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import h5py
import numpy as np

from cache_tools.format.checksum import crc32
from cache_tools.format.errors import corrupt
from cache_tools.format.layout import open_layout
from cache_tools.format.schema import TILE
from imaging.tiling import touched_tiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from cache_tools.format.layout import DatasetLayout

Check = Literal["first", "always"]
_NEAR = 1 << 16  # bytes: a gap that costs less to read than another system call


class TileFile:
    """One open item. Not shared between processes; immutable files need no locks."""

    def __init__(self, path: Path, check: Check = "first") -> None:
        self.layout = open_layout(path)
        self.header = self.layout.header
        self._check = check
        self._trusted = {name: np.zeros(dataset.crc.shape, bool) for name, dataset in self.layout.datasets.items()}
        self._descriptor: int | None = None
        self._hdf5: h5py.File | None = None

    def close(self) -> None:
        """Give the file handles back; reading opens them again."""
        if self._hdf5 is not None:
            self._hdf5.close()
            self._hdf5 = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            self.close()

    def tile(self, tile: tuple[int, int], names: Sequence[str]) -> dict[str, np.ndarray]:
        """The chunks of one tile in their stored types; at the right and lower edges cut to the image."""
        datasets = [self.layout.datasets[name] for name in names]
        arrays: dict[str, np.ndarray] = {}
        for dataset, stored in zip(datasets, self._stored(datasets, tile), strict=True):
            self._require_intact(dataset, tile, stored)
            arrays[dataset.spec.name] = self._decode(dataset, tile, stored)
        return arrays

    def prefetch(self, tiles: Iterable[tuple[int, int]], names: Sequence[str]) -> None:
        """Have the system read these tiles in the background: they are needed soon."""
        # macOS has none; reading works without, only later.
        if not hasattr(os, "posix_fadvise"):
            return
        for tile in tiles:
            for start, stop in _spans([self.layout.datasets[name] for name in names], tile):
                os.posix_fadvise(self._open(), start, stop - start, os.POSIX_FADV_WILLNEED)

    def whole(self, name: str) -> np.ndarray:
        """One dataset, complete."""
        dataset = self.layout.datasets[name]
        result = np.empty(dataset.spec.shape, dataset.spec.dtype)
        for tile in np.ndindex(*dataset.crc.shape):
            result[dataset.spec.window(*tile)] = self.tile((tile[0], tile[1]), [name])[name]
        return result

    def _open(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.layout.path, os.O_RDONLY)
        return self._descriptor

    def _stored(self, datasets: Sequence[DatasetLayout], tile: tuple[int, int]) -> list[memoryview]:
        """The stored bytes of each dataset's chunk; chunks that lie together are fetched together."""
        blocks = {start: self._read(start, stop - start) for start, stop in _spans(datasets, tile)}
        stored: list[memoryview] = []
        for dataset in datasets:
            begin, size = int(dataset.offset[tile]), int(dataset.size[tile])
            # The block that holds the chunk is the last that begins at or before it.
            start = max(start for start in blocks if start <= begin)
            stored.append(blocks[start][begin - start : begin - start + size])
        return stored

    def _read(self, start: int, size: int) -> memoryview:
        # preadv takes an offset: threads share the descriptor, not its position. It may read less than requested.
        block = bytearray(size)
        view, done = memoryview(block), 0
        while done < size:
            got = os.preadv(self._open(), [view[done:]], start + done)
            if got == 0:
                raise corrupt(self.layout.path, f"ends before byte {start + size}")
            done += got
        return view

    def _require_intact(self, dataset: DatasetLayout, tile: tuple[int, int], stored: memoryview) -> None:
        trusted = self._trusted[dataset.spec.name]
        # Files are immutable: one check per process is enough.
        if trusted[tile] and self._check == "first":
            return
        if crc32(stored) != int(dataset.crc[tile]):
            what = f"{dataset.spec.name} tile {tile[0]},{tile[1]} fails its crc32 {int(dataset.crc[tile]):08x}"
            raise corrupt(self.layout.path, what)
        trusted[tile] = True

    def _decode(self, dataset: DatasetLayout, tile: tuple[int, int], stored: memoryview) -> np.ndarray:
        spec = dataset.spec
        window = spec.window(*tile)
        if self.header.compression != "none":
            return self._decompress(spec.name, window)
        chunk = np.frombuffer(stored, spec.dtype).reshape(spec.chunk)
        return chunk[tuple(slice(part.stop - part.start) for part in window)]

    def _decompress(self, name: str, window: tuple[slice, ...]) -> np.ndarray:
        try:
            if self._hdf5 is None:
                self._hdf5 = h5py.File(self.layout.path, "r", locking=False)
            dataset = self._hdf5[name]
            assert isinstance(dataset, h5py.Dataset)  # the layout was read from this file
            return np.asarray(dataset[window])
        except (OSError, RuntimeError) as error:
            raise corrupt(self.layout.path, f"HDF5 cannot decompress {name} ({error})") from error


def require_intact(path: Path) -> None:
    """Open a file as a reader would and check every chunk's crc32."""
    file = TileFile(path, check="always")
    try:
        for tile in np.ndindex(*file.header.tiles):
            file.tile((tile[0], tile[1]), list(file.layout.datasets))
    finally:
        file.close()


def tiles_of(top: int, left: int, height: int, width: int) -> list[tuple[int, int]]:
    """The tiles that a rectangle of LR pixels touches, row by row."""
    return [(y, x) for y in touched_tiles(top, height, TILE) for x in touched_tiles(left, width, TILE)]


def _spans(datasets: Sequence[DatasetLayout], tile: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of the file parts that hold these chunks; near ones as one part."""
    chunks = sorted((int(dataset.offset[tile]), int(dataset.size[tile])) for dataset in datasets)
    start, stop = chunks[0][0], sum(chunks[0])
    for begin, size in chunks[1:]:
        if begin > stop + _NEAR:
            yield start, stop
            start = begin
        stop = begin + size
    yield start, stop
