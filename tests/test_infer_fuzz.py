"""Hundreds of damaged image files in one run: every one is made or listed, nothing else happens."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from fusion.inference.jobs import make_jobs
from fusion.inference.options import Options
from fusion.inference.pipeline import Pipeline
from fusion.inference.provenance import read_claim
from tests.infer_parts import ensemble_of, photo, pixels

MUTANTS = 400
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}


def originals() -> list[tuple[str, bytes]]:
    """Small files of every format and of several kinds."""
    found = []
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


def test_every_mutant_is_made_or_listed(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    files = originals()
    (tmp_path / "in").mkdir()
    for number in range(MUTANTS):
        suffix, data = files[number % len(files)]
        (tmp_path / "in" / f"{number:03}.{suffix}").write_bytes(mutated(data, rng))
    jobs = make_jobs(tmp_path / "in", tmp_path / "out", ext="png")
    assert len(jobs) == MUTANTS
    outcome = Pipeline(ensemble_of(), Options(tile=64, ext="png"), 64).run(jobs)
    assert len(outcome.written) + len(outcome.failed) == MUTANTS
    assert len(outcome.written) > MUTANTS // 20  # harmless mutations exist
    assert len(outcome.failed) > MUTANTS // 4
    for refusal in outcome.failed.values():
        assert "\n" not in str(refusal)
    found = {path for path in (tmp_path / "out").iterdir() if path.suffix != ".json"}
    assert found == set(outcome.written)  # no half-written file, no temporary one
    for path in outcome.written[:20]:
        assert pixels(path).ndim in (2, 3)
        assert read_claim(path)["input_sha256"]
