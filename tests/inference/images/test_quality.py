"""`--quality`: it decides the size of lossy files, is part of the claim, and is refused where a format has none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from fusion.inference.options import Options
from fusion.inference.report.provenance import read_manifest
from imaging.command import DONE, REFUSED
from tests.inference.parts import alone, save_photos

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("ext", ["jpg", "webp", "avif"])
def test_quality_decides_the_size_and_is_in_the_claim(tmp_path: Path, expert: Path, ext: str) -> None:
    (source,) = save_photos(tmp_path / "in", 1, side=64)
    sizes = []
    for quality in (20, 95):
        words = ["-i", source, "-o", tmp_path / "out", "--ext", ext, "--quality", quality, "--skip-existing"]
        assert alone(expert, *words) == DONE, "another quality is another image"
        target = tmp_path / "out" / f"{source.stem}.{ext}"
        sizes.append(target.stat().st_size)
        assert read_manifest(target)["options"]["quality"] == quality
    assert sizes[0] < sizes[1] / 2


def test_quality_is_refused_where_there_is_none(tmp_path: Path, expert: Path, capsys: Any) -> None:
    (source,) = save_photos(tmp_path / "in", 1)
    for words, why in [
        ((), "PNG has none"),
        (("--ext", "tif"), "TIF has none"),
        (("--ext", "jpg", "--quality", "0"), "--quality 0"),
        (("--ext", "jpg", "--quality", "101"), "--quality 101"),
    ]:
        assert alone(expert, "-i", source, "-o", tmp_path / "out", "--quality", "90", *words) == REFUSED
        assert why in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("*.png"))


def test_records_of_images_without_the_options_are_as_they_were() -> None:
    assert json.dumps(Options().manifest()) == '{"tile": "auto", "tta": false, "depth": "auto"}'
