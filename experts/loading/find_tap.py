"""A network whose feature layer nobody has written down -> that layer, found by running it on small images.

The tap is the last layer that gives a feature map at LR size before the upsampler. Three forwards decide: one is
traced, to see which layers give such maps and where the upsampler begins; one sees the image shifted, one sees it
changed at a single spot. A layer whose map does not move with the image, or whose map changes elsewhere than at that
spot, is passed over for the one before it.

Legend: B batch, C channels, N = H*W tokens, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from experts.call import NetworkCall, call_plainly
from experts.loading.probe_image import probe_image
from experts.loading.trace import trace_forward
from experts.pad import padded_length
from experts.spec import Tap
from experts.tap import as_maps, caught_outputs

if TYPE_CHECKING:
    from torch import Tensor, nn

    from experts.spec import Layout, Padding

log = logging.getLogger(__name__)

IMAGE_CHANNELS = 3
TRIES = 8  # layers, counted back from the upsampler; further up, features are those of a shallow network
MARGIN = 6  # LR pixels at the borders where a shifted image has other neighbours
MOVES_WITH_IMAGE = 0.8  # of the error of a map that stays where it was
SPOT = 5  # side of the changed spot; odd, so that it has a centre
SPOT_ERROR = 2.0  # LR pixels between the spot and where the features changed most


@dataclass(frozen=True)
class TapProbe:
    """An image and the two changed copies of it that show whether a map lies on its grid."""

    lr_BCHW: Tensor
    shift: int
    spot: tuple[int, int]

    def shifted(self) -> Tensor:
        """Rolled, so that statistics over the whole image stay what they were."""
        return self.lr_BCHW.roll((self.shift, self.shift), (-2, -1))

    def spotted(self) -> Tensor:
        """With one small square turned to its negative."""
        changed_BCHW, reach = self.lr_BCHW.clone(), SPOT // 2
        rows, columns = (slice(at - reach, at + reach + 1) for at in self.spot)
        changed_BCHW[..., rows, columns] = 1 - changed_BCHW[..., rows, columns]
        return changed_BCHW


def find_tap(network: nn.Module, padding: Padding, call: NetworkCall = call_plainly) -> Tap | None:
    """The layer to tap, or None where no layer gives a map on the image's grid. Equal networks give equal answers."""
    probe = make_probe(padding)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    probe = TapProbe(probe.lr_BCHW.to(device), probe.shift, probe.spot)
    with torch.no_grad():
        candidates = candidate_taps(network, probe.lr_BCHW, call)[-TRIES:]
        if not candidates:
            return None
        paths = [one.module for one in candidates]
        plain, shifted, spotted = (
            caught_outputs(network, paths, image_BCHW, call)
            for image_BCHW in (probe.lr_BCHW, probe.shifted(), probe.spotted())
        )
    for tap in reversed(candidates):
        maps = [as_maps(outputs[tap.module], tap.layout, probe.lr_BCHW) for outputs in (plain, shifted, spotted)]
        if _moves_with_image(maps[0], maps[1], probe.shift) and _changes_at_spot(maps[0], maps[2], probe.spot):
            return tap
        log.debug("layer %s gives maps at LR size that do not lie on the image's grid", tap.module)
    return None


def make_probe(padding: Padding) -> TapProbe:
    """An image as small as the network's padding lets a shift be seen on it, its sides unequal.

    Unequal sides tell (B, C, H, W) from (B, H, W, C), maps from attention matrices, and rows from columns.
    """
    shift = padded_length(8, padding.model_copy(update={"minimum": 1}))
    height = padded_length(max(48, 2 * shift + 2 * MARGIN), padding)
    width = padded_length(height + 8, padding)
    return TapProbe(probe_image(height, width), shift, (height // 2 - 3, width // 2 + 5))


def candidate_taps(network: nn.Module, lr_BCHW: Tensor, call: NetworkCall = call_plainly) -> list[Tap]:
    """Every layer that runs once and gives a map at LR size before the upsampler, in the order of the forward."""
    trace = trace_forward(network, lr_BCHW, call)
    lr_size = (lr_BCHW.shape[-2], lr_BCHW.shape[-1])
    upsampler = trace.find_upsampler(lr_size)
    if upsampler is None:
        return []
    parts_of_expansion = _small_layers(
        network, {one.path for one in trace.layer_outputs if one.key in upsampler.expansion}
    )
    taps: list[Tap] = []
    for one in trace.layer_outputs:
        if one.path.startswith(parts_of_expansion):
            continue
        layout = layout_of(one.shape, upsampler.size, lr_size)
        if layout is None or one.order > upsampler.order or one.key in upsampler.expansion:
            continue
        channels = one.shape[1] if layout == "BCHW" else one.shape[-1]
        if channels > IMAGE_CHANNELS and trace.runs_once(one):
            taps.append(Tap(module=one.path, channels=channels, layout=layout))
    return taps


def _small_layers(network: nn.Module, paths: set[str]) -> tuple[str, ...]:
    """Prefixes of what lies in these layers, where they are one convolution in two parts (depthwise and pointwise).

    Larger ones stay: a whole body may end in the convolution that makes the channels to shuffle.
    """
    return tuple(
        f"{path}."
        for path in sorted(paths)
        if sum(bool(list(part.parameters(recurse=False))) for part in network.get_submodule(path).modules()) == 2
    )


def layout_of(shape: tuple[int, ...], size: tuple[int, int], lr_size: tuple[int, int]) -> Layout | None:
    """How a tensor of that shape holds a map of `size`, or None. Tokens must be the image's own grid."""
    if len(shape) == 4 and shape[0] == 1 and shape[2:] == size:
        return "BCHW"
    if len(shape) == 4 and shape[0] == 1 and shape[1:3] == size:
        return "BHWC"
    if len(shape) == 3 and shape[0] == 1 and shape[1] == size[0] * size[1] and size == lr_size:
        return "BNC"
    return None


def _moves_with_image(plain_BCHW: Tensor, shifted_BCHW: Tensor, shift: int) -> bool:
    """Whether the map of the shifted image is the map, shifted, rather than the map where it was."""
    height, width = plain_BCHW.shape[-2:]
    rows, columns = slice(MARGIN, height - MARGIN - shift), slice(MARGIN, width - MARGIN - shift)
    still_BCHW = plain_BCHW[..., rows, columns]
    moved_BCHW = shifted_BCHW[..., rows.start + shift : rows.stop + shift, columns.start + shift : columns.stop + shift]
    wrong_BCHW = shifted_BCHW[..., rows, columns]
    error = float((moved_BCHW - still_BCHW).square().mean())
    return error < MOVES_WITH_IMAGE**2 * float((wrong_BCHW - still_BCHW).square().mean())


def _changes_at_spot(plain_BCHW: Tensor, spotted_BCHW: Tensor, spot: tuple[int, int]) -> bool:
    """Whether the features changed most where the image did: a map with a border of its own fails here."""
    change_HW = (spotted_BCHW - plain_BCHW).square().sum((0, 1))
    near_HW = change_HW * (change_HW > 0.25 * change_HW.amax())  # a thin spread would pull the centre
    total = float(near_HW.sum())
    if total == 0:
        return False
    for axis, wanted in enumerate(spot):
        positions = torch.arange(near_HW.shape[axis], device=near_HW.device, dtype=near_HW.dtype)
        centre = float((near_HW.sum(1 - axis) * positions).sum()) / total
        if abs(centre - wanted) > SPOT_ERROR:
            return False
    return True
