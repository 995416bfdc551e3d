"""A frozen network as an expert: LR batch -> pad, run, tap, crop -> SR images and features aligned to the LR grid.

Legend: B batch, C channels, H and W height and width of the low-resolution image. Images are float32 RGB, nominally
in [0, 1]; outputs are float32 and not clamped.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from experts.call import NetworkCall, call_plainly, without_meshgrid_warning
from experts.pad import pad_right_bottom
from experts.spec import ExpertIdentity, ExpertOutput, Padding
from experts.tap import as_maps, tapped
from imaging.device import Precision, is_out_of_memory
from imaging.refusal import Refusal, nearest
from imaging.scale import SCALE, enlarged
from imaging.tiling import plan_kept_tiles

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from torch import Tensor, nn

    from experts.spec import ExpertSpec, Tap

OWN_PADDING = 64  # the largest window of any architecture here: no network pads itself by more

_AUTOCAST: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NetworkExpert:
    """One frozen network with its tap, padding, precision and tiling."""

    def __init__(
        self,
        spec: ExpertSpec,
        network: nn.Module,
        *,
        architecture: str,
        tap: Tap | None,
        padding: Padding,
        weights_sha256: str,
        device: torch.device,
        precision: Precision = "fp32",
        tile: int = 0,
        call: NetworkCall = call_plainly,
        code: str | None = None,
        scale: int = SCALE,
    ) -> None:
        if precision not in spec.precision:
            allowed = nearest(precision, spec.precision)
            raise Refusal(
                f"may not run in {precision}", where=f"expert {spec.name}", cure=f"use another precision, {allowed}"
            )
        self.spec = spec
        self.network = network.to(device)
        self.tap = tap
        self.padding = padding
        self.device = device
        self.precision: Precision = precision
        self.tile = tile
        self.call = call
        self.scale = scale
        self._code = code
        self._channels = tap.channels or 0 if tap else 0
        self._architecture = architecture
        self._weights_sha256 = weights_sha256

    @property
    def name(self) -> str:
        """The expert's short name."""
        return self.spec.name

    @property
    def identity(self) -> ExpertIdentity:
        """All that decides the numbers this expert gives."""
        return ExpertIdentity(
            name=self.name,
            architecture=self._architecture,
            tap=self.tap.module if self.tap else None,
            channels=self._channels,
            weights_sha256=self._weights_sha256,
            precision=self.precision,
            tiling=f"{self.tile}+{self.spec.overlap}" if self.tile else "whole",
            code=self._code,
            scale=self.scale,
        )

    @torch.no_grad()
    def run(self, lr_BCHW: Tensor, items: Sequence[str] = ()) -> ExpertOutput:
        """(B, 3, H, W) float32 in [0, 1] -> sr (B, 3, sH, sW) and feat (B, C, H, W), on the expert's device."""
        _require_image_batch(lr_BCHW)
        lr_BCHW = lr_BCHW.to(self.device)
        height, width = lr_BCHW.shape[-2:]
        if self.tile and max(height, width) > self.tile:
            output = self._run_tiled(lr_BCHW)
        else:
            output = self._run_whole(lr_BCHW)
        self._require_finite(output, items)
        return output

    def _run_whole(self, lr_BCHW: Tensor) -> ExpertOutput:
        """Pad, run under the precision, tap, crop."""
        height, width = lr_BCHW.shape[-2:]
        padded_BCHW = pad_right_bottom(lr_BCHW, self.padding)
        with self._autocast(), without_meshgrid_warning(), self._refused_misfit():
            if self.tap is None:
                sr_BCHW, feat_BCHW = self.call(self.network, padded_BCHW), None
            else:
                with tapped(self.network, self.tap.module) as caught:
                    sr_BCHW = self.call(self.network, padded_BCHW)
                feat_BCHW = as_maps(caught.take(), self.tap.layout, padded_BCHW)
        self._require_shapes(padded_BCHW, sr_BCHW, feat_BCHW)
        return ExpertOutput(
            sr_BCHW[..., : self.scale * height, : self.scale * width].float(),
            None if feat_BCHW is None else feat_BCHW[..., :height, :width].float(),
        )

    @contextlib.contextmanager
    def _refused_misfit(self) -> Generator[None]:
        """Tensors that do not fit each other within the forward: settings were guessed from a file that has others."""
        try:
            yield
        except RuntimeError as error:
            first = str(error).splitlines()[0][:160] if str(error) else ""
            if is_out_of_memory(error) or not any(word in first for word in ("shape", "size")):
                raise
            what = f"the settings that its tensors' shapes imply make no {self._architecture} that runs ({first})"
            cure = "give the complete, unchanged weights file, or what builds it as code:net.py:Net:FILE"
            raise Refusal(what, where=f"expert {self.name}", cure=cure) from error

    def _run_tiled(self, lr_BCHW: Tensor) -> ExpertOutput:
        """Tile by tile; of each only the part with enough surroundings is kept."""
        batch, _, height, width = lr_BCHW.shape
        sr_BCHW = lr_BCHW.new_full((batch, 3, self.scale * height, self.scale * width), float("nan"))
        feat_BCHW: Tensor | None = None
        for tile in plan_kept_tiles(height, width, self.tile, self.spec.overlap, self.padding.multiple):
            part = self._run_whole(lr_BCHW[(..., *tile.read)])
            large, cut = (tuple(enlarged(span, self.scale) for span in spans) for spans in (tile.keep, tile.inner))
            sr_BCHW[(..., *large)] = part.sr_BCHW[(..., *cut)]
            if part.feat_BCHW is not None:
                if feat_BCHW is None:
                    feat_BCHW = lr_BCHW.new_full((batch, part.feat_BCHW.shape[1], height, width), float("nan"))
                feat_BCHW[(..., *tile.keep)] = part.feat_BCHW[(..., *tile.inner)]
        return ExpertOutput(sr_BCHW, feat_BCHW)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        """fp32 runs plainly; lower precisions only by autocast, since several architectures mix dtypes otherwise."""
        if self.precision == "fp32":
            return torch.autocast(self.device.type, enabled=False)
        return torch.autocast(self.device.type, dtype=_AUTOCAST[self.precision])

    def _require_shapes(self, padded_BCHW: Tensor, sr_BCHW: Tensor, feat_BCHW: Tensor | None) -> None:
        """What came out must be so many times the input, and the features must lie on its grid."""
        batch, _, height, width = padded_BCHW.shape
        where = f"expert {self.name}"
        if sr_BCHW.shape != (batch, 3, self.scale * height, self.scale * width):
            what = f"gave {tuple(sr_BCHW.shape)} for an input of {tuple(padded_BCHW.shape)}"
            raise Refusal(what, where=where, cure=f"use a {self.scale}x RGB model")
        if feat_BCHW is None or self.tap is None:
            return
        if feat_BCHW.dim() != 4 or not self._lies_on_grid(feat_BCHW, height, width):
            what = f"its tap '{self.tap.module}' gives {tuple(feat_BCHW.shape)}, not maps at LR size"
            raise Refusal(what, where=where, cure="tap another layer, or leave tap out: it is found")
        if self._channels and feat_BCHW.shape[1] != self._channels:
            what = f"its tap '{self.tap.module}' gives {feat_BCHW.shape[1]} channels, not {self._channels}"
            raise Refusal(what, where=where, cure="correct tap.channels or the weights file")

    def _lies_on_grid(self, feat_BCHW: Tensor, height: int, width: int) -> bool:
        """LR size, or larger by what a network that pads to its windows itself adds to the right and bottom.

        CRAFT adds a whole window even to an image that fits. What is a multiple of LR size is from the upsampler.
        """
        rows, columns = feat_BCHW.shape[-2] - height, feat_BCHW.shape[-1] - width
        if not (0 <= rows <= OWN_PADDING and 0 <= columns <= OWN_PADDING):
            return False
        enlarged = rows > 0 and rows % height == 0 and columns % width == 0 and rows // height == columns // width
        return not enlarged or max(rows, columns) <= self.padding.multiple

    def _require_finite(self, output: ExpertOutput, items: Sequence[str]) -> None:
        """A NaN stops here, with the names of the images, before it can reach a cache or a picture."""
        tensors = [output.sr_BCHW] if output.feat_BCHW is None else [output.sr_BCHW, output.feat_BCHW]
        if all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
            return
        where = f"expert {self.name}" + (f" on {', '.join(items)}" if items else "")
        raise Refusal(f"gave NaN or infinity in {self.precision}", where=where, cure="run it with --precision fp32")


def _require_image_batch(lr_BCHW: Tensor) -> None:
    """Shape, dtype and range as stated; a batch in 0..255 would be super-resolved to nonsense without a word."""
    if lr_BCHW.dim() != 4 or lr_BCHW.shape[1] != 3 or min(lr_BCHW.shape) < 1:
        raise ValueError(f"an expert takes (B, 3, H, W), got {tuple(lr_BCHW.shape)}")
    if lr_BCHW.dtype != torch.float32:
        raise ValueError(f"an expert takes float32, got {lr_BCHW.dtype}")
    low, high = float(lr_BCHW.amin()), float(lr_BCHW.amax())
    if not (low >= -0.01 and high <= 1.01):
        raise ValueError(f"an expert takes values in [0, 1], got {low:.3g} to {high:.3g}")
