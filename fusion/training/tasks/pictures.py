"""A held-out image, its experts' images and the network's output -> images for the log.

Whole images as they are stored: never flipped, cut or otherwise augmented. Legend: B batch (1), E experts, C channels,
H and W height and width of the high-resolution image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fusion.network.interface import FusionOutput
    from fusion.training.sources.batch import TrainBatch

# Training changes the image by a grey level or two and gates by hundredths: invisible unless amplified.
CHANGE_GAIN, GATE_GAIN = 16, 8


def fusion_pictures(batch: TrainBatch, output: FusionOutput, base_weights_E: Sequence[float]) -> dict[str, Tensor]:
    """Name -> (3,H,W) in [0, 1]: truth, experts, base, fused, and their difference; gates and difficulty."""
    assert batch.sr_BECHW is not None
    item, base_CHW, fused_CHW = batch.items[0], output.base_BCHW[0].cpu(), output.image_BCHW[0].cpu()
    shown = {"truth": batch.hr_BCHW[0], "base": base_CHW, "fused": fused_CHW}
    shown[f"fused minus base, x{CHANGE_GAIN}"] = 0.5 + CHANGE_GAIN * (fused_CHW - base_CHW)
    for index, (name, weight) in enumerate(zip(batch.experts, base_weights_E, strict=True)):
        gate_HW = output.gates_BEHW[0, index].cpu()
        shown[f"expert {name}"] = batch.sr_BECHW[0, index]
        shown[f"gate {name}"] = signed(gate_HW)
        shown[f"gate {name} minus its weight in the base, x{GATE_GAIN}"] = _grey(0.5 + GATE_GAIN * (gate_HW - weight))
    if output.difficulty_B1HW is not None:
        shown["difficulty"] = _grey(output.difficulty_B1HW[0, 0].cpu())
    return {f"{item}/{name}": image_CHW.float().clamp(0, 1) for name, image_CHW in shown.items()}


def signed(weight_HW: Tensor) -> Tensor:
    """A weight from black (0) to white (1); below 0 it is red, which a clamp to black would hide."""
    return torch.stack([weight_HW.abs(), weight_HW, weight_HW]).clamp(0, 1)


def _grey(map_HW: Tensor) -> Tensor:
    return map_HW.expand(3, -1, -1)
