"""Small real parts for the tests of training: images, settings, a network of a few thousand weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from PIL import Image

from cache_tools.__main__ import main as cache_command
from experts.native.edsr import EDSR
from fusion.training.loop.export import export_weights
from fusion.training.settings import TrainSettings
from fusion.training.tasks.networks import NetworkKind
from imaging.settings import parse_settings

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

TINY = {"num_feat": 4, "num_block": 1}
KINDS = {"edsr": NetworkKind("EDSR", EDSR, scale_setting="upscale")}


def picture(seed: int, height: int = 48, width: int = 56) -> np.ndarray:
    """Smooth shapes and some texture, uint8 (H,W,3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 20.0
    planes = [np.sin(x * rng.uniform(0.5, 3) + rng.uniform(0, 6)) * np.cos(y * rng.uniform(0.5, 3)) for _ in range(3)]
    noisy = np.stack(planes, -1) * 90 + 128 + rng.normal(0, 6, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def write_pictures(folder: Path, count: int = 6, size: tuple[int, int] = (48, 56)) -> Path:
    """`count` small PNGs."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(picture(number, *size)).save(folder / f"img{number}.png")
    return folder


def expert_document(folder: Path, run: Path, **changes: Any) -> dict[str, Any]:
    """A run of a few steps of a tiny EDSR."""
    return {
        "task": "expert",
        "run": str(run),
        "steps": 6,
        "device": "cpu",
        "ema": 0.9,
        "network": {"name": "edsr", "settings": TINY},
        "data": {"hr": [str(folder)], "patch": 8, "batch": 4, "hold_out": 2},
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup": 2},
        "stages": [{"until": 1.0, "losses": {"l1": 1.0}}],
        "validation": {"every": 3},
        "checkpoint": {"every": 2},
        "log": {"images": 0},
        **changes,
    }


def expert_settings(folder: Path, run: Path, **changes: Any) -> TrainSettings:
    """The same as settings."""
    return parse_settings(TrainSettings, expert_document(folder, run, **changes), where="test")


def write_config(path: Path, document: dict[str, Any]) -> Path:
    """A config file."""
    path.write_text(yaml.safe_dump(document))
    return path


def quiet_environment() -> dict[str, str]:
    """For child processes: one thread each."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def images(seed: int, batch: int = 2, size: int = 32) -> tuple[Tensor, Tensor]:
    """A pair of image batches, the second a disturbed copy of the first."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.rand(batch, 3, size, size, generator=generator)
    return first, (first + 0.1 * torch.randn(first.shape, generator=generator)).clamp(0, 1)


# Phases 4 and 7a only: what takes features, and what learns fastest; the others have tests of their own.
SMALL_FUSION: dict[str, Any] = {
    "context_width": 8,
    "bands": {"enabled": False},
    "cross_band": {"enabled": False},
    "collaboration": {"width": 8, "inner": 8, "heads": 2, "expansion": 1},
    "hierarchy": {"enabled": False},
    "gating": {"enabled": False},
    "refine": {"width": 16},
    "edges": {"enabled": False},
}


def write_tiny_expert(path: Path, seed: int) -> Path:
    """An EDSR of a few thousand random weights that stays near its input's colours."""
    torch.manual_seed(seed)
    network = EDSR(**TINY)
    export_weights(path, network.state_dict(), architecture="EDSR", hyperparameters=TINY, provenance={})
    return path


def make_cache(folder: Path, count: int = 12, *more: str) -> Path:
    """Two tiny networks with features, extracted from `count` small pictures."""
    hr = write_pictures(folder / "hr", count)
    experts = [str(write_tiny_expert(folder / f"{name}.safetensors", seed)) for seed, name in enumerate(("ann", "bob"))]
    words = ["extract", "--hr", str(hr), "--out", str(folder / "cache"), "--experts", ",".join(experts), *more]
    assert cache_command(words) == 0
    return folder / "cache"


def make_striped_cache(folder: Path, count: int = 24) -> Path:
    """Two image folders with the same faint stripes on the truth: no blend of them helps, a network learns it fast."""
    hr = write_pictures(folder / "hr", count)
    for number, name in enumerate(("one", "two")):
        (folder / name).mkdir()
        for path in sorted(hr.iterdir()):
            image = np.asarray(Image.open(path)).astype(float)
            image[:, ::2] += 8
            image[:, 1::2] -= 8
            image += np.random.default_rng(number).normal(0, 2, image.shape)
            Image.fromarray(image.round().clip(0, 255).astype(np.uint8)).save(folder / name / path.name)
    words = ["import-images", "--hr", str(hr), "--out", str(folder / "cache"), str(folder / "one"), str(folder / "two")]
    assert cache_command(words) == 0
    return folder / "cache"


def fusion_document(cache: Path, run: Path, **changes: Any) -> dict[str, Any]:
    """A run of a few steps of a small fusion network."""
    return {
        "task": "fusion",
        "run": str(run),
        "steps": 6,
        "device": "cpu",
        "ema": 0.9,
        "network": {"name": "fusion", "settings": SMALL_FUSION},
        "data": {"cache": str(cache), "patch": 8, "batch": 4, "hold_out": 4},
        "optimizer": {"lr": 1e-3},
        "stages": [{"until": 1.0, "losses": {"l1": 1.0}}],
        "validation": {"every": 3},
        "checkpoint": {"every": 2},
        "log": {"images": 0},
        **changes,
    }


def fusion_settings(cache: Path, run: Path, **changes: Any) -> TrainSettings:
    """The same as settings."""
    return parse_settings(TrainSettings, fusion_document(cache, run, **changes), where="test")
