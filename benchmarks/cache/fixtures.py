"""Test data: features like an expert's, items and `.pt` files of them, and files dropped from the page cache.

Legend: E experts, C channels, H and W LR height and width.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from cache_tools.format.store import ExpertIdentityRecord, Recipe, Store
from cache_tools.write.encode_item import encode_item
from cache_tools.write.jobs import make_jobs
from cache_tools.write.load import LoadedJob, LoadedSource
from cache_tools.write.pairs import Source
from cache_tools.write.recipe import make_header, make_manifest
from cache_tools.write.writer import ItemWriter, open_store
from experts.spec import ExpertOutput
from imaging.atomic import sync_file
from imaging.files import quantize_u8
from imaging.resize import resize_bicubic
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import Tensor

    from cache_tools.format.schema import ProfileName

CHANNELS = {"hat": 180, "drct": 180, "grl": 180, "edsr": 256}


def make_recipe_for(profile: ProfileName) -> Recipe:
    """The four-expert case with 796 channels."""
    with_features = profile != "images"
    return Recipe(
        profile=profile,
        compression="none",
        experts=tuple(
            ExpertIdentityRecord(
                name=name,
                architecture="benchmark",
                tap="benchmark" if with_features else None,
                channels=channels if with_features else 0,
                weights_sha256="benchmark",
                precision="fp32",
                tiling="whole",
            )
            for name, channels in CHANNELS.items()
        ),
        degradation="benchmark",
        regions=0,
        region_size=0,
        context=0,
        seed=0,
        dihedral=False,
    )


def make_outputs(height: int, width: int, seed: int) -> tuple[LoadedJob, list[ExpertOutput]]:
    """One item's features and images, smooth plus noise, of the size of real ones."""
    generator = torch.Generator().manual_seed(seed)
    hr_CHW = _smooth(3, SCALE * height, SCALE * width, generator).mul(0.15).add(0.5).clamp(0, 1)
    lr_CHW = hr_CHW[:, ::SCALE, ::SCALE]
    outputs: list[ExpertOutput] = []
    for channels in CHANNELS.values():
        feat_CHW = _smooth(channels, height, width, generator)
        feat_CHW += 0.3 * torch.randn(feat_CHW.shape, generator=generator)
        sr_CHW = hr_CHW + 0.02 * torch.randn(hr_CHW.shape, generator=generator)
        outputs.append(ExpertOutput(sr_CHW[None], feat_CHW[None]))
    source = Source(f"bench{seed}", None, None, height, width)
    job = make_jobs([source], regions=0, region_size=0, seed=0, dihedral=False)[0]
    image = LoadedSource(quantize_u8(lr_CHW), quantize_u8(hr_CHW), "benchmark", None)
    return LoadedJob(job, image, job.region, image.lr_CHW, image.hr_CHW), outputs


def _smooth(channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    coarse = torch.randn(1, channels, -(-height // 8) + 1, -(-width // 8) + 1, generator=generator)
    return resize_bicubic(coarse, size=(height, width))[0]


def write_item(root: Path, profile: ProfileName, loaded: LoadedJob, outputs: Sequence[ExpertOutput]) -> Path:
    """One item of a cache, made as extraction makes it."""
    recipe, store = make_recipe_for(profile), Store(root)
    if not store.manifest_path.exists():
        open_store(store, make_manifest(recipe, 0, {}))
    header = make_header(recipe, loaded)
    ItemWriter(store).write(header, encode_item(recipe, loaded, outputs))
    return store.item_path(header.id)


def write_pt(path: Path, loaded: LoadedJob, outputs: Sequence[ExpertOutput]) -> Path:
    """The older layout: everything of an image as float32 in one torch.save file."""
    assert loaded.hr_CHW is not None
    names = list(CHANNELS)
    content = {
        "lr": loaded.lr_CHW.float() / 255,
        "hr": loaded.hr_CHW.float() / 255,
        "expert_imgs": {name: output.sr_BCHW[0] for name, output in zip(names, outputs, strict=True)},
        "expert_feats": {name: _present(output.feat_BCHW)[0] for name, output in zip(names, outputs, strict=True)},
    }
    torch.save(content, path)
    sync_file(path)
    return path


def drop_from_page_cache(paths: Iterable[Path]) -> None:
    """Have the system drop these files from its page cache, so that the next read goes to the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
