"""What goes into the fusion network, what comes out, and the training record kept in its file.

Axes: B batch, E experts in the order of the call, C channels or colours, H and W of the LR image (times the experts'
scale for images at high resolution).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import AliasChoices, Field

from imaging.refusal import Refusal
from imaging.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from fusion.network.settings import FusionSettings


class TrainingRecord(Settings):
    """Where the weights come from, and the verdict of the do-no-harm gate.

    `verdict` is "base" where the fused image did not beat the base on held-out items: such a model gives the base.
    `shrinkage` is the factor in [0, 1] that every contribution is multiplied by when all experts are present, fitted on
    held-out items; `fewer[n - 1]` is the factor for n of them, 0 where no factor improved the image. `gain_db` is fused
    minus base on other held-out items, with the ends of its bootstrap interval. `expert_specs`: by name, how the
    experts' room opens each network again; files of before have none.
    """

    verdict: Literal["untrained", "fused", "base"] = "untrained"
    # Files written before 0.2.0 call it `belief`; new ones hold `shrinkage` alone.
    shrinkage: float = Field(default=1.0, validation_alias=AliasChoices("shrinkage", "belief"), ge=0, le=1)
    fewer: tuple[float, ...] = ()
    steps: int = 0
    gain_db: float | None = None
    gain_low_db: float | None = None
    gain_high_db: float | None = None
    held_out_items: int = 0
    data: str = ""
    details: dict[str, Any] = {}
    expert_specs: dict[str, dict[str, Any]] = {}

    def shrinkage_for(self, present: int, known: int) -> float:
        """The factor for `present` of the `known` experts of the model."""
        return self.fewer[present - 1] if present < known and self.fewer else self.shrinkage


class FusionOutput(NamedTuple):
    """A batch of fused images, nominally in [0, 1] and never clamped.

    image_BCHW is base_BCHW plus the sum of `contributions`, phase by phase in the order of the dictionary.
    Each contribution has mean zero over every LR pixel's square: whatever is learned, brightness is the base's.
    gates_BEHW are the experts' weights at each pixel: they sum to 1 and start at the base's own (where the base weighs
    frequency bands apart, at its weights for the finest band; phase 5's weights of three scales enter as their mean).
    difficulty_B1HW is in [0, 1]; None when phase 6 is off.
    """

    image_BCHW: Tensor
    base_BCHW: Tensor
    gates_BEHW: Tensor
    difficulty_B1HW: Tensor | None
    contributions: dict[str, Tensor]


SMALLEST = 8  # LR pixels a side


def check_inputs(
    settings: FusionSettings,
    lr_BCHW: Tensor,
    sr_BECHW: Tensor,
    feats: Mapping[str, Tensor | None] | None,
    experts: Sequence[str] | None,
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """The experts' names, and the features of those present that have any."""
    names = tuple(settings.names if experts is None else experts)
    if not names or len(set(names)) != len(names):
        raise Refusal(f"experts {names} must be named, each once", where="fusion", cure="give those that ran")
    for name in names:
        settings.index_of(name)
    _check_images(lr_BCHW, sr_BECHW, names, settings.scale)
    present: dict[str, Tensor] = {}
    for name in names:
        feat = feats.get(name) if feats is not None else None
        if feat is None or not settings.channels_of(name):
            continue
        expected = (lr_BCHW.shape[0], settings.channels_of(name), *lr_BCHW.shape[-2:])
        if tuple(feat.shape) != expected:
            raise _wrong(f"features are {tuple(feat.shape)}, not {expected}", f"expert {name}")
        present[name] = feat
    return names, present


def _check_images(lr_BCHW: Tensor, sr_BECHW: Tensor, names: tuple[str, ...], scale: int) -> None:
    if lr_BCHW.ndim != 4 or lr_BCHW.shape[1] != 3 or not lr_BCHW.is_floating_point():
        raise _wrong(f"the LR image is {lr_BCHW.dtype} {tuple(lr_BCHW.shape)}, not floats (B, 3, H, W)", "fusion")
    batch, _, height, width = lr_BCHW.shape
    if min(height, width) < SMALLEST:
        raise _wrong(f"the LR image is {height}x{width}, smaller than {SMALLEST}x{SMALLEST}", "fusion")
    expected = (batch, len(names), 3, scale * height, scale * width)
    if tuple(sr_BECHW.shape) != expected:
        raise _wrong(f"the experts' images are {tuple(sr_BECHW.shape)}, not {expected}", "fusion")


def _wrong(what: str, where: str) -> Refusal:
    return Refusal(what, where=where, cure="give each expert's output on this very LR image")
