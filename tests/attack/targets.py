"""What is attacked: sound files of each class, how they are mutated, and how the product reads them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from zlib import crc32

import torch
from safetensors.torch import save_file

from cache_tools.format.store import Store
from cache_tools.read.item_file import TileFile
from experts.catalog import load_catalog
from experts.loading.load import load_network
from experts.loading.weights import read_state_file
from experts.spec import ExpertSpec, WeightsSource
from fusion.budget.model import BudgetModel
from fusion.inference.jobs import ImageJob, measure_jobs
from fusion.inference.source import read_source
from fusion.network import FusionSR
from fusion.network.save import save_model
from fusion.training.loop.checkpoint import load_checkpoint, save_checkpoint
from fusion.training.loop.export import export_weights
from fusion.training.settings import CheckpointSettings, TrainSettings
from fusion.training.tasks.initial_statistics import Channels, InitialStatistics
from imaging.paths import ROOT
from imaging.settings import load_settings, parse_settings
from imaging.tensors.seal import read_json, sealed, unsealed
from tests.attack.mutate import bits_and_damage, in_json, in_safetensors_header, in_yaml
from tests.cache.parts import make_cache
from tests.experts.parts import small_network
from tests.fusion.parts import random_record, small_model, stir
from tests.imaging.files.test_fuzz import seed_files

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np

    from tests.attack.mutate import Mutate

MAX_PIXELS = 1 << 22


@dataclass(frozen=True)
class Original:
    """A sound file, where it lies, and what reading it gives."""

    path: Path
    data: bytes
    truth: str


@dataclass(frozen=True)
class Target:
    """One class of inputs. `checked`: its format or we ourselves have checksums, so that no change may go unnoticed."""

    name: str
    share: int  # of the inputs of a whole attack, in thousandths
    write: Callable[[Path], list[Path]]
    read: Callable[[Path], object]
    mutate: Mutate
    checked: Callable[[Path], bool] = lambda _path: True

    def originals(self, folder: Path) -> list[Original]:
        """Write them, and read each once."""
        torch.manual_seed(0)
        return [Original(path, path.read_bytes(), repr(self.read(path))) for path in self.write(folder)]


def _images(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in seed_files().items():
        (folder / name).write_bytes(data)
    return sorted(folder.iterdir())


def _read_image(path: Path) -> object:
    """Size by the header, then levels: as inference does it. Another size than was forecast is a silent failure."""
    sized, refused = measure_jobs([ImageJob(path, path.with_suffix(".out.png"), "x")])
    source = read_source(path)
    assert not refused or not sized
    if refused or (sized[0].height, sized[0].width) != source.levels_HWC.shape[:2]:
        return SILENT
    source.metadata((4 * source.height, 4 * source.width))  # beside the pixels: damage is left out with a line
    return _bytes_of(source.levels_HWC), None if source.alpha_HW is None else _bytes_of(source.alpha_HW)


SILENT = "the header reader and the decoder differ"


def _bytes_of(array: np.ndarray) -> tuple[Any, ...]:
    return array.shape, str(array.dtype), crc32(array.tobytes())


def _weights(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = small_network("EDSR").state_dict()
    torch.save({"params": tensors}, folder / "zip.pth")
    torch.save(tensors, folder / "stream.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, folder / "foreign.safetensors")
    settings = small_network("EDSR").hyperparameters
    facts: dict[str, Any] = {"architecture": "EDSR", "hyperparameters": settings, "provenance": {"psnr_y": 28.5}}
    export_weights(folder / "ours.safetensors", tensors, **facts)
    return sorted(folder.iterdir())


def _read_weights(path: Path) -> object:
    state = read_state_file(path)
    spec = ExpertSpec(name="x", weights=(WeightsSource(file=str(path)),))
    loaded = load_network(state, spec)
    return sorted(state.header.items()), _tensors(loaded.network.state_dict())


def _tensors(tensors: dict[str, Any]) -> list[Any]:
    return [(name, _bytes_of(one.numpy()) if torch.is_tensor(one) else one) for name, one in sorted(tensors.items())]


def _fusion(folder: Path) -> list[Path]:
    save_model(stir(small_model(), 0.05), folder / "model.safetensors")
    return [folder / "model.safetensors"]


def _read_fusion(path: Path) -> object:
    model = FusionSR.from_pretrained(path)
    return model.settings, model.record, model.base.record, _tensors(model.state_dict())


def _checkpoint(folder: Path) -> list[Path]:
    tensors = small_network("EDSR").state_dict()
    state = {"network": tensors, "optimizer": {0: {"betas": (0.9, 0.99), "step": 3}}, "rng": b"\1\2"}
    return [save_checkpoint(folder, 1, state, CheckpointSettings(every=1))]


def _read_checkpoint(path: Path) -> object:
    state = load_checkpoint(path)
    return sorted((key, repr(value)) for key, value in state.items() if key != "network"), _tensors(state["network"])


_CATALOG = """\
experts:
  - name: mine
    architecture: EDSR
    tap: {module: conv, channels: 8}
    weights:
      - file: x.pth
"""


def _configs(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "configs").glob("*.yaml"):
        if "degrade" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / "experts-catalog.yml").write_text(_CATALOG)
    return sorted(folder.iterdir())


def _read_config(path: Path) -> object:
    if path.suffix == ".yml":
        return load_catalog(path).experts[-1]
    return load_settings(TrainSettings, path, ["run=x", "data.cache=y"] if "fusion" in path.name else [])


def _sealed_json(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    BudgetModel.read(ROOT / "pretrained" / "budget.json").write(folder / "budget.json")
    channels = Channels(mean=(0.125, 2.5), spread=(1.0, 3.0))
    statistics = InitialStatistics(fingerprint="abc", base=random_record(("a", "b")), features={"a": channels})
    (folder / "base.json").write_text(json.dumps(sealed(statistics.model_dump(mode="json"))))
    return [folder / "budget.json", folder / "base.json", make_cache(folder / "cache", [(8, 8)]) / "manifest.json"]


def _read_sealed_json(path: Path) -> object:
    match path.name:
        case "budget.json":
            return BudgetModel.read(path)
        case "manifest.json":
            return Store(path.parent).manifest
        case _:
            document = unsealed(read_json(path, cure="again"), path, cure="again")
            return parse_settings(InitialStatistics, document, where=str(path))


def _items(folder: Path) -> list[Path]:
    plain = Store(make_cache(folder / "plain", [(8, 8), (24, 40)]))
    packed = Store(make_cache(folder / "packed", [(8, 8)], compression="gzip"))
    return [*plain.item_paths(), *packed.item_paths()]


def _read_item(path: Path) -> object:
    file = TileFile(path)
    try:
        return file.header, [(name, _bytes_of(file.whole(name))) for name in sorted(file.layout.datasets)]
    finally:
        file.close()


def _index(folder: Path) -> list[Path]:
    return sorted(Store(make_cache(folder, [(8, 8), (24, 40)])).index.iterdir())


def _read_index(path: Path) -> object:
    return [entry.model_copy(update={"stamp": ""}) for entry in Store(path.parents[1]).entries()]


def _has_checksums(path: Path) -> bool:
    """PNG has them, and zips, and whatever carries our digest; a change to another file is another sound file."""
    return path.suffix in (".png", ".safetensors", ".pth") and path.stem not in ("stream", "foreign")


def _in_weights(data: bytes, rng: random.Random) -> bytes:
    return (in_safetensors_header if data[8:9] == b"{" else bits_and_damage)(data, rng)


def _never(_path: Path) -> bool:
    return False


TARGETS = (
    Target("images", 280, _images, _read_image, bits_and_damage, _has_checksums),
    Target("weights of experts", 170, _weights, _read_weights, _in_weights, _has_checksums),
    Target("fusion models", 100, _fusion, _read_fusion, in_safetensors_header),
    Target("checkpoints", 60, _checkpoint, _read_checkpoint, bits_and_damage),
    Target("budget, base, manifest", 90, _sealed_json, _read_sealed_json, in_json),
    Target("configs and catalogs", 100, _configs, _read_config, in_yaml, _never),
    Target("cache items", 110, _items, _read_item, bits_and_damage),
    Target("cache index", 30, _index, _read_index, bits_and_damage),
)
REQUESTS, REQUESTS_SHARE = "requests to the studio", 60
