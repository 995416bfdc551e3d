"""HR image + a seed -> LR image and the record of what was done to it; the record makes the same LR image again.

`DegradeSettings` (configs/degrade_mixed.yaml) are the ranges to draw from; a `Degradation` is one draw: a list of steps
with every number in it. Rounds of blur, resize, noise and JPEG follow Real-ESRGAN (Wang et al. 2021).
Images: rgb_BCHW with B = 1, float32 in [0, 1], on the CPU. Axes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from imaging.degrade.steps import Blur, GaussianNoise, Jpeg, PoissonNoise, Resize, ResizeMethod, Step
from imaging.resize import downscale_8bit
from imaging.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

Share = Annotated[float, Field(ge=0, le=1)]
Range = tuple[float, float]


class BlurSettings(Settings):
    """Standard deviations in pixels; a share of the kernels is stretched and turned."""

    chance: Share = 0.8
    sigma: Range = (0.2, 2.5)
    anisotropic: Share = 0.4


class ResizeSettings(Settings):
    """An intermediate size, as a factor of the size that the round began with."""

    chance: Share = 0.7
    factor: Range = (0.4, 1.3)
    methods: tuple[ResizeMethod, ...] = ("area", "bilinear", "bicubic")


class NoiseSettings(Settings):
    """Gaussian with a standard deviation in grey levels of 255, or Poisson by how many times the sensor's light."""

    chance: Share = 0.8
    poisson: Share = 0.4
    grey: Share = 0.4
    sigma: Range = (1.0, 15.0)
    light: Range = (0.05, 2.0)


class JpegSettings(Settings):
    """Qualities as Pillow counts them."""

    chance: Share = 0.8
    quality: tuple[int, int] = (45, 95)


class RoundSettings(Settings):
    """One pass of blur, resize, noise and JPEG, in this order."""

    chance: Share = 1.0
    blur: BlurSettings = BlurSettings()
    resize: ResizeSettings = ResizeSettings()
    noise: NoiseSettings = NoiseSettings()
    jpeg: JpegSettings = JpegSettings()


class DegradeSettings(Settings):
    """`bicubic` only shrinks; `mixed` goes through the rounds, and shrinks to the exact size before the last JPEG.

    `clean`: the share of mixed samples that are only shrunk, so that clean inputs are not forgotten.
    """

    kind: Literal["bicubic", "mixed"] = "bicubic"
    scale: int = Field(default=4, ge=1)
    clean: Share = 0.1
    rounds: tuple[RoundSettings, ...] = (RoundSettings(),)

    @model_validator(mode="after")
    def _ranges_in_order(self) -> DegradeSettings:
        for number, one in enumerate(self.rounds):
            for name, (low, high), least in (
                ("blur.sigma", one.blur.sigma, 0),
                ("resize.factor", one.resize.factor, 0.01),
                ("noise.sigma", one.noise.sigma, 0),
                ("noise.light", one.noise.light, 1e-3),
                ("jpeg.quality", one.jpeg.quality, 1),
            ):
                if not least <= low <= high:
                    raise ValueError(f"rounds.{number}.{name} must rise from at least {least}, got [{low}, {high}]")
            if one.jpeg.quality[1] > 100:
                raise ValueError(f"rounds.{number}.jpeg.quality goes to 100 at most")
        return self


class Degradation(Settings):
    """Everything that was done: steps in order. No steps: the plain bicubic LR image of 8 bits."""

    scale: int
    steps: tuple[Step, ...] = ()


def draw_degradation(settings: DegradeSettings, size: tuple[int, int], seed: int) -> Degradation:
    """Settings, the HR image's (height, width) and a seed -> the steps to apply; equal inputs give equal records."""
    height, width = size
    if height % settings.scale or width % settings.scale:
        raise ValueError(f"{height}x{width} is not a multiple of {settings.scale}: use crop_to_multiple first")
    chance = np.random.default_rng(seed)
    if settings.kind == "bicubic" or chance.random() < settings.clean:
        return Degradation(scale=settings.scale)
    steps: list[Step] = []
    now, target = size, (height // settings.scale, width // settings.scale)
    for place, one in enumerate(settings.rounds):
        last = place == len(settings.rounds) - 1
        if not last and chance.random() >= one.chance:
            continue
        steps += _blur(one.blur, chance)
        shrunk = _resize(one.resize, now, target, chance)
        now = (shrunk[0].height, shrunk[0].width) if shrunk else now
        steps += [*shrunk, *_noise(one.noise, chance)]
        if last:
            steps.append(Resize(height=target[0], width=target[1], method="bicubic"))
        # JPEG after the last resize: real files were compressed at the size at which they are found.
        steps += _jpeg(one.jpeg, chance)
    return Degradation(scale=settings.scale, steps=tuple(steps))


def degrade(hr_BCHW: Tensor, degradation: Degradation) -> Tensor:
    """(1, 3, sH, sW) -> (1, 3, H, W) in [0, 1], in steps of 1/255; the same record always gives the same image."""
    if not degradation.steps:
        return downscale_8bit(hr_BCHW, degradation.scale)
    image_BCHW = hr_BCHW
    for step in degradation.steps:
        image_BCHW = step.apply(image_BCHW)
    return (image_BCHW.clamp(0, 1) * 255).round() / 255


def _blur(settings: BlurSettings, chance: np.random.Generator) -> list[Step]:
    if chance.random() >= settings.chance:
        return []
    across, down = (float(chance.uniform(*settings.sigma)) for _ in range(2))
    if chance.random() >= settings.anisotropic:
        return [Blur(sigma_x=across, sigma_y=across, angle=0.0)]
    angle = float(chance.uniform(0, np.pi))
    return [Blur(sigma_x=across, sigma_y=down, angle=angle)]


def _resize(
    settings: ResizeSettings, now: tuple[int, int], target: tuple[int, int], chance: np.random.Generator
) -> list[Resize]:
    """Never below the target size: detail lost there cannot be learned back from the LR image."""
    if chance.random() >= settings.chance:
        return []
    factor = float(chance.uniform(*settings.factor))
    height, width = (max(goal, round(side * factor)) for side, goal in zip(now, target, strict=True))
    return [Resize(height=height, width=width, method=settings.methods[int(chance.integers(len(settings.methods)))])]


def _noise(settings: NoiseSettings, chance: np.random.Generator) -> list[Step]:
    if chance.random() >= settings.chance:
        return []
    grey, seed = bool(chance.random() < settings.grey), int(chance.integers(2**31))
    if chance.random() < settings.poisson:
        return [PoissonNoise(light=float(chance.uniform(*settings.light)), grey=grey, seed=seed)]
    return [GaussianNoise(sigma=float(chance.uniform(*settings.sigma)), grey=grey, seed=seed)]


def _jpeg(settings: JpegSettings, chance: np.random.Generator) -> list[Step]:
    if chance.random() >= settings.chance:
        return []
    return [Jpeg(quality=int(chance.integers(settings.quality[0], settings.quality[1] + 1)))]
