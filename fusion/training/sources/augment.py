"""Aligned LR and HR crops -> more varied ones; what each augmentation may be used for is a table.

A cached output belongs to the image that the expert was run on, not to that image jittered, blurred, rescaled or mixed.
Those augmentations are refused for caches and valid where experts run live or where the expert itself is trained.
Legend: B batch, C channels, H and W height and width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fusion.training.sources.sampling import Purpose, draw
from imaging.refusal import Refusal
from imaging.resize import resize_bicubic

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from fusion.training.settings import AugmentSettings

_GREY = (0.299, 0.587, 0.114)
_CROSS = ((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))  # cross product with the grey axis (1, 1, 1)

# Name -> why a cached expert's output would no longer belong to its input; flips and rotations are handled by caches.
LIVE_ONLY = {
    "jitter": "the cached experts were not run on the recoloured image",
    "blur": "the cached experts were not run on the blurred image",
    "crop_scale": "the cached experts were not run on the rescaled image",
    "cutblur": "the cached experts were not run on the pasted image",
    "mixup": "the experts are not linear: their output for a mixture is not the mixture of their outputs",
}


def refuse_for_cache(settings: AugmentSettings) -> None:
    """Refuse augmentations that a cache cannot follow."""
    for name, reason in LIVE_ONLY.items():
        if getattr(settings, name) > 0:
            raise Refusal(
                f"augment.{name} cannot be used with a cache: {reason}",
                where=f"augment.{name}",
                cure="set it to 0, train with --live, or use it to train an expert",
            )


def dihedral(image: Tensor, flip: bool, turns: int) -> Tensor:
    """Mirror left-right, then turn by 90 degrees so many times, over the last two axes."""
    return torch.rot90(image.flip(-1) if flip else image, turns, dims=(-2, -1))


def draw_dihedral(settings: AugmentSettings, chance: np.random.Generator) -> tuple[bool, int]:
    """Which of the eight orientations, as far as the settings allow."""
    flip, turns = bool(chance.integers(2)), int(chance.integers(4))
    return flip and settings.flip is not False, 0 if settings.rotate is False else turns


class Augmentation:
    """The augmentations of one run; every decision depends on the seed and the sample's number alone."""

    def __init__(self, settings: AugmentSettings, *, seed: int, live: bool) -> None:
        if not live:
            refuse_for_cache(settings)
        self._settings, self._seed = settings, seed
        if settings.blur > 0:
            # Two seconds, once: not in each of the processes that load.
            from torchvision.transforms.functional import gaussian_blur

            self._gaussian_blur = gaussian_blur

    def crop_size(self, patch: int, most: int, sample: int) -> int:
        """How many LR pixels to cut: the patch, or up to twice as many that are then scaled down to it."""
        chance = draw(self._seed, Purpose.AUGMENT, sample, 0)
        if chance.random() >= self._settings.crop_scale:
            return patch
        return int(chance.integers(patch, max(min(2 * patch, most), patch) + 1))

    def sample(self, lr_CHW: Tensor, hr_CHW: Tensor, patch: int, sample: int) -> tuple[Tensor, Tensor]:
        """One pair: rescale to the patch, orient, recolour, blur the LR."""
        if lr_CHW.shape[-1] != patch:
            scale = hr_CHW.shape[-1] // lr_CHW.shape[-1]
            hr_CHW = fitted(hr_CHW, patch * scale)
            lr_CHW = resize_bicubic(hr_CHW[None], size=(patch, patch))[0].clamp(0, 1)
        chance = draw(self._seed, Purpose.AUGMENT, sample, 1)
        flip, turns = draw_dihedral(self._settings, chance)
        lr_CHW, hr_CHW = dihedral(lr_CHW, flip, turns), dihedral(hr_CHW, flip, turns)
        if chance.random() < self._settings.jitter:
            lr_CHW, hr_CHW = _jitter(_float(lr_CHW), _float(hr_CHW), chance)
        if chance.random() < self._settings.blur:
            sigma = float(chance.uniform(0.2, 1.2))
            lr_CHW = self._gaussian_blur(_float(lr_CHW), [7, 7], [sigma, sigma])
        return self._same_kind(lr_CHW, hr_CHW)

    def batch(self, lr_BCHW: Tensor, hr_BCHW: Tensor, samples: range) -> tuple[Tensor, Tensor]:
        """CutBlur and Mixup: each sample may be changed by itself or by its neighbour in the batch."""
        if self._settings.cutblur == 0 and self._settings.mixup == 0:
            return lr_BCHW, hr_BCHW
        lr_in, hr_in = _float(lr_BCHW), _float(hr_BCHW)
        lr_out, hr_out = lr_in.clone(), hr_in.clone()
        for row, sample in enumerate(samples):
            chance = draw(self._seed, Purpose.AUGMENT, sample, 2)
            if chance.random() < self._settings.mixup:
                share = float(chance.beta(1.2, 1.2))
                other = (row + 1) % len(samples)
                lr_out[row] = share * lr_in[row] + (1 - share) * lr_in[other]
                hr_out[row] = share * hr_in[row] + (1 - share) * hr_in[other]
            if chance.random() < self._settings.cutblur:
                lr_out[row] = _cutblur(lr_out[row], hr_out[row], chance)
        return lr_out, hr_out

    def _same_kind(self, lr_CHW: Tensor, hr_CHW: Tensor) -> tuple[Tensor, Tensor]:
        """Samples of one batch must stack: all uint8 when nothing can make new values, else all float."""
        s = self._settings
        if s.jitter == 0 and s.blur == 0 and s.crop_scale == 0:
            return lr_CHW, hr_CHW
        return _float(lr_CHW), _float(hr_CHW)


def fitted(hr_CHW: Tensor, side: int) -> Tensor:
    """A square crop at another size, float32 in [0, 1]; one of that size already is returned as it is."""
    if hr_CHW.shape[-1] == side:
        return hr_CHW
    return resize_bicubic(_float(hr_CHW)[None], size=(side, side))[0].clamp(0, 1)


def _float(image: Tensor) -> Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image


def _jitter(lr_CHW: Tensor, hr_CHW: Tensor, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The same brightness, contrast, saturation and hue change for both images.

    It is one affine map of the colours, so LR stays the downscaled HR; only clipping can part them.
    """
    brightness, contrast, saturation = (float(chance.uniform(0.8, 1.2)) for _ in range(3))
    angle = float(chance.uniform(-0.15, 0.15))
    grey_CC = torch.tensor(_GREY).expand(3, 3)
    spread_CC = saturation * (torch.eye(3) - grey_CC)
    turn_CC = math.cos(angle) * torch.eye(3) + math.sin(angle) / math.sqrt(3) * torch.tensor(_CROSS)
    colours_CC = brightness * contrast * (grey_CC + turn_CC @ spread_CC)
    mean = brightness * float((hr_CHW.mean((1, 2)) * torch.tensor(_GREY)).sum())

    def change(image_CHW: Tensor) -> Tensor:
        return (torch.einsum("dc,chw->dhw", colours_CC, image_CHW) + (1 - contrast) * mean).clamp(0, 1)

    return change(lr_CHW), change(hr_CHW)


def _cutblur(lr_CHW: Tensor, hr_CHW: Tensor, chance: np.random.Generator) -> Tensor:
    """CutBlur (Yoo et al. 2020) for networks that take LR-size input.

    There the paste is HR into the enlarged LR. At LR size the same task, where to sharpen and where not, is posed
    by a rectangle of point-sampled HR (sharp, aliased) in place of the smoothly downscaled pixels.
    """
    height, width = lr_CHW.shape[-2:]
    scale = hr_CHW.shape[-1] // width
    tall, wide = int(height * chance.uniform(0.2, 0.7)), int(width * chance.uniform(0.2, 0.7))
    top, left = int(chance.integers(height - tall + 1)), int(chance.integers(width - wide + 1))
    sharp_CHW = hr_CHW[:, scale // 2 :: scale, scale // 2 :: scale]
    mixed_CHW = lr_CHW.clone()
    mixed_CHW[:, top : top + tall, left : left + wide] = sharp_CHW[:, top : top + tall, left : left + wide]
    return mixed_CHW
