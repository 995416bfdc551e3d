"""One fused image and its LR image -> the refined image, and what the guard measured. The room's table of contents.

Images are float32 on the CPU, (3, H, W), nominally in [0, 1], any size. Only tiles go to the device.
Axes: B batch (1), C channels, H and W of the image, h and w of the latents (an eighth).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from fusion.refinement.guard import fix_colour, hold_low_band, measure
from fusion.refinement.native.open import NativeRefiner
from fusion.refinement.native.run import change_of, count_native_tiles
from fusion.refinement.presets import NativePreset
from fusion.refinement.step import predict
from fusion.refinement.tiles import Tiling, run_tiled
from imaging.device import is_out_of_memory
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fusion.refinement.open import AnyRefiner, Refiner
    from fusion.refinement.presets import Blend, Colour, Preset

    # (tiles done, tiles in all); what it raises passes through, which is how a run is cancelled
    Tick = Callable[[int, int], object]

log = logging.getLogger(__name__)

LATENT = 8  # image pixels along a latent's side
_LEAST_TILE = 16


@dataclass(frozen=True)
class Refined:
    """`guard`: see guard.measure."""

    image_CHW: Tensor
    guard: dict[str, float]


def refine(
    refiner: AnyRefiner,
    fused_CHW: Tensor,
    lr_CHW: Tensor | None,
    how: Blend,
    tick: Tick | None = None,
    warn: Callable[[str], object] = log.warning,
) -> Refined:
    """At strength 0 the fused image itself, bit for bit, without running the model."""
    image_CHW = fused_CHW
    if how.strength > 0:
        painted_CHW = repaint(refiner, fused_CHW, how.colour, how.seed, tick, warn, lr_CHW=lr_CHW)
        image_CHW = blend(fused_CHW, painted_CHW, how.strength)
    return Refined(image_CHW, measure(image_CHW, fused_CHW, lr_CHW))


@torch.no_grad()
def repaint(
    refiner: AnyRefiner,
    fused_CHW: Tensor,
    colour: Colour,
    seed: int | None = None,
    tick: Tick | None = None,
    warn: Callable[[str], object] = log.warning,
    *,
    lr_CHW: Tensor | None = None,
) -> Tensor:
    """The refined image at full strength; with the colour fix `wavelet` its low band is the fused image's.

    Only the native refiner looks at the LR image.
    """
    progress = _Progress(count_tiles(refiner.preset, *fused_CHW.shape[-2:]), tick)
    if isinstance(refiner, NativeRefiner):
        painted_CHW = fused_CHW + change_of(refiner, fused_CHW, lr_CHW, seed, progress, warn)
    else:
        painted_CHW = _decoded(refiner, fused_CHW, seed, progress, warn)
    fixed_CHW = fix_colour(colour, painted_CHW, fused_CHW)
    return hold_low_band(fixed_CHW, fused_CHW) if colour == "wavelet" else fixed_CHW


def _decoded(
    refiner: Refiner, fused_CHW: Tensor, seed: int | None, progress: _Progress, warn: Callable[[str], object]
) -> Tensor:
    """Through the VAE and the diffusion model between its halves."""
    work = _Work(refiner, progress, warn)
    padded_CHW = _padded(fused_CHW.clamp(0, 1), refiner.preset.multiple)
    moments_Chw = work.encode(padded_CHW)
    latent_Chw = draw(moments_Chw, seed) * refiner.preset.scale
    prediction_Chw = work.predict(latent_Chw)
    clean_Chw = refiner.update(latent_Chw, prediction_Chw)
    decoded_CHW = work.decode(clean_Chw / refiner.preset.scale)
    return decoded_CHW[:, : fused_CHW.shape[-2], : fused_CHW.shape[-1]].clamp(0, 1)


def blend(fused_CHW: Tensor, painted_CHW: Tensor, strength: float) -> Tensor:
    """A straight line between the two, each of which is met exactly."""
    return torch.lerp(fused_CHW, painted_CHW, strength)


def draw(moments_Chw: Tensor, seed: int | None) -> Tensor:
    """The VAE's posterior (means, then logarithms of variances) -> its mode, or one seeded draw for the whole image."""
    mean_Chw, spread_Chw = moments_Chw.chunk(2)
    if seed is None:
        return mean_Chw
    noise_Chw = torch.randn(mean_Chw.shape, generator=torch.Generator().manual_seed(seed))
    return mean_Chw + torch.exp(spread_Chw.clamp(-30, 20) / 2) * noise_Chw


def count_tiles(preset: Preset | NativePreset, height: int, width: int) -> int:
    """How many calls of the VAE's encoder, the model and the decoder an image of that size takes."""
    if isinstance(preset, NativePreset):
        return count_native_tiles(preset, height, width)
    sides = [-(-side // preset.multiple) * preset.multiple // LATENT for side in (height, width)]
    model, vae = _tilings(preset)
    return model.count(*sides) + 2 * vae.count(*sides)


def _tilings(preset: Preset) -> tuple[Tiling, Tiling]:
    return Tiling(preset.tile, preset.overlap), Tiling(preset.vae_tile, preset.vae_overlap)


def _padded(image_CHW: Tensor, multiple: int) -> Tensor:
    """Up to the multiple, the last pixel going on."""
    down, right = (-side % multiple for side in image_CHW.shape[-2:])
    return F.pad(image_CHW[None], (0, right, 0, down), mode="replicate")[0]


class _Progress:
    """Counts tiles for `tick`."""

    def __init__(self, total: int, tick: Tick | None) -> None:
        self._tick, self._done, self._total = tick, 0, total

    def __call__(self) -> None:
        self._done += 1
        if self._tick is not None:
            self._tick(self._done, max(self._total, self._done))


class _Work:
    """The three passes over the tiles of one image; each goes on in smaller tiles when memory does not suffice."""

    def __init__(self, refiner: Refiner, progress: _Progress, warn: Callable[[str], object]) -> None:
        self._refiner, self._progress, self._warn = refiner, progress, warn
        self._model_tiling, self._vae_tiling = _tilings(refiner.preset)

    def encode(self, image_CHW: Tensor) -> Tensor:
        """(3, H, W) in [0, 1] -> (2C, h, w): means and logarithms of variances."""
        vae, dtype = self._refiner.vae, self._refiner.vae_dtype

        def run(part_BCHW: Tensor) -> Tensor:
            return vae.encode(self._there(part_BCHW * 2 - 1, dtype)).latent_dist.parameters

        return self._pass("the VAE's encoder", image_CHW, run, self._vae_tiling, inner=LATENT)

    def predict(self, latent_Chw: Tensor) -> Tensor:
        """(C, h, w) -> the same: noise or velocity."""
        refiner = self._refiner

        def run(part_BChw: Tensor) -> Tensor:
            there = self._there(part_BChw, refiner.dtype)
            return predict(refiner.model, there, refiner.preset.timestep, refiner.conditions)

        return self._pass("the diffusion model", latent_Chw, run, self._model_tiling)

    def decode(self, latent_Chw: Tensor) -> Tensor:
        """(C, h, w) -> (3, H, W), nominally in [0, 1]."""
        vae, dtype = self._refiner.vae, self._refiner.vae_dtype

        def run(part_BChw: Tensor) -> Tensor:
            return vae.decode(self._there(part_BChw, dtype), return_dict=False)[0] / 2 + 0.5

        return self._pass("the VAE's decoder", latent_Chw, run, self._vae_tiling, outer=LATENT)

    def _there(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(self._refiner.device, dtype)

    def _pass(
        self,
        name: str,
        x_CHW: Tensor,
        run: Callable[[Tensor], Tensor],
        tiling: Tiling,
        *,
        inner: int = 1,
        outer: int = 1,
    ) -> Tensor:
        while True:
            try:
                found_CHW = run_tiled(x_CHW, run, tiling, inner=inner, outer=outer, tick=self._progress)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block, so that the failed call's tensors are no longer held by its traceback.
            tiling = self._smaller(name, tiling)
        if not bool(torch.isfinite(found_CHW).all()):
            cure = "run it with --device cpu, which computes in float32"
            raise Refusal("gave NaN or infinity", where=name, cure=cure)
        return found_CHW

    def _smaller(self, name: str, tiling: Tiling) -> Tiling:
        if tiling.tile < 2 * _LEAST_TILE:
            cure = "free memory, or --device cpu"
            raise Refusal(f"out of memory even in tiles of {tiling.tile} latents", where=name, cure=cure)
        smaller = tiling.halved()
        self._warn(f"{name}: out of memory at tiles of {tiling.tile} latents; went on with tiles of {smaller.tile}")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return smaller
