"""HR crop or image and its place in the run -> its degraded LR image; the same place always gives the same.

Each sample's record (imaging/degrade/) is a function of the run's seed and the sample's number alone, so nothing
has to be stored for it to be made again. Legend: C channels, H and W height and width. Images are uint8, 0..255, or
float32 in [0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion.training.sources.sampling import Purpose, draw
from imaging.degrade import Degradation, DegradeSettings, degrade, draw_degradation
from imaging.quantize import quantize_u8
from imaging.refusal import Refusal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fusion.training.settings import TrainSettings

CONTEXT = 8  # LR pixels around a crop that are degraded with it and then cut off: blur and JPEG see the cut there
_HELD_OUT_SEED = 0  # not the run's: scores of different runs must be comparable


def mixed(settings: DegradeSettings | None) -> DegradeSettings | None:
    """The settings, or None where LR images are made by bicubic alone."""
    return None if settings is None or settings.kind == "bicubic" else settings


def degradation_of(settings: DegradeSettings, size: tuple[int, int], seed: int, sample: int) -> Degradation:
    """The record of one training sample whose HR crop, with its context, has (height, width) `size`."""
    return draw_degradation(settings, size, _number(seed, Purpose.DEGRADE, sample))


def degraded_crop(hr_CHW: Tensor, settings: DegradeSettings, seed: int, sample: int) -> tuple[Tensor, Tensor]:
    """An HR crop with context -> LR and HR without: uint8 and as given."""
    record = degradation_of(settings, _size(hr_CHW), seed, sample)
    lr_CHW = _apply(hr_CHW, record)
    small, large = slice(CONTEXT, -CONTEXT), slice(CONTEXT * record.scale, -CONTEXT * record.scale)
    return lr_CHW[:, small, small].contiguous(), hr_CHW[:, large, large]


def degraded_image(hr_CHW: Tensor, settings: DegradeSettings, index: int) -> Tensor:
    """The index-th held-out image -> its LR, uint8; never a clean one, and the same in every run."""
    never_clean = settings.model_copy(update={"clean": 0.0})
    number = _number(_HELD_OUT_SEED, Purpose.DEGRADE_HELD_OUT, index)
    return _apply(hr_CHW, draw_degradation(never_clean, _size(hr_CHW), number))


def refuse_for_fusion(settings: TrainSettings) -> None:
    """Settings that only task expert can follow."""
    if settings.task == "expert":
        return
    if settings.task == "distil" and settings.data.degrade is None:
        return
    if settings.data.degrade is not None:
        raise Refusal(
            "cannot be used with a cache: a cache holds the experts' outputs for the LR images it was extracted from, "
            "not for other ones",
            where="data.degrade",
            cure="train the experts with it, or extract a cache from degraded LR images",
        )
    if settings.network.start_new:
        raise Refusal("is for experts; a fusion model fits whole", where="network.start_new", cure="leave it out")


def _number(seed: int, purpose: Purpose, place: int) -> int:
    return int(draw(seed, purpose, place).integers(2**62))


def _size(image_CHW: Tensor) -> tuple[int, int]:
    return image_CHW.shape[-2], image_CHW.shape[-1]


def _apply(hr_CHW: Tensor, record: Degradation) -> Tensor:
    return quantize_u8(degrade(_float(hr_CHW)[None], record))[0]


def _float(image: torch.Tensor) -> torch.Tensor:
    return image if image.is_floating_point() else image.float() / 255
