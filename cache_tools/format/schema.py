"""The names, shapes and types inside an item file, as data; the only file that knows them.

One image (or region) = one HDF5 file. Every dataset is cut into one chunk per tile of 32x32 LR pixels, so that tile
(y, x) is the same picture content in each of them, and carries a crc32 per stored chunk.

Legend: E experts, C channels, H and W LR height and width, T tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from imaging.scale import SCALE, SCALES
from imaging.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA_VERSION = 1  # readers refuse any other
TILE = 32  # LR pixels; smaller means more reads per patch, larger reads more pixels that the patch does not use
SUFFIX = ".h5"

FEAT, FEAT_SCALE, SR, HR, LR = "feat", "feat_scale", "sr", "hr", "lr"
CRC = "crc"
HEADER = "header"

ProfileName = Literal["compact", "half", "lossless", "images"]
Compression = Literal["none", "gzip", "zstd"]
Dtype = Literal["u1", "<f2", "<f4"]


class Profile(Settings):
    """How an item's numbers are stored. `exactness` orders the profiles: repacking only goes downwards."""

    name: ProfileName
    features: Dtype | None
    sr: Dtype
    exactness: int


PROFILES: dict[ProfileName, Profile] = {
    profile.name: profile
    for profile in (
        Profile(name="lossless", features="<f4", sr="<f4", exactness=3),
        Profile(name="half", features="<f2", sr="u1", exactness=2),
        Profile(name="compact", features="u1", sr="u1", exactness=1),
        Profile(name="images", features=None, sr="u1", exactness=0),
    )
}


class Region(Settings):
    """A rectangle of an image, in LR pixels."""

    top: int
    left: int
    height: int
    width: int


class ExpertRecord(Settings):
    """A record of an expert, which names the foreign code that built it only where there was some, its scale if not 4.

    Without that rule every record would have new keys that say nothing, and no fingerprint from before would be equal.
    """

    code: str | None = None
    scale: int = Field(default=SCALE, ge=min(SCALES), le=max(SCALES))

    @model_serializer(mode="wrap")
    def leave_out_what_is_usual(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The record's values, as pydantic writes them, without an empty `code` and a `scale` of 4."""
        silent = {"code"} if self.code is None else set[str]()
        silent |= {"scale"} if self.scale == SCALE else set[str]()
        return {key: value for key, value in write(self).items() if key not in silent}


class ExpertEntry(ExpertRecord):
    """One expert as an item records it; `first` and `channels` are its slice of the feature dataset."""

    name: str
    architecture: str
    tap: str | None
    first: int
    channels: int
    weights_sha256: str
    precision: str
    tiling: str


class Header(Settings):
    """All that an item records about itself."""

    schema_version: int = SCHEMA_VERSION
    id: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    group: str
    source: str
    hr_sha256: str | None
    lr_sha256: str | None
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    region: Region | None = None
    dihedral: int = Field(default=0, ge=0, lt=8)
    profile: ProfileName
    compression: Compression
    degradation: str
    experts: tuple[ExpertEntry, ...] = Field(min_length=1)
    fingerprint: str

    @property
    def has_hr(self) -> bool:
        """Whether the true HR image lies beside the experts' attempts at it."""
        return self.hr_sha256 is not None

    @property
    def scale(self) -> int:
        """How many times as large as LR the experts' images and HR are; all experts of a cache agree in it."""
        return self.experts[0].scale

    @property
    def channels(self) -> int:
        """Sum of C over the experts."""
        return sum(expert.channels for expert in self.experts)

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        return ceil(self.height / TILE), ceil(self.width / TILE)


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset: its shape and chunk; `y` and `x` are the axes along which tiles follow one another."""

    name: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[np.generic]
    y: int
    x: int

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one uncompressed chunk."""
        return int(np.prod(self.chunk)) * self.dtype.itemsize

    def origin(self, tile_y: int, tile_x: int) -> tuple[int, ...]:
        """Where in the dataset a tile's chunk begins."""
        place = [0] * len(self.shape)
        place[self.y] = tile_y * self.chunk[self.y]
        place[self.x] = tile_x * self.chunk[self.x]
        return tuple(place)

    def window(self, tile_y: int, tile_x: int) -> tuple[slice, ...]:
        """The part of the dataset that a tile's chunk holds (less than a chunk at the right and lower edges)."""
        begins = self.origin(tile_y, tile_x)
        return tuple(slice(b, min(b + c, s)) for b, c, s in zip(begins, self.chunk, self.shape, strict=True))


def dataset_specs(header: Header) -> dict[str, DatasetSpec]:
    """The datasets that an item with this header must have, in the order in which each tile is stored."""
    return {spec.name: spec for spec in _specs(header)}


def _specs(header: Header) -> Iterator[DatasetSpec]:
    profile = PROFILES[header.profile]
    channels, height, width = header.channels, header.height, header.width
    if profile.features is not None and channels:
        yield _image(FEAT, (channels,), height, width, TILE, profile.features)
        if profile.features == "u1":
            shape = (*header.tiles, channels, 2)
            yield DatasetSpec(FEAT_SCALE, shape, (1, 1, channels, 2), np.dtype("<f4"), 0, 1)
    # SR and HR chunks cover the same LR tile, so they are as many times as large on each side.
    large = (header.scale * height, header.scale * width, header.scale * TILE)
    yield _image(SR, (len(header.experts), 3), *large, profile.sr)
    if header.has_hr:
        yield _image(HR, (3,), *large, "u1")
    yield _image(LR, (3,), height, width, TILE, "u1")


def _image(name: str, front: tuple[int, ...], height: int, width: int, tile: int, dtype: Dtype) -> DatasetSpec:
    chunk = (*front, min(tile, height), min(tile, width))
    return DatasetSpec(name, (*front, height, width), chunk, np.dtype(dtype), len(front), len(front) + 1)


def item_bytes(header: Header) -> int:
    """Bytes of the uncompressed item file: exact for the chunks, closely for HDF5's own tables."""
    tiles_y, tiles_x = header.tiles
    specs = dataset_specs(header)
    chunks = tiles_y * tiles_x * sum(spec.chunk_bytes for spec in specs.values())
    tables = tiles_y * tiles_x * 12 * len(specs)  # a crc and a chunk address
    return chunks + tables + len(header.model_dump_json()) + 3500  # about HDF5's own structures
