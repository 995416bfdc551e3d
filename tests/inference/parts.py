"""Ensembles of plain functions, image files and tiny weights, for the tests of inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import infer
from fusion.inference.ensemble import Answer, Ensemble, Place, plain_mean
from fusion.network import ExpertSlot, FusionSR
from fusion.network.save import FILE_NAME, save_model
from imaging.command import run
from imaging.files import quantize_u8, read_rgb
from tests.experts.parts import save_network, small_network
from tests.fusion.parts import small_settings, stir

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def enlarge(lr_BCHW: torch.Tensor) -> torch.Tensor:
    """Each pixel four by four times: what NumPy's repeat does."""
    return F.interpolate(lr_BCHW, scale_factor=4, mode="nearest")


def ensemble_of(margin: int = 4, multiple: int = 1, **functions: Callable[[torch.Tensor], torch.Tensor]) -> Ensemble:
    """Experts from functions of the LR tile."""

    def ask(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor, Place, int], Answer]:
        return lambda lr_BCHW, _place, _turn: Answer(function(lr_BCHW), None)

    experts = {name: ask(function) for name, function in functions.items()} or {"repeat": ask(enlarge)}
    identity = {"experts": {name: {"weights_sha256": name} for name in experts}, "fusion": {"kind": "test"}}
    return Ensemble(experts, plain_mean, margin, multiple, identity, torch.device("cpu"))


def photo(height: int, width: int, channels: int = 3, *, depth: int = 8, seed: int = 0) -> np.ndarray:
    """A gradient with noise: (H, W) or (H, W, channels)."""
    rng = np.random.default_rng(seed)
    top = 2**depth - 1
    slope = np.linspace(0.2, 0.8, height)[:, None, None] * np.linspace(1, 0.5, width)[None, :, None]
    image = (slope + 0.1 * rng.random((height, width, channels))).clip(0, 1) * top
    image = image.round().astype(np.uint16 if depth == 16 else np.uint8)
    return image[..., 0] if channels == 1 else image


def save_photos(folder: Path, count: int = 3, side: int = 24) -> list[Path]:
    """PNG files of slightly different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"image{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        Image.fromarray(photo(side + index, side + 2 * index, seed=index)).save(path)
    return paths


def pixels(path: Path) -> np.ndarray:
    """What Pillow finds in a file."""
    return np.asarray(Image.open(path))


def weights_file(folder: Path, name: str = "tiny-a", seed: int = 0, architecture: str = "EDSR") -> Path:
    """A small real network's weights."""
    folder.mkdir(parents=True, exist_ok=True)
    return save_network(small_network(architecture, seed), folder / f"{name}.safetensors")


def fusion_folder(folder: Path, channels: Mapping[str, int], *, stirred: bool = True) -> Path:
    """A small random fusion model for these experts, saved."""
    torch.manual_seed(0)
    model = FusionSR(small_settings(tuple(ExpertSlot(name=name, channels=count) for name, count in channels.items())))
    save_model(stir(model, 0.02) if stirred else model, folder / FILE_NAME)
    return folder


def call(*words: object) -> int:
    return run(infer.command_line, [str(word) for word in words])


def alone(expert: Path, *words: object) -> int:
    return call("--model", expert, "--device", "cpu", *words)


def reference(path: Path, seed: int = 0) -> np.ndarray:
    """The network itself on the whole image, rounded once."""
    with torch.no_grad():
        sr_BCHW = small_network("EDSR", seed)(read_rgb(path))
    return quantize_u8(sr_BCHW)[0].permute(1, 2, 0).numpy()
