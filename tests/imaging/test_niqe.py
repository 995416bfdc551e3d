"""NIQE against its definition, written out block by block with SciPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve
from scipy.special import gamma
from skimage.data import chelsea

from imaging.metrics import luma
from imaging.metrics.niqe import niqe
from imaging.paths import ENVIRONMENT
from imaging.refusal import Refusal
from imaging.resize import resize_bicubic


def statistics(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Seeded ones, written as the real file is."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(36, 36))
    mean, covariance = rng.normal(size=(1, 36)), root @ root.T
    np.savez(path, mu_pris_param=mean, cov_pris_param=covariance)
    return mean.ravel(), covariance


def fitted(values: np.ndarray) -> tuple[float, float, float]:
    shapes = np.arange(0.2, 10.001, 0.001)
    peaks = gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))
    left, right = (np.sqrt(np.mean(half**2)) for half in (values[values < 0], values[values > 0]))
    ratio, peak = left / right, np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    shape = shapes[np.argmin((peaks - peak * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2) ** 2)]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def features(grey: np.ndarray, block: int) -> list[list[float]]:
    away = np.arange(7) - 3
    window = np.exp(-(away[:, None] ** 2 + away**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean = convolve(grey, window, mode="nearest")
    normal = (grey - mean) / (np.sqrt(np.abs(convolve(grey**2, window, mode="nearest") - mean**2)) + 1)
    found = []
    for left in range(0, grey.shape[1], block):
        for top in range(0, grey.shape[0], block):
            part = normal[top : top + block, left : left + block]
            shape, low, high = fitted(part)
            row = [shape, (low + high) / 2]
            for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
                shape, low, high = fitted(part * np.roll(part, shift, axis=(0, 1)))
                row += [shape, (high - low) * gamma(2 / shape) / gamma(1 / shape), low, high]
            found.append(row)
    return found


def test_niqe_is_its_definition(tmp_path: Path) -> None:
    path = tmp_path / "statistics.npz"
    mean, covariance = statistics(path)
    rgb = torch.from_numpy(chelsea()[:200, :300].copy()).permute(2, 0, 1)[None] / 255
    grey = (luma(rgb.double()) * 255).round()[..., :192, :288]
    half = resize_bicubic(grey, scale=0.5, edge="mirror")
    rows = np.concatenate([features(grey[0, 0].numpy(), 96), features(half[0, 0].numpy(), 48)], axis=1)
    away = mean - rows.mean(0)
    wanted = np.sqrt(away @ np.linalg.pinv((covariance + np.cov(rows, rowvar=False)) / 2) @ away)
    assert niqe(rgb, statistics=path).tolist() == pytest.approx([wanted], rel=1e-9)


def test_refusals_name_file_place_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics(tmp_path / "statistics.npz")
    with pytest.raises(Refusal, match="too few"):
        niqe(torch.rand(1, 3, 100, 100), statistics=tmp_path / "statistics.npz")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "niqe_pris_params.npz").write_bytes(b"nothing")
    with pytest.raises(Refusal, match="holds no statistics"):
        niqe(torch.rand(1, 3, 200, 200))
