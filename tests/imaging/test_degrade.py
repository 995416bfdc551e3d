"""Degradations: each step against SciPy, OpenCV or Pillow; records that make the same image again; laws of settings."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imaging.degrade import Degradation, DegradeSettings, degrade, draw_degradation
from imaging.degrade.steps import LIGHT, Blur, GaussianNoise, Jpeg, PoissonNoise, Resize
from imaging.refusal import Refusal
from imaging.resize import downscale_8bit
from imaging.settings import load_settings, parse_settings

CONFIG = Path(__file__).parents[2] / "configs" / "degrade_mixed.yaml"


def picture(height: int = 64, width: int = 48, seed: int = 0) -> torch.Tensor:
    """(1, 3, H, W): smooth with some texture."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, height // 8, width // 8, generator=generator)
    large = torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic")
    return (large + 0.05 * torch.randn(1, 3, height, width, generator=generator)).clamp(0, 1)


def hwc(image_BCHW: torch.Tensor) -> np.ndarray:
    return image_BCHW[0].permute(1, 2, 0).numpy()


def test_a_round_blur_is_scipys_gaussian() -> None:
    image_BCHW = picture()
    mine = Blur(sigma_x=1.7, sigma_y=1.7, angle=0.3).apply(image_BCHW)
    radius = int(np.ceil(3 * 1.7))
    for channel in range(3):
        plane = image_BCHW[0, channel].double().numpy()
        expected = scipy.ndimage.gaussian_filter(plane, 1.7, radius=radius, mode="nearest")
        np.testing.assert_allclose(mine[0, channel], expected, atol=1e-5)


def test_an_upright_blur_is_opencvs_separable_one() -> None:
    image_BCHW = picture()
    step = Blur(sigma_x=2.0, sigma_y=0.7, angle=0.0)
    expected = cv2.GaussianBlur(hwc(image_BCHW), (13, 13), sigmaX=2.0, sigmaY=0.7, borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(hwc(step.apply(image_BCHW)), expected, atol=1e-5)


def test_a_turned_kernel_is_scipys_rotation_of_the_upright_one() -> None:
    upright, turned = (Blur(sigma_x=4.0, sigma_y=1.5, angle=angle).kernel() for angle in (0.0, 0.6))
    # x to the right and y down: a positive angle turns the long axis clockwise on the screen, SciPy's the other way.
    rotated = scipy.ndimage.rotate(upright.numpy(), -np.degrees(0.6), reshape=False, order=3)
    np.testing.assert_allclose(turned.numpy(), rotated, atol=4e-4)  # cut corners; the peak is 0.027
    assert turned.argmax() == turned.numel() // 2


@given(st.floats(0, 4), st.floats(0, 4), st.floats(0, 3.2))
@settings(max_examples=30, deadline=None)
def test_a_kernel_sums_to_one_and_is_symmetric(sigma_x: float, sigma_y: float, angle: float) -> None:
    kernel = Blur(sigma_x=sigma_x, sigma_y=sigma_y, angle=angle).kernel()
    assert float(kernel.sum()) == pytest.approx(1)
    torch.testing.assert_close(kernel, kernel.flip(0, 1))
    assert bool(kernel.isfinite().all())


def test_gaussian_noise_has_the_stated_deviation_and_numpys_numbers() -> None:
    image_BCHW = picture(256, 256)
    noise = GaussianNoise(sigma=10, grey=False, seed=7).apply(image_BCHW) - image_BCHW
    assert float(noise.std()) * 255 == pytest.approx(10, rel=0.01)
    expected = np.random.default_rng(7).standard_normal((1, 3, 256, 256), dtype=np.float32) * 10 / 255
    np.testing.assert_allclose(noise, expected, atol=1e-6)
    grey = GaussianNoise(sigma=10, grey=True, seed=7).apply(image_BCHW) - image_BCHW
    torch.testing.assert_close(grey[:, :1].expand(-1, 3, -1, -1), grey, atol=1e-6, rtol=0)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("level", [0.1, 0.8])
def test_poisson_noise_keeps_the_mean_and_its_variance_grows_with_light(level: float, grey: bool) -> None:
    flat = torch.full((1, 3, 256, 256), level)
    noisy = PoissonNoise(light=0.5, grey=grey, seed=1).apply(flat)
    assert float(noisy.mean()) == pytest.approx(level, rel=0.01)
    assert float(noisy.var()) == pytest.approx(level / (0.5 * LIGHT), rel=0.03)
    same = bool(torch.allclose(noisy[:, 0], noisy[:, 2], atol=1e-6))
    assert same is grey


@pytest.mark.parametrize("quality", [40, 75, 95])
def test_jpeg_is_opencvs_within_rounding(quality: int) -> None:
    image_BCHW = picture(64, 80)
    mine = hwc(Jpeg(quality=quality).apply(image_BCHW)) * 255
    pixels = (hwc(image_BCHW) * 255).round().astype(np.uint8)
    encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    theirs = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1].astype(np.float64)
    assert float(np.abs(mine - theirs).mean()) < 0.5
    assert float(np.abs(mine - theirs).max()) <= 6
    assert float(np.abs(mine - pixels).mean()) > float(np.abs(mine - theirs).mean())


@pytest.mark.parametrize(
    ("method", "theirs"), [("bilinear", Image.Resampling.BILINEAR), ("area", Image.Resampling.BOX)]
)
def test_resizing_is_pillows(method: str, theirs: int) -> None:
    image_BCHW = picture(64, 48)
    mine = Resize(height=16, width=24, method=method).apply(image_BCHW)  # pyright: ignore[reportArgumentType]
    for channel in range(3):
        plane = Image.fromarray(image_BCHW[0, channel].numpy())
        expected = np.asarray(plane.resize((24, 16), theirs))
        np.testing.assert_allclose(mine[0, channel], expected, atol=1e-5)


def test_bicubic_is_the_benchmarks_lr_image() -> None:
    hr_BCHW = picture()
    record = draw_degradation(DegradeSettings(), (64, 48), seed=3)
    assert record == Degradation(scale=4)
    assert torch.equal(degrade(hr_BCHW, record), downscale_8bit(hr_BCHW, 4))


@given(st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_a_record_makes_the_same_image_again(seed: int) -> None:
    mixed = load_settings(DegradeSettings, CONFIG)
    hr_BCHW = picture(32, 48)
    record = draw_degradation(mixed, (32, 48), seed)
    assert record == draw_degradation(mixed, (32, 48), seed)
    lr_BCHW = degrade(hr_BCHW, record)
    assert lr_BCHW.shape == (1, 3, 8, 12)
    assert lr_BCHW.dtype == torch.float32
    assert float(lr_BCHW.min()) >= 0
    assert float(lr_BCHW.max()) <= 1
    torch.testing.assert_close(lr_BCHW * 255, (lr_BCHW * 255).round(), atol=1e-4, rtol=0)
    read_back = Degradation.model_validate_json(record.model_dump_json())
    assert read_back == record
    assert torch.equal(degrade(hr_BCHW, read_back), lr_BCHW)


def test_seeds_differ_and_every_kind_of_step_comes_up_within_its_range() -> None:
    mixed = load_settings(DegradeSettings, CONFIG)
    records = [draw_degradation(mixed, (64, 48), seed) for seed in range(300)]
    assert len({record.model_dump_json() for record in records if record.steps}) > 260
    clean = sum(not record.steps for record in records)
    assert 10 < clean < 55
    steps = [step for record in records for step in record.steps]
    kinds = {step.kind for step in steps}
    assert kinds == {"blur", "resize", "gaussian", "poisson", "jpeg"}
    blurs = [step for step in steps if isinstance(step, Blur)]
    assert all(0.2 <= sigma <= 2.5 for step in blurs for sigma in (step.sigma_x, step.sigma_y))
    assert {step.sigma_x == step.sigma_y for step in blurs} == {True, False}
    assert all(45 <= step.quality <= 95 for step in steps if isinstance(step, Jpeg))
    assert all(step.height >= 16 and step.width >= 12 for step in steps if isinstance(step, Resize))
    assert {step.method for step in steps if isinstance(step, Resize)} == {"area", "bilinear", "bicubic"}


def test_the_exact_size_comes_last_but_for_jpeg() -> None:
    mixed = load_settings(DegradeSettings, CONFIG)
    for seed in range(50):
        steps = [step for step in draw_degradation(mixed, (64, 48), seed).steps if not isinstance(step, Jpeg)]
        if steps:
            assert steps[-1] == Resize(height=16, width=12, method="bicubic")


def test_the_image_given_is_not_changed() -> None:
    hr_BCHW = picture()
    before = hr_BCHW.clone()
    for seed in range(6):
        degrade(hr_BCHW, draw_degradation(load_settings(DegradeSettings, CONFIG), (64, 48), seed))
    assert torch.equal(hr_BCHW, before)


@pytest.mark.parametrize(
    ("document", "word"),
    [({"kind": "worse"}, "kind"), ({"clean": 2}, "clean"), ({"rounds": [{"blur": {"sigma": [3, 1]}}]}, "blur.sigma"),
     ({"rounds": [{"jpeg": {"quality": [50, 101]}}]}, "quality"), ({"rounds": [{"nois": {}}]}, "nois"),
     ({"rounds": [{"resize": {"methods": ["lanczos"]}}]}, "methods")],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_refused(document: dict, word: str) -> None:
    with pytest.raises(Refusal, match=word):
        parse_settings(DegradeSettings, document, where="test")


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        draw_degradation(DegradeSettings(), (30, 32), seed=0)
