"""Image files in and out: every kind of pixel against Pillow, OpenCV and tifffile, and laws of writing and reading."""

from __future__ import annotations

import io
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
from PIL import Image, ImageOps

from imaging.files import (
    image_size,
    inside,
    list_images,
    png_rows,
    quantize_u8,
    quantize_u16,
    read_picture,
    read_rgb,
    write_picture,
)
from imaging.files.png import chunks
from imaging.refusal import Refusal
from tests.imaging.parts import exif, grey_profile, levels, pillow_bytes, png_chunk, png_of, raw_png, rgb_profile


def as_levels(unit: torch.Tensor, depth: int) -> np.ndarray:
    """[0, 1] planes (C,H,W) or (H,W) -> whole levels (H,W,C) or (H,W); fails when a value is not one."""
    top = (1 << depth) - 1
    whole = np.rint(unit.double().numpy() * top)
    assert np.abs(unit.double().numpy() * top - whole).max() < 0.01
    return np.moveaxis(whole, 0, -1) if whole.ndim == 3 else whole


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# depth, grey, alpha: reading


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour_type", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_every_kind(tmp_path: Path, depth: int, colour_type: int, samples: int) -> None:
    stored = levels(5, 7, samples, depth=depth)
    picture = read_picture(save(tmp_path / "a.png", png_of(stored, colour_type)))
    colours = 1 if samples < 3 else 3
    assert (picture.depth, picture.grey, picture.size) == (depth, colours == 1, (5, 7))
    assert (as_levels(picture.rgb_CHW, depth) == stored[..., :colours]).all()
    if samples in (2, 4):
        assert picture.alpha_HW is not None
        assert (as_levels(picture.alpha_HW, depth) == stored[..., -1]).all()
    else:
        assert picture.alpha_HW is None
    assert picture.rgb_CHW.dtype == torch.float32
    assert picture.rgb_CHW.is_contiguous()


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(
    ("samples", "options"),
    [
        (1, {"photometric": "minisblack"}),
        (3, {"photometric": "rgb"}),
        (3, {"photometric": "rgb", "planarconfig": "separate"}),
        (4, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (2, {"photometric": "minisblack", "extrasamples": ["unassalpha"], "planarconfig": "contig"}),
        (1, {"photometric": "miniswhite"}),
    ],
)
def test_tiff_of_every_kind(
    tmp_path: Path, compression: str | None, depth: int, samples: int, options: dict[str, object]
) -> None:
    stored = levels(5, 7, samples, depth=depth)
    planar = options.get("planarconfig") == "separate"
    written = np.moveaxis(stored, -1, 0) if planar else stored[..., 0] if samples == 1 else stored
    tifffile.imwrite(tmp_path / "a.tif", written, compression=compression, metadata=None, **options)  # pyright: ignore
    picture = read_picture(tmp_path / "a.tif")
    colours = 1 if samples < 3 else 3
    expected = stored[..., :colours].astype(np.int64)
    if options["photometric"] == "miniswhite":
        expected = (1 << depth) - 1 - expected
    assert (picture.depth, picture.grey) == (depth, colours == 1)
    assert (as_levels(picture.rgb_CHW, depth) == expected).all()
    if samples in (2, 4):
        assert picture.alpha_HW is not None
        assert (as_levels(picture.alpha_HW, depth) == stored[..., -1]).all()


@pytest.mark.parametrize("samples", [1, 3, 4])
def test_16_bit_lzw_tiff(tmp_path: Path, samples: int) -> None:
    stored = levels(6, 9, samples, depth=16)
    order = [2, 1, 0, 3][:samples] if samples > 1 else [0]
    assert cv2.imwrite(str(tmp_path / "a.tif"), stored[..., order], [cv2.IMWRITE_TIFF_COMPRESSION, 5])
    picture = read_picture(tmp_path / "a.tif")
    assert picture.depth == 16
    assert (as_levels(picture.rgb_CHW, 16) == stored[..., : 3 if samples > 1 else 1]).all()


def test_premultiplied_alpha_is_made_straight(tmp_path: Path) -> None:
    straight = levels(6, 9, 3, depth=16).astype(np.float64)
    alpha = levels(6, 9, depth=16, seed=1) // 2 + 30000
    premultiplied = np.rint(straight * alpha[..., None] / 65535)
    stored = np.dstack([premultiplied, alpha]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=["assocalpha"])
    picture = read_picture(tmp_path / "a.tif")
    assert np.abs(as_levels(picture.rgb_CHW, 16) - straight).max() <= 2


def test_grey_with_few_bits_and_a_transparent_level(tmp_path: Path) -> None:
    """Pillow leaves the transparent level in the file's own scale while it stretches the pixels."""
    for bits in (1, 2, 4, 8):
        values = np.arange(8) % (1 << bits)
        packed = np.packbits(((values[:, None] >> np.arange(bits)[::-1]) & 1).astype(np.uint8).ravel()).tobytes()
        data = raw_png([packed], 8, bits, 0, before=png_chunk(b"tRNS", b"\0\1"))
        picture = read_picture(save(tmp_path / "a.png", data))
        assert picture.grey
        assert picture.alpha_HW is not None
        np.testing.assert_allclose(picture.rgb_CHW[0, 0], values / ((1 << bits) - 1), atol=1e-7)
        assert (picture.alpha_HW[0].numpy() == (values != 1)).all()


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour_type", "samples"), [(0, 1), (2, 3)])
def test_a_transparent_colour(tmp_path: Path, depth: int, colour_type: int, samples: int) -> None:
    stored = levels(5, 7, samples, depth=depth)
    stored[2, 3] = stored[0, 0]
    key = stored[0, 0].astype(">u2").tobytes()
    picture = read_picture(save(tmp_path / "a.png", png_of(stored, colour_type, before=png_chunk(b"tRNS", key))))
    assert picture.alpha_HW is not None
    assert (picture.alpha_HW.numpy() == (stored != stored[0, 0]).any(axis=-1)).all()
    assert (as_levels(picture.rgb_CHW, depth) == stored).all()


def test_palettes(tmp_path: Path) -> None:
    colours = levels(4, 3)
    image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8))
    image.putpalette(colours.tobytes())
    plain = read_picture(save(tmp_path / "p.png", pillow_bytes(image, "PNG")))
    assert (as_levels(plain.rgb_CHW, 8)[0] == colours).all()
    assert plain.alpha_HW is None
    assert not plain.grey
    clear = read_picture(save(tmp_path / "t.png", pillow_bytes(image, "PNG", transparency=bytes([255, 0, 128, 255]))))
    assert clear.alpha_HW is not None
    assert (as_levels(clear.alpha_HW, 8)[0] == [255, 0, 128, 255]).all()
    assert (as_levels(clear.rgb_CHW, 8)[0] == colours).all()
    for kind, name in (("BMP", "p.bmp"), ("TIFF", "p.tif")):
        assert (
            as_levels(read_picture(save(tmp_path / name, pillow_bytes(image, kind))).rgb_CHW, 8)[0] == colours
        ).all()


@pytest.mark.parametrize(("kind", "mode"), [(k, m) for k in ("PNG", "TIFF", "BMP") for m in ("1", "L", "RGB")])
def test_plain_modes_equal_pillow(tmp_path: Path, kind: str, mode: str) -> None:
    image = Image.fromarray(levels(9, 11, 3)).convert(mode)
    picture = read_picture(save(tmp_path / "a", pillow_bytes(image, kind)))
    assert (as_levels(picture.rgb_CHW, 8) == np.asarray(image.convert("RGB"))).all()
    assert picture.grey == (mode != "RGB")


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_equals_pillow(tmp_path: Path, mode: str) -> None:
    data = pillow_bytes(Image.fromarray(levels(16, 24, 3)).convert(mode), "JPEG")
    picture = read_picture(save(tmp_path / "a.jpg", data))
    assert (as_levels(picture.rgb_CHW, 8) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()
    assert picture.grey == (mode == "L")


def test_a_cmyk_profile_that_does_not_work_is_said_and_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.fromarray(levels(8, 8, 4), "CMYK")
    data = pillow_bytes(image, "TIFF", icc_profile=rgb_profile())
    with caplog.at_level(logging.WARNING):
        picture = read_picture(save(tmp_path / "a.tif", data))
    assert picture.icc is None
    assert "CMYK profile does not work" in caplog.text
    assert (as_levels(picture.rgb_CHW, 8) == np.asarray(image.convert("RGB"))).all()


def test_the_suffix_does_not_matter_for_reading(tmp_path: Path) -> None:
    data = pillow_bytes(Image.fromarray(levels(8, 8, 3)), "WEBP", lossless=True)
    assert (as_levels(read_rgb(save(tmp_path / "a.png", data))[0], 8) == levels(8, 8, 3)).all()


# orientation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_everywhere(tmp_path: Path, orientation: int) -> None:
    stored = levels(4, 6, 3)
    reference = Image.open(io.BytesIO(pillow_bytes(Image.fromarray(stored), "PNG", exif=exif(orientation))))
    upright = np.asarray(ImageOps.exif_transpose(reference)).astype(np.int64)
    record = png_chunk(b"eXIf", exif(orientation).removeprefix(b"Exif\0\0"))
    deep = stored.astype(np.uint16) * 257
    tag = [(274, 3, 1, orientation, True)]
    files = {
        "before.png": png_of(stored, 2, before=record),
        "after.png": png_of(stored, 2, after=record),
        "deep.png": png_of(deep, 2, before=record),
        "a.webp": pillow_bytes(Image.fromarray(stored), "WEBP", lossless=True, exif=exif(orientation)),
    }
    for name, data in files.items():
        save(tmp_path / name, data)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extratags=tag)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb", extratags=tag)
    for path in sorted(tmp_path.iterdir()):
        picture = read_picture(path)
        scale = 257 if picture.depth == 16 else 1
        assert (as_levels(picture.rgb_CHW, picture.depth) == upright * scale).all(), path.name
        assert image_size(path) == picture.size == upright.shape[:2], path.name
    jpeg = save(tmp_path / "a.jpg", pillow_bytes(Image.fromarray(stored), "JPEG", exif=exif(orientation)))
    turned = ImageOps.exif_transpose(Image.open(jpeg))
    assert (as_levels(read_picture(jpeg).rgb_CHW, 8) == np.asarray(turned)).all()


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_a_senseless_orientation_is_ignored(tmp_path: Path, orientation: int) -> None:
    data = pillow_bytes(Image.fromarray(levels(4, 6, 3)), "PNG", exif=exif(orientation))
    assert read_picture(save(tmp_path / "a.png", data)).size == (4, 6)


def test_image_size_reads_the_header_only(tmp_path: Path) -> None:
    whole = pillow_bytes(Image.fromarray(levels(300, 400, 3)), "JPEG")
    assert image_size(save(tmp_path / "cut.jpg", whole[:700])) == (300, 400)
    with pytest.raises(Refusal):
        read_picture(tmp_path / "cut.jpg")


# writing and reading back


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


# folders and names


def test_folders_are_listed_whole_and_in_order(tmp_path: Path) -> None:
    names = ["b/2.PNG", "b/10.jpg", "a.webp", "c/d/e.tif", "b.bmp"]
    for name in [*names, ".hidden.png", ".git/x.png", "notes.txt", "b/.a.png.tmp.host.12", "b/Thumbs.db"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "c" / "loop").symlink_to(tmp_path)
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a.webp", "b/10.jpg", "b/2.PNG", "b.bmp", "c/d/e.tif"]


def test_linked_folders_are_entered(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"x")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "HR").symlink_to(tmp_path / "real")
    assert list_images(tmp_path / "set") == [tmp_path / "set" / "HR" / "a.png"]


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    for folder, reason in (
        (tmp_path, "no images"),
        (tmp_path / "b", "no such folder"),
        (tmp_path / "a.txt", "is a file"),
    ):
        with pytest.raises(Refusal, match=reason):
            list_images(folder)


@pytest.mark.parametrize(
    "name",
    ["../a", "a/../../b", "/etc/passwd", "C:\\a", "\\\\host\\share", "..\\a", "a\\..\\..\\b", "", "a\0b", "out/a"],
)
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    (chosen / "out").symlink_to(tmp_path)
    with pytest.raises(Refusal):
        inside(chosen, name)


@pytest.mark.parametrize("name", ["a.png", "a/b.png", "a/../b.png", "..a.png", "a..b/c.png", "./x"])
def test_names_that_stay_inside_are_joined(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name
    assert inside(tmp_path, name).resolve().is_relative_to(tmp_path.resolve())


def test_an_address_is_refused_as_such_and_not_as_a_missing_folder() -> None:
    for path, shown in ((Path("s3://bucket/hr"), "s3://bucket/hr"), (Path("gs:/b"), "gs://b")):
        with pytest.raises(Refusal, match="is an address") as caught:
            list_images(path)
        assert caught.value.where == shown
    for path in (Path("C:/images"), Path("nowhere"), Path("a/b:/c")):
        with pytest.raises(Refusal, match="no such folder"):
            list_images(path)
