"""Small images, small real experts and small caches to test with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cache_tools.__main__ import main
from cache_tools.format.item import serialize_item
from cache_tools.format.schema import PROFILES, ExpertEntry, Header, dataset_specs
from cache_tools.write.extract import extract
from cache_tools.write.recipe import ExtractSettings
from experts.open import open_experts
from imaging.command import run
from imaging.files import write_picture
from tests.experts.parts import save_network, small_network

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

    from cache_tools.write.extract import Report
    from experts.spec import Expert

SIZES = ((40, 48), (33, 70), (64, 64))


def write_images(folder: Path, sizes: Sequence[tuple[int, int]] = SIZES, scale: int = 4) -> Path:
    """Seeded HR images named a, b, c, ...; `sizes` are those of their LR."""
    for number, (height, width) in enumerate(sizes):
        generator = torch.Generator().manual_seed(number)
        coarse = torch.rand(1, 3, height // 4 + 1, width // 4 + 1, generator=generator)
        image = torch.nn.functional.interpolate(coarse, (scale * height, scale * width), mode="bilinear")
        write_picture(folder / f"{chr(97 + number)}.png", image)
    return folder


def weights_files(folder: Path, seeds: Sequence[int] = (0, 1)) -> list[str]:
    """EDSR networks of 6 and more channels as .safetensors files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        str(
            save_network(
                small_network("EDSR", seed, num_feat=6 + 2 * seed, num_block=1), folder / f"e{seed}.safetensors"
            )
        )
        for seed in seeds
    ]


def experts(folder: Path, seeds: Sequence[int] = (0, 1)) -> list[Expert]:
    """Those networks, opened."""
    return open_experts(weights_files(folder, seeds))


def make_cache(folder: Path, sizes: Sequence[tuple[int, int]] = SIZES, **settings: Any) -> Path:
    """A cache of two experts over seeded images."""
    out = folder / "cache"
    report: Report = extract(
        ExtractSettings(out=out, hr=write_images(folder / "hr", sizes), **settings), experts(folder / "weights")
    )
    assert not report.failures
    return out


def command(*words: object) -> int:
    """`python -m cache_tools WORDS` in this process -> its exit code."""
    return run(main, [str(word) for word in words])


def command_json(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Any]:
    """The same with --json -> exit code and document."""
    capsys.readouterr()
    code = command(*words, "--json")
    return code, json.loads(capsys.readouterr().out)


def item_bytes_of(root: Path) -> dict[str, bytes]:
    """Every item's name and content."""
    return {path.name: path.read_bytes() for path in sorted(root.glob("items/*/*.h5"))}


def dequantized_by_hand(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """uint8 (C, H, W) and (T, U, C, 2) -> float64 (C, H, W), pixel by pixel's tile."""
    _, height, width = codes.shape
    rows, columns = np.arange(height) // 32, np.arange(width) // 32
    spread = scales[rows[:, None], columns[None, :]].transpose(2, 0, 1, 3).astype(np.float64)
    return codes * spread[..., 0] + spread[..., 1]


def header_of(height: int, width: int, profile: Any, *, channels: tuple[int, ...] = (3, 2), **more: Any) -> Header:
    """Experts named a, b, ... of these channels; no HR image unless asked for."""
    channels = channels if PROFILES[profile].features else (0,) * len(channels)
    firsts = np.cumsum([0, *channels])
    entries = tuple(
        ExpertEntry(
            name="abc"[number],
            architecture="EDSR",
            tap=None,
            first=int(firsts[number]),
            channels=count,
            weights_sha256="0" * 64,
            precision="fp32",
            tiling="whole",
        )
        for number, count in enumerate(channels)
    )
    fields: dict[str, Any] = {
        "id": "item",
        "group": "item",
        "source": "item.png",
        "hr_sha256": None,
        "lr_sha256": None,
        "height": height,
        "width": width,
        "profile": profile,
        "compression": "none",
        "degradation": "bicubic",
        "experts": entries,
        "fingerprint": "f",
    }
    return Header(**(fields | more))


def arrays_for(header: Header, seed: int = 0) -> dict[str, np.ndarray]:
    """Random numbers of the stored types."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, 256, spec.shape).astype(spec.dtype)
        if spec.dtype == np.uint8
        else rng.normal(size=spec.shape).astype(spec.dtype)
        for name, spec in dataset_specs(header).items()
    }


def store(folder: Path, header: Header, arrays: dict[str, np.ndarray]) -> Path:
    """An item's file of that header and those arrays."""
    path = folder / "item.h5"
    path.write_bytes(serialize_item(header, arrays))
    return path
