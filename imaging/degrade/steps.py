"""One thing done to an image, with every number it took: blur, resize, Gaussian or Poisson noise, JPEG.

Images: rgb_BCHW with B = 1, float32, nominally in [0, 1], on the CPU; values beyond are kept until a step must round.
Axes: B batch, C channels, H height, W width; K taps of a kernel along an axis.
"""

from __future__ import annotations

import io
import math
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import Field
from torch import Tensor

from imaging.quantize import quantize_u8
from imaging.resize import resize_bicubic
from imaging.settings import Settings

ResizeMethod = Literal["area", "bilinear", "bicubic"]

_LUMA = (0.299, 0.587, 0.114)  # BT.601, full range, as JPEG's own luma
LIGHT = 255.0  # photons of a white pixel at light 1: noise of one grey level at the darkest, sixteen at white


class Blur(Settings):
    """A Gaussian of two deviations in pixels, its first axis turned from the x axis by `angle` radians."""

    kind: Literal["blur"] = "blur"
    sigma_x: float
    sigma_y: float
    angle: float

    def kernel(self) -> Tensor:
        """float64 (K, K), odd, at least three deviations to each side, sum 1."""
        radius = max(1, math.ceil(3 * max(self.sigma_x, self.sigma_y)))
        axis = torch.arange(-radius, radius + 1, dtype=torch.float64)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        along = x * math.cos(self.angle) + y * math.sin(self.angle)
        across = -x * math.sin(self.angle) + y * math.cos(self.angle)
        # A deviation of nearly zero is a kernel of one pixel, not a division by zero.
        flat_x, flat_y = max(self.sigma_x, 1e-2), max(self.sigma_y, 1e-2)
        kernel = torch.exp(-0.5 * ((along / flat_x).square() + (across / flat_y).square()))
        return kernel / kernel.sum()

    def apply(self, image_BCHW: Tensor) -> Tensor:
        """Correlate each channel; beyond the edge the last pixel goes on."""
        kernel_KK = self.kernel().to(image_BCHW)
        radius, channels = kernel_KK.shape[-1] // 2, image_BCHW.shape[1]
        wide_BCHW = F.pad(image_BCHW, (radius, radius, radius, radius), mode="replicate")
        return F.conv2d(wide_BCHW, kernel_KK.expand(channels, 1, -1, -1), groups=channels)


class Resize(Settings):
    """To a size, antialiased whichever the method."""

    kind: Literal["resize"] = "resize"
    height: int
    width: int
    method: ResizeMethod

    def apply(self, image_BCHW: Tensor) -> Tensor:
        """`area` averages when shrinking and repeats when enlarging."""
        size = (self.height, self.width)
        if self.method == "bicubic":
            return resize_bicubic(image_BCHW, size=size)
        if self.method == "area":
            return F.interpolate(image_BCHW, size=size, mode="area")
        return F.interpolate(image_BCHW, size=size, mode="bilinear", align_corners=False, antialias=True)


class GaussianNoise(Settings):
    """White noise of `sigma` grey levels of 255, the same in all channels where `grey`."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: float
    grey: bool
    seed: int

    def apply(self, image_BCHW: Tensor) -> Tensor:
        """Add; NumPy's generator gives the same numbers on every machine, torch's need not."""
        noise = np.random.default_rng(self.seed).standard_normal(_planes(image_BCHW, self.grey), dtype=np.float32)
        return image_BCHW + torch.from_numpy(noise) * (self.sigma / 255)


class PoissonNoise(Settings):
    """Counted light: the fewer photons (`light`), the noisier; of the luma for all channels where `grey`."""

    kind: Literal["poisson"] = "poisson"
    light: float
    grey: bool
    seed: int

    def apply(self, image_BCHW: Tensor) -> Tensor:
        """Replace by counts, or add the luma's counting error."""
        photons = LIGHT * self.light
        clean_BCHW = image_BCHW.clamp(0, 1)
        if self.grey:
            clean_BCHW = (clean_BCHW * torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
        counted = np.random.default_rng(self.seed).poisson(clean_BCHW.double().numpy() * photons) / photons
        return image_BCHW + (torch.from_numpy(counted).float() - clean_BCHW)


class Jpeg(Settings):
    """Through a JPEG file in memory, chroma at half size as most cameras and web sites store it."""

    kind: Literal["jpeg"] = "jpeg"
    quality: int = Field(ge=1, le=100)

    def apply(self, image_BCHW: Tensor) -> Tensor:
        """Round to 8 bits, encode, decode."""
        pixels_HWC = quantize_u8(image_BCHW)[0].permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels_HWC).save(file, format="JPEG", quality=self.quality, subsampling="4:2:0")
        with Image.open(io.BytesIO(file.getvalue())) as decoded:
            back_HWC = torch.from_numpy(np.array(decoded.convert("RGB")))
        return back_HWC.permute(2, 0, 1)[None].float() / 255


Step = Annotated[Blur | Resize | GaussianNoise | PoissonNoise | Jpeg, Field(discriminator="kind")]


def _planes(image_BCHW: Tensor, grey: bool) -> tuple[int, ...]:
    batch, channels, height, width = image_BCHW.shape
    return batch, 1 if grey else channels, height, width
