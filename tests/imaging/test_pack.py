"""The pack: within its limit, nothing lost in what it keeps, order kept, and a refusal where nothing fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imaging.__main__ import main
from imaging.files import list_images
from imaging.refusal import Refusal
from imaging.tools.pack import RECORD, pack
from tests.training.parts import picture, write_pictures


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four small PNGs and two large ones, one of them a JPEG, under the same names."""
    small = write_pictures(tmp_path_factory.mktemp("a") / "HR", count=4, size=(40, 48))
    large = tmp_path_factory.mktemp("b") / "HR"
    large.mkdir()
    Image.fromarray(picture(7, 160, 200)).save(large / "img0.png")
    Image.fromarray(picture(8, 200, 160)).save(large / "img1.jpg", quality=95)
    return [small, large]


def pixels(path: Path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def bytes_of(folders: list[Path]) -> int:
    return sum(path.stat().st_size for folder in folders for path in list_images(folder))


def test_what_fits_is_copied_byte_for_byte_in_order(sources, tmp_path):
    packed = pack(sources, tmp_path / "out", limit=bytes_of(sources))
    assert (packed.copied, packed.cut, packed.left_out, packed.pixels_kept) == (6, 0, 0, 1.0)
    originals = [path for folder in sources for path in list_images(folder)]
    copies = list_images(tmp_path / "out")
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in originals]
    assert packed.bytes == bytes_of(sources)


def test_the_largest_are_cut_to_their_middles_without_loss(sources, tmp_path):
    limit = bytes_of(sources[:1]) + 30_000
    packed = pack(sources, tmp_path / "out", limit=limit, least=32)
    assert (packed.copied, packed.cut, packed.left_out) == (4, 2, 0)
    assert 0.75 * limit < packed.bytes <= limit
    kept = total = 4 * 40 * 48
    for original in list_images(sources[1]):
        whole = pixels(original)
        cut = pixels(next((tmp_path / "out").glob(f"01-*/{original.stem}.webp")))
        height, width = cut.shape[:2]
        top, left = (whole.shape[0] - height) // 2, (whole.shape[1] - width) // 2
        assert height % 4 == width % 4 == 0 and min(height, width) >= 32
        np.testing.assert_array_equal(cut, whole[top : top + height, left : left + width])
        kept, total = kept + height * width, total + whole.shape[0] * whole.shape[1]
    assert packed.pixels_kept == pytest.approx(kept / total, abs=1e-4)


def test_where_even_cuts_are_too_many_some_are_left_out(sources, tmp_path):
    packed = pack(sources, tmp_path / "out", limit=8_000, least=24)
    assert packed.left_out > 0 and packed.copied + packed.cut + packed.left_out == 6
    assert 0 < packed.bytes <= 8_000
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["left_out"] == packed.left_out and all(str(folder) not in record["from"] for folder in sources)


def test_the_command_and_what_it_refuses(sources, tmp_path, capsys):
    words = ["pack", *map(str, sources), "--to", str(tmp_path / "out"), "--limit-mib", "1", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["copied"] == 6
    with pytest.raises(Refusal, match="is not empty"):
        main(words)
    with pytest.raises(Refusal, match="hold no cut of 192 pixels"):
        pack(sources[1:], tmp_path / "tiny", limit=1000)
