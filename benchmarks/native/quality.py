"""Experts and folders of true images -> PSNR, SSIM and LPIPS on clean, blurred, noisy and compressed LR images.

Each LR image is made by a record of imaging/degrade/ with fixed numbers, so the table can be made again anywhere.
Legend: B batch (1), C channels, H and W height and width. Images are RGB float32 in [0, 1].
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from imaging.degrade import Degradation, DegradeSettings, degrade, draw_degradation
from imaging.degrade.steps import Blur, GaussianNoise, Jpeg, Resize, Step
from imaging.files import list_images, read_rgb
from imaging.metrics import psnr, ssim
from imaging.metrics.perceptual import find_trunk, lpips_distance
from imaging.refusal import Refusal
from imaging.resize import crop_to_multiple, resize_bicubic
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from experts.spec import Expert

BICUBIC = "bicubic"


@dataclass(frozen=True)
class Variant:
    """Blur of the true image before bicubic downscaling, noise and JPEG after it; the deviation of blur is in pixels of
    the true image, that of noise in grey levels."""

    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 0


VARIANTS = {
    "clean": Variant(),
    "blur 1": Variant(blur=1.0),
    "blur 2": Variant(blur=2.0),
    "noise 5": Variant(noise=5.0),
    "noise 15": Variant(noise=15.0),
    "JPEG 80": Variant(jpeg=80),
    "JPEG 40": Variant(jpeg=40),
    "all three": Variant(blur=1.0, noise=5.0, jpeg=80),
}


@dataclass(frozen=True)
class Quality:
    """Means over a set's images; `lpips` is None where its trunk file is missing."""

    set: str
    variant: str
    contender: str
    images: int
    psnr_y: float
    ssim_y: float
    lpips: float | None


def record_of(variant: Variant, size: tuple[int, int], seed: int) -> Degradation:
    """The variant for one image of (height, width) `size`; the seed is the noise's."""
    if variant == Variant():
        return Degradation(scale=SCALE)
    height, width = size
    steps: list[Step] = []
    if variant.blur:
        steps.append(Blur(sigma_x=variant.blur, sigma_y=variant.blur, angle=0.0))
    steps.append(Resize(height=height // SCALE, width=width // SCALE, method="bicubic"))
    if variant.noise:
        steps.append(GaussianNoise(sigma=variant.noise, grey=False, seed=seed))
    if variant.jpeg:
        steps.append(Jpeg(quality=variant.jpeg))
    return Degradation(scale=SCALE, steps=tuple(steps))


def measure_quality(
    experts: Sequence[Expert],
    sets: Mapping[str, Path],
    *,
    images: int | None = None,
    mixed: DegradeSettings | None = None,
) -> list[Quality]:
    """Every expert, and bicubic enlargement, on every variant of every set; `mixed` adds a row of drawn records."""
    if not sets:
        raise Refusal("no images are named", where="--hr", cure="give --hr NAME=FOLDER of true images")
    trunk = _lpips_trunk()
    results = []
    for name, folder in sets.items():
        paths = list_images(folder)[:images]
        for label in [*VARIANTS, *(["mixed"] if mixed else [])]:
            sums: dict[str, Tensor] = {}
            for index, path in enumerate(tqdm(paths, desc=f"{name}, {label}", unit="image", leave=False, disable=None)):
                hr_BCHW = crop_to_multiple(read_rgb(path), SCALE)
                size = (hr_BCHW.shape[-2], hr_BCHW.shape[-1])
                if label in VARIANTS:
                    record = record_of(VARIANTS[label], size, index)
                else:
                    assert mixed is not None
                    record = draw_degradation(mixed, size, index)
                for contender, sr_BCHW in _outputs(experts, degrade(hr_BCHW, record), size).items():
                    scores = _scores(sr_BCHW, hr_BCHW, trunk)
                    sums[contender] = sums.get(contender, torch.zeros_like(scores)) + scores
            for contender, total in sums.items():
                mean = (total / len(paths)).tolist()
                lpips = mean[2] if trunk else None
                results.append(Quality(name, label, contender, len(paths), mean[0], mean[1], lpips))
    return results


def _outputs(experts: Sequence[Expert], lr_BCHW: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Contender -> its enlargement, on the CPU."""
    return {
        BICUBIC: resize_bicubic(lr_BCHW, size=size),
        **{expert.name: expert.run(lr_BCHW).sr_BCHW.cpu() for expert in experts},
    }


def _scores(sr_BCHW: Tensor, hr_BCHW: Tensor, trunk: Path | None) -> Tensor:
    """PSNR, SSIM and LPIPS (0 where there is no trunk), float64 (3,)."""
    lpips = lpips_distance(sr_BCHW, hr_BCHW, trunk=trunk).double() if trunk else torch.zeros(1, dtype=torch.float64)
    return torch.stack([psnr(sr_BCHW, hr_BCHW)[0], ssim(sr_BCHW, hr_BCHW)[0], lpips[0].cpu()])


def _lpips_trunk() -> Path | None:
    """LPIPS's trunk file, or None where it is missing, which the table then states."""
    try:
        return find_trunk()
    except Refusal:
        return None


def quality_markdown(results: Sequence[Quality]) -> str:
    """One row per set and variant, one column per contender."""
    contenders = list(dict.fromkeys(result.contender for result in results))
    with_lpips = results[0].lpips is not None
    kinds = "PSNR-Y / SSIM-Y / LPIPS" if with_lpips else "PSNR-Y / SSIM-Y"
    absent = "" if with_lpips else " LPIPS is left out: its trunk file is missing."
    lines = [
        "## Quality",
        "",
        f"{kinds}, means over each set, 4 border pixels left out, on rounded 8-bit images. Blur has its deviation in "
        f"pixels of the true image, noise in grey levels; `all three` is blur 1, noise 5, JPEG 80.{absent}",
        "",
        f"| set | images | input | {' | '.join(contenders)} |",
        "|---" * (3 + len(contenders)) + "|",
    ]
    rows = {(one.set, one.variant): one.images for one in results}
    table = {(one.set, one.variant, one.contender): one for one in results}
    for (name, variant), count in rows.items():
        cells = [_cell(table[name, variant, contender]) for contender in contenders]
        lines.append(f"| {name} | {count} | {variant} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(one: Quality) -> str:
    return f"{one.psnr_y:.2f} / {one.ssim_y:.4f}" + ("" if one.lpips is None else f" / {one.lpips:.4f}")


def quality_json(results: Sequence[Quality]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [asdict(result) for result in results]
