"""What guards a user's data holds without assertions and names who and where."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_tools.format.item import serialize_item
from cache_tools.format.schema import PROFILES, ProfileName
from cache_tools.format.store import Store
from cache_tools.read.item_file import TileFile
from cache_tools.write.encode_item import encode_sr
from experts.loading.weights import read_state_file
from fusion.inference import upscale as upscaling
from fusion.inference.jobs import ImageJob, measure_jobs
from fusion.inference.options import Options
from fusion.inference.pipeline import Pipeline
from fusion.inference.upscale import Grid
from fusion.network import FusionSR
from fusion.network.save import save_model
from imaging.refusal import Refusal
from tests.cache.parts import make_cache
from tests.fusion.parts import small_model
from tests.inference.parts import ensemble_of, save_photos, weights_file


@contextmanager
def as_nobody() -> Iterator[None]:
    """The superuser may read everything: for a moment somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_weights_that_may_not_be_read_are_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "a.pth")
    save_model(small_model(), tmp_path / "model.safetensors")
    files = [tmp_path / "a.pth", weights_file(tmp_path), tmp_path / "model.safetensors"]
    for folder in (tmp_path, *tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o011)
        if folder.name.startswith("pytest-of"):
            break
    for path in files:
        path.chmod(0)
    readers = [lambda path: read_state_file(path, sha256="known")] * 2 + [FusionSR.from_pretrained]
    for path, read in zip(files, readers, strict=True):
        with as_nobody(), pytest.raises(Refusal, match="cannot be read"):
            read(path)


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_image_names_expert_and_item_in_every_profile(profile: ProfileName, bad: float) -> None:
    sr_CHW = torch.zeros(3, 8, 8)
    sr_CHW[1, 2, 3] = bad
    with pytest.raises(Refusal, match="expert one on item two: an SR image holds NaN or infinity"):
        encode_sr(sr_CHW, PROFILES[profile], where="expert one on item two")


def test_an_item_of_another_size_is_refused(tmp_path: Path) -> None:
    (path,) = Store(make_cache(tmp_path, [(8, 8)])).item_paths()
    file = TileFile(path)
    arrays = {name: file.whole(name) for name in file.layout.datasets}
    file.close()
    assert bytes(serialize_item(file.header, arrays))
    for changed, reason in (
        ({**arrays, "sr": arrays["sr"][..., 1:]}, "its sr is uint8"),
        ({**arrays, "lr": arrays["lr"].astype(np.float32)}, "its lr is float32"),
        ({"lr": arrays["lr"]}, "expected"),
    ):
        with pytest.raises(Refusal, match=reason):
            serialize_item(file.header, changed)


def test_an_image_with_missing_rows_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiling that forgot its last row of tiles, as a defect of ours would."""
    (photo,) = save_photos(tmp_path / "in", 1, 40)
    whole = Grid.of

    def short(height: int, width: int, tile: int, margin: int, multiple: int) -> Grid:
        grid = whole(height, width, tile, margin, multiple)
        return replace(grid, rows=grid.rows[:-1])

    monkeypatch.setattr(upscaling.Grid, "of", short)
    sized, _ = measure_jobs([ImageJob(photo, tmp_path / "out.png", "photo")])
    result = Pipeline(ensemble_of(), Options(tile=24), 24).run(sized)
    assert "rows were made" in str(result.failed[photo]) and not (tmp_path / "out.png").exists()
