"""Thousands of damaged image files: every one is read or refused, made or listed, and nothing else happens."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion.inference.jobs import ImageJob, make_jobs, measure_jobs
from fusion.inference.options import Options
from fusion.inference.pipeline import Pipeline
from fusion.inference.report.provenance import read_manifest
from fusion.inference.source import read_source
from imaging.refusal import Refusal
from tests.imaging.files.test_fuzz import seed_files
from tests.inference.parts import ensemble_of, photo, pixels

MUTANTS = 1000  # through the whole pipeline, in one run
READ = 4000  # through the readers alone
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}


def originals() -> list[tuple[str, bytes]]:
    """Small files of every format and of several kinds: grey, palette, alpha, CMYK, 16 bits, EXIF, compressions."""
    found = [(name.rpartition(".")[2], data) for name, data in seed_files().items()]
    for suffix, kind in FORMATS.items():
        for channels in (1, 3):
            buffer = io.BytesIO()
            Image.fromarray(photo(13, 17, channels)).save(buffer, kind)
            found.append((suffix, buffer.getvalue()))
    return found


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bytes, a cut, an inserted or a doubled part."""
    changed = bytearray(data)
    kind = rng.integers(4)
    if kind == 0:
        for place in rng.integers(0, len(changed), rng.integers(1, 6)):
            changed[place] = rng.integers(256)
    elif kind == 1:
        del changed[rng.integers(1, len(changed)) :]
    elif kind == 2:
        place = rng.integers(len(changed))
        changed[place:place] = rng.bytes(int(rng.integers(1, 40)))
    else:
        first, last = sorted(rng.integers(0, len(changed), 2))
        changed[last:last] = changed[first:last]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")
def test_thousands_of_mutants_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    """What the pipeline does with a file before it computes: its size from the header, then its levels."""
    rng, files, refused = np.random.default_rng(11), originals(), 0
    for number in range(READ):
        suffix, data = files[number % len(files)]
        path = tmp_path / f"mutant.{suffix}"
        path.write_bytes(mutated(mutated(data, rng), rng) if number % 3 == 0 else mutated(data, rng))
        sized, failed = measure_jobs([ImageJob(path, tmp_path / "out.png", "mutant")])
        try:
            source = read_source(path)
        except Refusal as refusal:
            refused += 1
            assert str(refusal).startswith(f"{path}: ") and len(str(refusal).splitlines()) == 1
            continue
        assert [(one.height, one.width) for one in sized] == [(source.height, source.width)] and not failed
        assert source.levels_HWC.dtype in (np.uint8, np.uint16) and source.levels_HWC.shape[2] in (1, 3)
        assert source.alpha_HW is None or source.alpha_HW.shape == source.levels_HWC.shape[:2]
    assert READ // 4 < refused < READ


@pytest.mark.filterwarnings("ignore")
def test_every_mutant_is_made_or_listed(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    files = originals()
    (tmp_path / "in").mkdir()
    for number in range(MUTANTS):
        suffix, data = files[number % len(files)]
        (tmp_path / "in" / f"{number:04}.{suffix}").write_bytes(mutated(data, rng))
    jobs = make_jobs(tmp_path / "in", tmp_path / "out", ext="png")
    assert len(jobs) == MUTANTS
    outcome = Pipeline(ensemble_of(), Options(tile=64, ext="png"), 64).run(*measure_jobs(jobs))
    assert len(outcome.written) + len(outcome.failed) == MUTANTS
    assert len(outcome.written) > MUTANTS // 20  # harmless mutations exist
    assert len(outcome.failed) > MUTANTS // 4
    for refusal in outcome.failed.values():
        assert "\n" not in str(refusal)
    found = {path for path in (tmp_path / "out").iterdir() if path.suffix != ".json"}
    assert found == set(outcome.written)  # no half-written file, no temporary one
    for path in outcome.written[:20]:
        assert pixels(path).ndim in (2, 3)
        assert read_manifest(path)["input_sha256"]
