"""Image files out: laws of writing and reading back, what others read of them, and what is refused."""

from __future__ import annotations

import logging
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imaging.files import png_rows, quantize_u8, quantize_u16, read_picture, write_picture
from imaging.files.png import chunks
from imaging.refusal import Refusal
from tests.imaging.parts import as_levels, grey_profile, levels, pillow_bytes, png_chunk, png_of, rgb_profile, save


def unit(stored: np.ndarray) -> torch.Tensor:
    top = float(np.iinfo(stored.dtype).max)
    planes = torch.from_numpy(stored.astype(np.float32)) / top
    return planes.permute(2, 0, 1) if planes.ndim == 3 else planes


IMAGE = {"height": st.integers(1, 20), "width": st.integers(1, 20), "seed": st.integers(0, 999)}


@settings(max_examples=50, deadline=None)
@given(
    **IMAGE,
    depth=st.sampled_from([8, 16]),
    suffix=st.sampled_from([".png", ".tif", ".TIFF"]),
    transparent=st.booleans(),
    flat=st.booleans(),
)
def test_png_and_tiff_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    height: int, width: int, seed: int, depth: int, suffix: str, transparent: bool, flat: bool,
) -> None:  # fmt: skip
    stored = levels(height, width, 3, depth=depth, seed=seed)
    if flat:
        stored[:] = stored[:1]
    alpha = unit(levels(height, width, depth=depth, seed=seed + 1)) if transparent else None
    path = tmp_path_factory.mktemp("w") / f"a{suffix}"
    write_picture(path, unit(stored), depth=depth, alpha=alpha)  # pyright: ignore[reportArgumentType]
    again = read_picture(path)
    assert (again.depth, again.grey) == (depth, False)
    assert torch.equal(again.rgb_CHW, unit(stored))
    assert (again.alpha_HW is None) if alpha is None else torch.equal(again.alpha_HW, alpha)  # pyright: ignore
    write_picture(path.with_name("b" + suffix), again.rgb_CHW, like=again)
    assert path.with_name("b" + suffix).read_bytes() == path.read_bytes()


@settings(max_examples=20, deadline=None)
@given(**IMAGE, suffix=st.sampled_from([".webp", ".bmp"]))
def test_webp_and_bmp_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int, suffix: str
) -> None:
    stored = levels(height, width, 3, seed=seed)
    path = tmp_path_factory.mktemp("w") / f"a{suffix}"
    write_picture(path, unit(stored)[None])
    assert torch.equal(read_picture(path).rgb_CHW, unit(stored))


def test_lossless_webp_keeps_colours_under_full_transparency(tmp_path: Path) -> None:
    stored = levels(9, 7, 3)
    write_picture(tmp_path / "a.webp", unit(stored), alpha=torch.zeros(9, 7))
    again = read_picture(tmp_path / "a.webp")
    assert torch.equal(again.rgb_CHW, unit(stored))
    assert again.alpha_HW is not None
    assert again.alpha_HW.max() == 0


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("transparent", [False, True])
def test_grey_files_stay_grey_with_their_profile(tmp_path: Path, depth: int, suffix: str, transparent: bool) -> None:
    stored = levels(6, 5, 1, depth=depth)
    icc = grey_profile()
    source = tmp_path / f"source{suffix}"
    if suffix == ".png":
        alpha = levels(6, 5, 1, depth=depth, seed=1)
        samples = np.dstack([stored, alpha]) if transparent else stored
        chunk = png_chunk(b"iCCP", b"x\0\0" + zlib.compress(icc))
        save(source, png_of(samples, 4 if transparent else 0, before=chunk))
    else:
        samples = np.dstack([stored, stored]) if transparent else stored[..., 0]
        extra = ["unassalpha"] if transparent else None
        tifffile.imwrite(source, samples, photometric="minisblack", extrasamples=extra, iccprofile=icc, metadata=None,
                         planarconfig="contig" if transparent else None)  # fmt: skip
    picture = read_picture(source)
    assert picture.icc == icc
    write_picture(tmp_path / f"out{suffix}", picture.rgb_CHW, like=picture)
    again = read_picture(tmp_path / f"out{suffix}")
    assert (again.grey, again.depth, again.icc) == (True, depth, icc)
    assert torch.equal(again.rgb_CHW, picture.rgb_CHW)
    assert (again.alpha_HW is not None) == transparent


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
def test_profiles_are_kept(tmp_path: Path, suffix: str) -> None:
    write_picture(tmp_path / f"a{suffix}", unit(levels(8, 8, 3)), icc=rgb_profile())
    assert read_picture(tmp_path / f"a{suffix}").icc == rgb_profile()
    if suffix in (".png", ".tif"):
        write_picture(tmp_path / f"deep{suffix}", unit(levels(8, 8, 3)), icc=rgb_profile(), depth=16)
        deep = read_picture(tmp_path / f"deep{suffix}")
        assert (deep.icc, deep.depth) == (rgb_profile(), 16)


def test_a_grey_profile_is_never_put_on_rgb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        write_picture(tmp_path / "a.png", unit(levels(8, 8, 3)), icc=grey_profile())
    assert "does not fit" in caplog.text
    assert read_picture(tmp_path / "a.png").icc is None


def test_png_is_read_alike_by_others_and_carries_text(tmp_path: Path) -> None:
    for depth in (8, 16):
        stored = levels(33, 21, 4, depth=depth)
        text = {"made by": "tests – äöü", "options": "{}"}
        write_picture(tmp_path / "a.png", unit(stored[..., :3]), alpha=unit(stored[..., 3]), depth=depth, text=text)
        opencv = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
        assert opencv is not None
        assert (opencv[..., [2, 1, 0, 3]] == stored).all()
        with Image.open(tmp_path / "a.png") as image:
            image.load()
            assert {key: str(value) for key, value in image.info.items()} == text


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("depth", [8, 16])
def test_every_png_filter_is_undone_by_others(tmp_path: Path, depth: int, samples: int) -> None:
    """Bands that each of the five filters suits best: noise, ramps along one axis, waves, steps."""
    y, x = np.mgrid[:24, :40].astype(np.float64)
    noise = np.random.default_rng(0).random((24, 40))
    bands = [noise, x / 40, y / 24, 0.5 + 0.4 * np.sin(y / 5) * np.cos(x / 7), np.maximum(x // 5, y // 3) / 9]
    unit_HW = np.concatenate([band + 0.01 * noise for band in bands]).clip(0, 1)
    dtype = np.uint8 if depth == 8 else np.uint16
    stored = np.stack([unit_HW ** (1 + c) * ((1 << depth) - 1) for c in range(samples)], -1).astype(dtype)
    height, width = stored.shape[:2]
    with png_rows(tmp_path / "a.png", height=height, width=width, channels=samples, depth=depth) as rows:  # pyright: ignore
        rows(stored)
    (idat,) = (data for kind, data in png_chunks(tmp_path / "a.png") if kind == b"IDAT")
    filters = zlib.decompress(idat)[:: width * samples * depth // 8 + 1]
    assert set(filters) == {0, 1, 2, 3, 4}
    opencv = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
    assert opencv is not None
    theirs = opencv.reshape(height, width, -1)[..., {1: [0], 2: [0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[samples]]
    assert (theirs == stored).all()


def png_chunks(path: Path) -> list[tuple[bytes, bytes]]:
    with path.open("rb") as file:
        return list(chunks(file, where=path, pixels=True))


def test_rows_may_come_in_any_portions(tmp_path: Path) -> None:
    stored = levels(50, 20, 3, depth=16)
    with png_rows(tmp_path / "a.png", height=50, width=20, channels=3, depth=16) as rows:
        for start, end in ((0, 1), (1, 33), (33, 50)):
            rows(stored[start:end])
        assert not (tmp_path / "a.png").exists()
    assert (as_levels(read_picture(tmp_path / "a.png").rgb_CHW, 16) == stored).all()
    with (
        pytest.raises(ValueError, match="1 rows were written of 2"),
        png_rows(tmp_path / "b.png", height=2, width=20, channels=3, depth=16) as rows,
    ):
        rows(stored[:1])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_smooth_pngs_are_about_as_small_as_pillows(tmp_path: Path) -> None:
    y, x = np.mgrid[:200, :200]
    smooth = np.rint(127 + 60 * np.sin(y / 31)[..., None] * np.cos(x[..., None] / [23, 29, 37])).astype(np.uint8)
    write_picture(tmp_path / "a.png", unit(smooth))
    assert (tmp_path / "a.png").stat().st_size < 1.15 * len(pillow_bytes(Image.fromarray(smooth), "PNG"))


@settings(max_examples=60, deadline=None)
@given(st.floats(-3, 3, width=32))
def test_clamping_and_rounding_happen_once(value: float) -> None:
    expected = round(min(max(np.float32(value), np.float32(0)), np.float32(1)) * np.float32(255))
    assert quantize_u8(torch.tensor([value])).item() == expected


def test_all_levels_survive_quantisation() -> None:
    assert torch.equal(quantize_u8(torch.arange(256) / 255), torch.arange(256).to(torch.uint8))
    assert torch.equal(quantize_u16(torch.arange(65536) / 65535), torch.arange(65536).int())
    coarse = torch.linspace(0, 1, 99).bfloat16()
    assert torch.equal(quantize_u8(coarse), quantize_u8(coarse.float()))


# what cannot be written


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("a.jpg", {"depth": 16}, "cannot hold 16 bits"),
        ("a.webp", {"depth": 16}, "cannot hold 16 bits"),
        ("a.bmp", {"alpha": torch.ones(4, 4)}, "cannot hold transparency"),
        ("a.gif", {}, "not a format that can be written"),
        ("a", {}, "not a format that can be written"),
    ],
)
def test_formats_that_would_lose_something_are_refused(
    tmp_path: Path, name: str, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(Refusal, match=reason):
        write_picture(tmp_path / name, torch.rand(3, 4, 4), **options)  # pyright: ignore[reportArgumentType]
    assert list(tmp_path.iterdir()) == []


def test_depth_of_the_source_is_not_lost_in_silence(tmp_path: Path) -> None:
    deep = read_picture(save(tmp_path / "a.png", png_of(levels(4, 4, 3, depth=16), 2)))
    with pytest.raises(Refusal, match="cannot hold 16 bits"):
        write_picture(tmp_path / "b.jpg", deep.rgb_CHW, like=deep)
    write_picture(tmp_path / "b.jpg", deep.rgb_CHW, like=deep, depth=8)
    assert read_picture(tmp_path / "b.jpg").depth == 8


def test_no_nan_is_written_and_misuse_is_named(tmp_path: Path) -> None:
    bad = torch.rand(3, 4, 4)
    bad[0, 1, 1] = torch.nan
    with pytest.raises(Refusal, match="1 of 48 values are not numbers"):
        write_picture(tmp_path / "a.png", bad)
    with pytest.raises(ValueError, match="one RGB image"):
        write_picture(tmp_path / "a.png", torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match="float image"):
        write_picture(tmp_path / "a.png", torch.zeros(3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match="resize it and pass alpha"):
        write_picture(tmp_path / "a.png", torch.rand(3, 4, 4), alpha=torch.ones(2, 2))
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match="cannot be written"):
        write_picture(tmp_path / "file" / "a.png", torch.rand(3, 4, 4))
    (tmp_path / "a.png").mkdir()
    with pytest.raises(Refusal, match="cannot be written"):
        write_picture(tmp_path / "a.png", torch.rand(3, 4, 4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "file"]
