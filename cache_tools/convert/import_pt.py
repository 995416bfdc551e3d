"""Per-image `.pt` files of the older layout -> a cache.

Each holds `lr` (3, H, W), `hr` (3, 4H, 4W), `expert_imgs` {name: (3, 4H, 4W)} and `expert_feats` {name: (C, H, W)},
float in [0, 1] or uint8. They do not name the weights; the cache records them as unknown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from cache_tools.format.errors import ForeignCache, StorageFailed
from cache_tools.format.store import UNKNOWN, ExpertIdentityRecord, Recipe
from cache_tools.storage.open import store_at
from cache_tools.write.encode_item import encode_item
from cache_tools.write.extract import Report
from cache_tools.write.jobs import ItemJob, make_jobs
from cache_tools.write.load import LoadedJob, LoadedSource
from cache_tools.write.pairs import Failure, Source
from cache_tools.write.recipe import make_header, make_manifest, require_unmixed
from cache_tools.write.space import item_sizes, require_room
from cache_tools.write.writer import ItemWriter, open_store
from experts.spec import ExpertOutput
from imaging.files import quantize_u8
from imaging.hashes import file_sha256
from imaging.refusal import Refusal
from imaging.scale import SCALE, SCALES
from imaging.tensors.unpickle import load_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cache_tools.format.schema import Compression, ProfileName

_HIGHEST = 4.0  # SR images may overshoot [0, 1]; 0..255 stored as floats must be refused


def import_pt(
    folder: Path, out: Path | str, *, profile: ProfileName = "compact", compression: Compression = "none"
) -> Report:
    """Convert every file; those that are not of the layout are listed, the rest goes on."""
    paths = sorted(folder.rglob("*.pt"))
    if not paths:
        raise Refusal("holds no .pt files", where=folder, cure="name the folder of per-image .pt files")
    report = Report()
    store = store_at(out)
    recipe: Recipe | None = None
    writer = ItemWriter(store)
    for number, path in enumerate(tqdm(paths, unit="file", desc="import", disable=None)):
        try:
            content = _read(path)
            if recipe is None:
                recipe = _recipe(content, profile, compression)
                require_unmixed(store, recipe)
                open_store(store, make_manifest(recipe, len(paths), {}))
            name = path.relative_to(folder).with_suffix("").as_posix()
            loaded, outputs = _loaded(path, name, content, recipe)
            if store.size(loaded.job.id) is not None:
                report.kept.append(loaded.job.id)
                continue
            require_room(store.location, item_sizes(recipe, [loaded.job]))
            writer.write(make_header(recipe, loaded), encode_item(recipe, loaded, outputs), loaded.job.source.stamp)
            report.made.append(loaded.job.id)
        except (StorageFailed, ForeignCache):
            raise
        except Refusal as error:
            report.failures.append(Failure(path.name, str(error)))
        # No file could be read: then nothing was written, and the first reason is the useful one.
        if recipe is None and number + 1 == len(paths):
            raise Refusal("holds no .pt file of the expected layout", where=folder, cure=str(report.failures[0].reason))
    return report


def _read(path: Path) -> dict[str, Any]:
    """Only tensors and plain containers are unpickled: such a file cannot run code."""
    cure = "expected lr, hr, expert_imgs, expert_feats"
    content = load_tensors(path, cure=cure)
    if not {"lr", "hr", "expert_imgs"} <= set(content):
        raise Refusal("is not of the per-image layout", where=path, cure=cure)
    tables = [content["expert_imgs"], content.get("expert_feats", {})]
    if not all(isinstance(table, dict) and all(map(torch.is_tensor, table.values())) for table in tables):
        raise Refusal("expert_imgs and expert_feats must map names to tensors", where=path, cure=cure)
    return content


def _recipe(content: Mapping[str, Any], profile: ProfileName, compression: Compression) -> Recipe:
    """The first file decides which experts there are and how many channels each has."""
    feats = content.get("expert_feats", {}) if profile != "images" else {}
    experts: list[ExpertIdentityRecord] = []
    factor = _factor(content["lr"], content["hr"])
    for name in content["expert_imgs"]:
        channels = int(feats[name].shape[-3]) if name in feats else 0
        experts.append(
            ExpertIdentityRecord(
                name=name,
                architecture=UNKNOWN,
                tap=UNKNOWN if channels else None,
                channels=channels,
                weights_sha256=UNKNOWN,
                precision=UNKNOWN,
                tiling=UNKNOWN,
                scale=factor,
            )
        )
    return Recipe(
        profile=profile,
        compression=compression,
        experts=tuple(experts),
        degradation=UNKNOWN,
        regions=0,
        region_size=0,
        context=0,
        seed=0,
        dihedral=False,
    )


def _factor(lr: object, hr: object) -> int:
    """What the first file's images say; where they say nothing, their shapes are refused later."""
    if not (isinstance(lr, Tensor) and isinstance(hr, Tensor) and lr.dim() and hr.dim() and lr.shape[-1]):
        return SCALE
    factor = hr.shape[-1] // lr.shape[-1]
    return factor if factor in SCALES else SCALE


def _loaded(path: Path, name: str, content: Mapping[str, Any], recipe: Recipe) -> tuple[LoadedJob, list[ExpertOutput]]:
    lr_CHW, hr_CHW = _image(path, "lr", content["lr"]), _image(path, "hr", content["hr"])
    height, width = lr_CHW.shape[-2:]
    large = (3, recipe.scale * height, recipe.scale * width)
    _require_shape(path, "hr", hr_CHW, large)
    expected = {expert.name for expert in recipe.experts}
    if set(content["expert_imgs"]) != expected:
        what = f"has experts {', '.join(content['expert_imgs'])}, the first file {', '.join(sorted(expected))}"
        raise Refusal(what, where=path, cure="import folders of different experts into separate caches")
    outputs: list[ExpertOutput] = []
    for expert in recipe.experts:
        sr_CHW = _image(path, expert.name, content["expert_imgs"][expert.name])
        _require_shape(path, expert.name, sr_CHW, large)
        feat_CHW = content.get("expert_feats", {}).get(expert.name) if expert.channels else None
        if feat_CHW is not None:
            feat_CHW = feat_CHW[0] if feat_CHW.dim() == 4 else feat_CHW
            _require_shape(path, f"features of {expert.name}", feat_CHW, (expert.channels, height, width))
            feat_CHW = feat_CHW.float()[None]
        outputs.append(ExpertOutput(sr_CHW[None], feat_CHW))
    digest = file_sha256(path)
    image = LoadedSource(quantize_u8(lr_CHW), quantize_u8(hr_CHW), digest, digest)
    job = _job(Source(name, path, path, height, width, recipe.scale))
    return LoadedJob(job, image, job.region, image.lr_CHW, image.hr_CHW), outputs


def _job(source: Source) -> ItemJob:
    return make_jobs([source], regions=0, region_size=0, seed=0, dihedral=False)[0]


def _image(path: Path, name: str, tensor: Tensor) -> Tensor:
    """An image in any of the layout's forms -> float32 (3, H, W), nominally in [0, 1]."""
    image_CHW = tensor[0] if tensor.dim() == 4 and tensor.shape[0] == 1 else tensor
    image_CHW = image_CHW.float() / 255 if tensor.dtype == torch.uint8 else image_CHW.float()
    if image_CHW.dim() != 3 or image_CHW.shape[0] != 3:
        raise Refusal(f"{name} is {tuple(tensor.shape)}, not (3, H, W)", where=path, cure="make the file again")
    if not bool(torch.isfinite(image_CHW).all()) or float(image_CHW.abs().amax()) > _HIGHEST:
        raise Refusal(f"{name} is not an image in [0, 1]", where=path, cure="make the file again")
    return image_CHW


def _require_shape(path: Path, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise Refusal(f"{name} is {tuple(tensor.shape)}, expected {shape}", where=path, cure="make the file again")
