"""Seams of tiles, measured on the shipped networks and a photograph: small errors, and no line along them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import chelsea

from benchmarks.inference import cost as bench
from benchmarks.inference.seams import compare
from experts.catalog import load_catalog
from fusion.inference.ensemble import Ensemble, Place, run_tile
from fusion.inference.tiles import whole
from imaging.paths import pretrained_folder
from imaging.refusal import Refusal
from imaging.tiling import FeatheredSpan, plan_feathered_spans
from infer import build

TILE, SIZE = 112, (128, 224)
# Greatest difference allowed, in grey levels. A convolution is exact within its margin; msg attends to windows of its
# tile, freqnet transforms it, ssm scans it from edge to edge: docs/results/inference.md has what was measured.
BOUNDS = {"edsr-s": 0.01, "msg": 2.0, "freqnet": 0.5, "ssm": 3.0}


@pytest.fixture(scope="module")
def photograph() -> torch.Tensor:
    """An LR image with fur, whiskers and flat parts."""
    height, width = SIZE
    levels_HWC = np.asarray(chelsea())[40 : 40 + height, 100 : 100 + width]
    return torch.from_numpy(levels_HWC.copy()).permute(2, 0, 1)[None].float() / 255


def shipped(name: str) -> Ensemble:
    spec = load_catalog().find(name)
    if spec is None or not any((pretrained_folder() / source.file).is_file() for source in spec.weights):
        pytest.skip(f"{name} is not shipped here")
    return build("none", [name], device="cpu")


def levels(answer_KHW: torch.Tensor) -> np.ndarray:
    return 255 * answer_KHW[:3].permute(1, 2, 0).double().numpy()


def in_tiles(ensemble: Ensemble, lr_BCHW: torch.Tensor, margin: int) -> np.ndarray:
    rows, columns = (plan_feathered_spans(side, TILE, margin, ensemble.multiple) for side in SIZE)

    def ask(row: FeatheredSpan, column: FeatheredSpan) -> torch.Tensor:
        part_BCHW = lr_BCHW[..., row.start : row.stop, column.start : column.stop]
        return run_tile(ensemble, part_BCHW, Place("cat", row.start, column.start, *SIZE))

    return levels(whole(rows, columns, ask))


@pytest.mark.parametrize("name", list(BOUNDS))
def test_seams_of_shipped_networks_cannot_be_seen(photograph: torch.Tensor, name: str) -> None:
    ensemble = shipped(name)
    at_once = levels(run_tile(ensemble, photograph, Place("cat", 0, 0, *SIZE)))
    found = compare(
        at_once,
        in_tiles(ensemble, photograph, ensemble.margin),
        tile=TILE,
        margin=ensemble.margin,
        multiple=ensemble.multiple,
    )
    assert found.greatest < BOUNDS[name]
    assert found.step < 0.25, "a line along the seam of a quarter of a grey level"
    if name == "edsr-s":  # with hardly any context the same measurement tells that seams are there
        bad = compare(at_once, in_tiles(ensemble, photograph, 1), tile=TILE, margin=1, multiple=ensemble.multiple)
        assert bad.at_seams > 20 * found.at_seams and bad.at_seams > 3 * bad.elsewhere


def test_the_measure_finds_a_line_and_ignores_noise() -> None:
    rng = np.random.default_rng(0)
    whole_HWC = rng.uniform(0, 255, (4 * 100, 4 * 160, 3))
    noisy = whole_HWC + rng.normal(0, 0.5, whole_HWC.shape)
    plan = {"tile": 80, "margin": 8, "multiple": 1}
    clean = compare(whole_HWC, noisy, **plan)
    assert clean.at_seams == pytest.approx(0.5, rel=0.02) == clean.elsewhere
    assert clean.step < 0.2
    seam = 4 * plan_feathered_spans(160, 80, 8)[1].low
    noisy[:, seam:] += 0.4
    assert compare(whole_HWC, noisy, **plan).step == pytest.approx(0.4, abs=0.1)
    with pytest.raises(Refusal, match="has no seam"):
        compare(whole_HWC[:40, :40], noisy[:40, :40], **plan)


def test_the_bench_compares_the_experts_it_is_given(tmp_path) -> None:
    """From the command line to the table: real runs of infer.py, in tiles and whole."""
    image, table = tmp_path / "photo.png", tmp_path / "table.md"
    Image.fromarray(chelsea()[:48, :200]).save(image)
    expert = bench.tiny_expert(tmp_path / "tiny.safetensors")
    words = ["--sizes", "--time", "32", "--tile", "48", "--out", str(table)]
    words += ["--image", str(image), "--experts", str(expert)]
    assert bench.main(words) == 0
    rows = [line.split("|")[1].strip() for line in table.read_text().splitlines() if line.startswith("| ")]
    assert rows == ["input", "32x32", "experts or model", "tiny", "small-hat", "random-fusion"]


@pytest.mark.parametrize("size", ["64", "500", "0"])
def test_the_bench_refuses_sizes_it_cannot_make(tmp_path, size: str) -> None:
    with pytest.raises(Refusal, match=f"--sizes: {size} is no multiple of 256"):
        bench.main(["--sizes", size, "--out", str(tmp_path / "table.md")])
