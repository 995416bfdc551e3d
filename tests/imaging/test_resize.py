"""Bicubic resize against Pillow's (another implementation), NumPy's definition and MATLAB's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imaging.__main__ import main
from imaging.command import DONE, FAILURES_LISTED, REFUSED, run
from imaging.files import quantize_u8, write_picture
from imaging.resize import Edge, crop_to_multiple, downscale, downscale_8bit, resize_bicubic
from imaging.scale import SCALE
from imaging.tools.check_resize import MUST_PASS, check_folders

SIDES = st.integers(1, 40)
NUMPY_MODE: dict[Edge, Literal["edge", "symmetric"]] = {"replicate": "edge", "mirror": "symmetric"}


def random_image(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pillow_resize(x_HW: np.ndarray, height: int, width: int, edge: Edge) -> np.ndarray:
    """Pillow's bicubic drops what lies beyond the edge; so let nothing lie there: pad by hand, resize, cut.

    Padding by multiples of the input side keeps the grids aligned for any ratio.
    """
    pad_y, pad_x = (max(1, -(-16 // side)) * side for side in x_HW.shape)
    times_y, times_x = pad_y // x_HW.shape[0], pad_x // x_HW.shape[1]
    padded = np.pad(x_HW, ((pad_y, pad_y), (pad_x, pad_x)), mode=NUMPY_MODE[edge])
    out_size = (width * (2 * times_x + 1), height * (2 * times_y + 1))
    resized = np.asarray(Image.fromarray(padded.astype(np.float32)).resize(out_size, Image.Resampling.BICUBIC))
    return resized[times_y * height :, times_x * width :][:height, :width]


@pytest.mark.parametrize("edge", ["replicate", "mirror"])
@pytest.mark.parametrize(
    ("source", "target"),
    [((48, 64), (12, 16)), ((37, 53), (9, 13)), ((9, 13), (36, 52)), ((31, 29), (17, 40)), ((20, 20), (60, 7))],
)
def test_equals_pillow_on_edge_padded_images(source: tuple[int, int], target: tuple[int, int], edge: Edge) -> None:
    x_HW = random_image(*source).numpy()
    ours = resize_bicubic(torch.from_numpy(x_HW)[None, None], size=target, edge=edge)[0, 0].numpy()
    np.testing.assert_allclose(ours, pillow_resize(x_HW, *target, edge), atol=2e-6)


def defined_pixel(x_I: np.ndarray, position: int, scale: float) -> float:
    """One output pixel straight from the definition: the sum over input pixels of cubic(distance * s)."""
    s = min(scale, 1.0)
    centre = (position + 0.5) / scale - 0.5
    total = weights = 0.0
    for i in range(int(centre - 2 / s) - 2, int(centre + 2 / s) + 3):
        t = abs(centre - i) * s
        if t >= 2:
            continue
        w = 1.5 * t**3 - 2.5 * t**2 + 1 if t <= 1 else -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        total, weights = total + w * x_I[min(max(i, 0), len(x_I) - 1)], weights + w
    return total / weights


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 60), scale=st.sampled_from([0.25, 1 / 3, 0.7, 1.3, 2.0, 4.0]), seed=st.integers(0, 99))
def test_scale_follows_the_definition_at_every_pixel(length: int, scale: float, seed: int) -> None:
    x_I = random_image(length, seed=seed)
    out = resize_bicubic(x_I[None, None, None], scale=scale)[0, 0]
    expected = [defined_pixel(x_I.numpy(), o, scale) for o in range(out.shape[-1])]
    np.testing.assert_allclose(out[0].numpy(), expected, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(h=SIDES, w=SIDES, to_h=SIDES, to_w=SIDES, value=st.floats(0, 1), edge=st.sampled_from(["replicate", "mirror"]))
def test_constants_stay_constant(h: int, w: int, to_h: int, to_w: int, value: float, edge: Edge) -> None:
    out = resize_bicubic(torch.full((1, 3, h, w), value), size=(to_h, to_w), edge=edge)
    assert out.shape == (1, 3, to_h, to_w)
    assert (out - value).abs().max() < 2e-6


def test_flips_and_transposition_commute_with_it() -> None:
    x = random_image(2, 3, 24, 33)
    torch.testing.assert_close(resize_bicubic(x.flip(-1, -2), size=(6, 9)), resize_bicubic(x, size=(6, 9)).flip(-1, -2))
    torch.testing.assert_close(resize_bicubic(x.mT, size=(9, 6)), resize_bicubic(x, size=(6, 9)).mT)


def test_upscaling_by_four_then_down_is_close_on_smooth_images() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 3, 40), torch.linspace(0, 3, 44), indexing="ij")
    smooth = (0.5 + 0.4 * torch.sin(y) * torch.cos(x))[None, None]
    up = resize_bicubic(smooth, scale=4)
    assert up.shape[-2:] == (160, 176)
    assert (downscale(up) - smooth).abs().max() < 4e-3


@pytest.mark.parametrize("edge", ["replicate", "mirror"])
def test_gradients_are_right(edge: Edge) -> None:
    x = random_image(1, 2, 9, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: resize_bicubic(t, size=(3, 11), edge=edge), (x,))


def test_gradients_through_long_axes_cross_the_matrix_runs() -> None:
    x = random_image(1, 1, 300, 5).requires_grad_()
    resize_bicubic(x, size=(75, 5)).sum().backward()
    assert x.grad is not None
    # Each output's weights sum to 1, so all gradients together count the outputs.
    assert x.grad.sum().item() == pytest.approx(75 * 5)
    assert (x.grad[0, 0, 20:-20] - 0.25).abs().max() < 0.05


def test_dtypes_are_kept_and_halves_are_computed_in_float32() -> None:
    x = random_image(1, 3, 16, 16)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert resize_bicubic(x.to(dtype), scale=0.5).dtype == dtype
    half = x.to(torch.bfloat16)
    torch.testing.assert_close(resize_bicubic(half, scale=0.5), resize_bicubic(half.float(), scale=0.5).bfloat16())


def test_a_third_of_three_hundred_is_a_hundred() -> None:
    assert resize_bicubic(torch.zeros(1, 1, 300, 7), scale=1 / 3).shape[-2:] == (100, 3)


def test_misuse_is_named() -> None:
    x = torch.zeros(1, 3, 10, 10)
    with pytest.raises(ValueError, match="either size or scale"):
        resize_bicubic(x)
    with pytest.raises(ValueError, match="float image"):
        resize_bicubic(x.to(torch.uint8), scale=2)
    with pytest.raises(ValueError, match="multiple of 4"):
        downscale(x)
    with pytest.raises(ValueError, match="smaller than 4"):
        crop_to_multiple(torch.zeros(1, 3, 3, 9))
    assert crop_to_multiple(torch.zeros(1, 3, 11, 9)).shape[-2:] == (8, 8)


def test_reproduces_matlabs_files(shared_data: Path) -> None:
    for agreement in check_folders(shared_data / "bench" / "Set5") + check_folders(shared_data / "bench" / "Set14"):
        if agreement.method == "downscale_8bit":
            assert agreement.within_one >= 0.999, agreement
            assert agreement.exact >= 0.999, agreement
        elif agreement.method == "downscale":
            assert agreement.within_one >= 0.997, agreement


def make_pair(root: Path, *, spoil: bool) -> None:
    hr = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 32, 40))).float() / 255
    lr = downscale_8bit(hr)
    write_picture(root / "HR" / "a.png", hr)
    write_picture(root / "LRx4" / "ax4.png", 1 - lr if spoil else lr)


def test_the_command_prints_figures_and_its_code_follows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_pair(tmp_path / "good", spoil=False)
    assert run(main, ["check-resize", str(tmp_path), "--json"]) == DONE
    document = json.loads(capsys.readouterr().out)
    assert document["factor"] == SCALE
    first = next(row for row in document["folders"] if row["method"] in MUST_PASS)
    assert (first["pixels"], first["exact"], first["worst"]) == (80, 1.0, 0)
    make_pair(tmp_path / "spoilt", spoil=True)
    assert run(main, ["check-resize", str(tmp_path)]) == FAILURES_LISTED
    assert "| spoilt | `downscale_8bit` | 1 | 80 |" in capsys.readouterr().out
    (tmp_path / "good" / "LRx4" / "ax4.png").rename(tmp_path / "good" / "LRx4" / "b.png")
    assert run(main, ["check-resize", str(tmp_path / "good")]) == REFUSED
    assert "has no partner in LRx4" in capsys.readouterr().err


def test_eight_bit_downscale_lies_on_eight_bit_levels() -> None:
    lr = downscale_8bit(random_image(1, 3, 32, 32).float())
    assert lr.dtype == torch.float32
    assert torch.equal(quantize_u8(lr).float() / 255, lr)
