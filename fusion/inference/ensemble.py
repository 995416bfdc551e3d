"""Callables for the experts and for their fusion -> one ensemble that inference can run, whatever stands behind it.

Axes: B batch (1 here), E experts in the order of `names`, C channels, K layers, H and W (LR size in lr_BCHW and
features, `scale` times that in images and maps). Images are float32, nominally in [0, 1] and never clamped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from imaging.device import SideBySide
from imaging.dihedral import VARIANTS, transform, undo
from imaging.refusal import Refusal
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

PLAIN, EIGHTFOLD = (0,), tuple(range(VARIANTS))


@dataclass(frozen=True)
class Place:
    """Where a tile lies in its image, in LR pixels: needed by experts whose images are read from files."""

    item: str
    top: int
    left: int
    height: int  # of the whole image
    width: int

    def moved(self, down: int, right: int) -> Place:
        """The place of a part of this tile."""
        return Place(self.item, self.top + down, self.left + right, self.height, self.width)


class Answer(NamedTuple):
    """One expert on one tile: sr (B, 3, sH, sW), features (B, C, H, W) or None."""

    sr_BCHW: Tensor
    feat_BCHW: Tensor | None


class Fused(NamedTuple):
    """The fusion of one tile; gates (B, E, sH, sW) sum to 1 over the experts that answered.

    `contributions` holds what each learned phase added, (B, 3, sH, sW), where there are such phases.
    """

    image_BCHW: Tensor
    gates_BEHW: Tensor
    difficulty_B1HW: Tensor | None
    contributions: Mapping[str, Tensor] | None = None


if TYPE_CHECKING:
    # (tile, its place, the flip or rotation already applied to the tile) -> Answer
    RunExpert = Callable[[Tensor, Place, int], Answer]
    # (tile, answers by expert in order) -> Fused
    Fuse = Callable[[Tensor, Mapping[str, Answer]], Fused]


@dataclass(frozen=True)
class Ensemble:
    """The experts and their fusion as inference uses them.

    `margin` is how many LR pixels of surroundings a tile needs, `multiple` where tiles must begin so that
    attention windows fall as in the whole image. `identity` goes into the record of what made an image.
    """

    experts: Mapping[str, RunExpert]
    fuse: Fuse
    margin: int
    multiple: int
    identity: Mapping[str, Any]
    device: torch.device
    has_difficulty: bool = False
    scale: int = SCALE  # the experts' own: how many times as large images and maps are
    can_probe: bool = True  # False where an expert is a folder of images: it has none for a test tile
    sources: tuple[str, ...] = ()  # by what word or file each expert is opened again
    together: SideBySide = field(default_factory=lambda: SideBySide(1), compare=False)  # how many experts run at once

    @property
    def names(self) -> tuple[str, ...]:
        """The experts in order."""
        return tuple(self.experts)


def plain_mean(_lr_BCHW: Tensor, answers: Mapping[str, Answer]) -> Fused:
    """What stands in for a fusion model: equal weights; of a single expert its own image, bit for bit."""
    images = [answer.sr_BCHW for answer in answers.values()]
    image_BCHW = images[0] if len(images) == 1 else torch.stack(images).mean(0)
    batch, _, height, width = image_BCHW.shape
    return Fused(image_BCHW, image_BCHW.new_full((batch, len(images), height, width), 1 / len(images)), None)


@torch.no_grad()
def run_tile(
    ensemble: Ensemble,
    lr_BCHW: Tensor,
    place: Place,
    *,
    turns: Sequence[int] = PLAIN,
    names: Sequence[str] | None = None,
    maps: bool = False,
) -> Tensor:
    """One tile -> layers (K, sH, sW): the image's three and, with `maps`, those that `layer_names` lists.

    With eight `turns` every layer is the mean over the flips and rotations of the input.
    """
    names = ensemble.names if names is None else tuple(names)
    total: Tensor | None = None
    for turn in turns:
        turned_BCHW = transform(lr_BCHW, turn)
        answers = ensemble.together.run({n: partial(ensemble.experts[n], turned_BCHW, place, turn) for n in names})
        layers_KHW = undo(_layers(ensemble.fuse(turned_BCHW, answers), answers, maps), turn)
        total = layers_KHW if total is None else total + layers_KHW
    assert total is not None
    # A single turn stays undivided, bit for bit what the fusion gave.
    mean_KHW = total / len(turns) if len(turns) > 1 else total
    if not bool(torch.isfinite(mean_KHW).all()):
        cure = "run it with --precision fp32; if it persists, `python -m fusion doctor` examines the model"
        raise Refusal("the fused image holds NaN or infinity", where=place.item, cure=cure)
    return mean_KHW


def layer_names(ensemble: Ensemble) -> list[str]:
    """The layers beyond the image's three: each expert's image (three each), gates, difficulty."""
    images = [f"{name}/{colour}" for name in ensemble.names for colour in "rgb"]
    gates = [f"gate/{name}" for name in ensemble.names]
    return images + gates + (["difficulty"] if ensemble.has_difficulty else [])


def _layers(fused: Fused, answers: Mapping[str, Answer], maps: bool) -> Tensor:
    parts = [fused.image_BCHW[0]]
    if maps:
        parts += [answer.sr_BCHW[0] for answer in answers.values()]
        parts.append(fused.gates_BEHW[0])
        if fused.difficulty_B1HW is not None:
            parts.append(fused.difficulty_B1HW[0])
    return torch.cat(parts)


def in_turn(
    turn: AbstractContextManager[Any], run: Callable[[Tensor, Place], Tensor]
) -> Callable[[Tensor, Place], Tensor]:
    """What runs a tile, for those who let two pipelines take turns on one device."""

    def wait_and_run(lr_BCHW: Tensor, place: Place) -> Tensor:
        with turn:
            return run(lr_BCHW, place)

    return wait_and_run
