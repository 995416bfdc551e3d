"""Task refiner: LR image, fused image and noise -> a crisp image, in one step; judged by LPIPS on held-out images.

What a loss cannot see in one image the task reports itself, under names that stages weigh like losses:

- `flow`: squared error of the prediction at a random time of the flow from noise to the residual (a stage of its own).
- `texture`: LPIPS to the truth, less a share of LPIPS between two seeds of one crop. LPIPS alone is least for the mean
  in its features; what its spread costs there is given back, so that seeds may differ. The images are shifted by a
  random 0 to 3 pixels: AlexNet steps by four, as this network does, and on one grid a lattice passes for texture.
- `mean`: the product of two seeds' errors, whose expectation is the squared error of the mean over seeds: it draws the
  mean to the truth as the fused image has it, and lets single images pay nothing for their texture.

Legend: B batch (samples 2n and 2n + 1 are one crop), C channels, H and W height and width.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from fusion.refinement.native.consistency import unseen
from fusion.refinement.native.flatness import allowance
from fusion.refinement.native.network import ARCHITECTURE, PACKED, NativeRefinerNetwork
from fusion.refinement.native.noise import noise_at
from fusion.training.judge.scores import ScoreTable
from fusion.training.loop.export import export_weights, load_exported
from fusion.training.losses.curriculum import weights_at
from fusion.training.losses.perceptual import LpipsFeatures
from fusion.training.sources.fused import FUSED, SEEDS, FusedSource
from fusion.training.sources.sampling import seed_torch
from fusion.training.tasks.networks import initial_weights_seed
from fusion.training.tasks.task import Prediction
from imaging.metrics.perceptual import find_trunk, lpips_distance
from imaging.refusal import Refusal
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from fusion.training.settings import TrainSettings
    from fusion.training.sources.batch import TrainBatch

log = logging.getLogger(__name__)

REFINED, HALF = "refined", "refined by half"
_OFF = SCALE // 2  # pixels cut off above and left
NAME = "refiner"  # network.name
_LEAST_TIME = 0.2  # of the flow: earlier points hold the truth almost unchanged and would outweigh all others


@dataclass
class PerceptualTable(ScoreTable):
    """Beside PSNR and SSIM, LPIPS off the grid of LR pixels; at full and half strength together it decides."""

    lpips: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, contender: str, item: str, sr_BCHW: Tensor, hr_BCHW: Tensor) -> None:
        """Score one image of one contender."""
        super().add(contender, item, sr_BCHW, hr_BCHW)
        shifted = (one[..., _OFF:, _OFF:] for one in (sr_BCHW.clamp(0, 1), hr_BCHW))
        self.lpips.setdefault(contender, {})[item] = float(lpips_distance(*shifted))

    def merit(self, contender: str) -> float:
        """Higher is better. A refiner is as good as it is at both strengths: the strongest grain is best at half."""
        judged = (REFINED, HALF) if contender == REFINED else (contender,)
        return -sum(map(self._mean, judged)) / len(judged)

    def _mean(self, contender: str) -> float:
        scores = [self.lpips[contender][item] for item in self.scored(contender)]
        return sum(scores) / len(scores)

    def text(self, judged: str) -> str:
        """The table, and LPIPS below it."""
        return "\n".join([super().text(judged), *(f"  LPIPS {name}: {self._mean(name):.4f}" for name in self.lpips)])

    def as_dict(self) -> dict[str, dict[str, float | None]]:
        """Means only, for JSON."""
        return {name: {**scores, "lpips": round(self._mean(name), 5)} for name, scores in super().as_dict().items()}


class RefinerTask:
    """Trains the refiner that `infer.py --refine native` runs."""

    judged = REFINED

    def __init__(self, settings: TrainSettings, rank: int = 0, world: int = 1) -> None:
        if settings.network.name != NAME:
            raise Refusal(f"task refiner trains no '{settings.network.name}'", where="network.name", cure=f"set {NAME}")
        self._settings = settings
        seed_torch(initial_weights_seed(settings.network, settings.seed))
        self.network = NativeRefinerNetwork(**settings.network.settings)
        self.source = FusedSource(settings, rank, world)
        self._lpips = LpipsFeatures(settings.weights.get("lpips") or find_trunk())

    def predict(self, network: nn.Module, batch: TrainBatch, step: int) -> Prediction:
        """Two seeds of each crop, or in a stage of the flow points of it."""
        fused_BCHW, lr_BCHW, hr_BCHW = _fused(batch), batch.lr_BCHW, batch.hr_BCHW
        noise_BCHW = torch.randn(len(lr_BCHW), PACKED, *lr_BCHW.shape[-2:], device=lr_BCHW.device)
        if "flow" in weights_at(step, self._settings.steps, self._settings.stages):
            return self._flow(network, batch, noise_BCHW)
        image_BCHW = fused_BCHW + unseen(network(fused_BCHW, lr_BCHW, noise_BCHW).float() * allowance(fused_BCHW))
        first, second = image_BCHW[0::SEEDS], image_BCHW[1::SEEDS]
        truth = hr_BCHW[0::SEEDS]
        down, right = (int(torch.randint(SCALE, ())) for _ in range(2))
        near, apart = self._lpips(*(one[..., down:, right:] for one in (first, second, truth)))
        return Prediction(
            image_BCHW,
            terms={
                "texture": near - self._settings.refiner.diversity * apart / 2,
                "mean": ((first - truth) * (second - truth)).mean(),
            },
        )

    def _flow(self, network: nn.Module, batch: TrainBatch, noise_BCHW: Tensor) -> Prediction:
        fused_BCHW, spread = _fused(batch), self._settings.network.settings.get("spread", 0.1)
        residual_BCHW = (batch.hr_BCHW - fused_BCHW) / spread
        time_B = _LEAST_TIME + (1 - _LEAST_TIME) * torch.rand(len(noise_BCHW), device=noise_BCHW.device)
        time_B111 = time_B[:, None, None, None]
        point_BCHW = torch.lerp(F.pixel_unshuffle(residual_BCHW, SCALE), noise_BCHW, time_B111)
        ends_BCHW = unseen(network(fused_BCHW, batch.lr_BCHW, point_BCHW, time_B).float())
        # As an error of the velocity (noise less residual), which a flow is trained on.
        error_BCHW = (ends_BCHW / spread - residual_BCHW) / time_B111
        return Prediction(fused_BCHW + ends_BCHW, terms={"flow": error_BCHW.square().mean()})

    def validate(self, network: nn.Module) -> ScoreTable:
        """Held-out images, whole: refined, by half, and fused."""
        table = PerceptualTable()
        for batch in self.source.held_out():
            item, hr_BCHW, fused_BCHW = batch.items[0], batch.hr_BCHW, _fused(batch)
            refined_BCHW = self._run(network, batch)
            table.add(REFINED, item, refined_BCHW, hr_BCHW)
            table.add(HALF, item, torch.lerp(fused_BCHW, refined_BCHW, 0.5), hr_BCHW)
            table.add(FUSED, item, fused_BCHW, hr_BCHW)
        return table

    def pictures(self, network: nn.Module, count: int) -> Mapping[str, Tensor]:
        """The first held-out images, refined."""
        batches = zip(self.source.held_out(), range(count), strict=False)
        return {f"{batch.items[0]}/{REFINED}": self._run(network, batch)[0].clamp(0, 1) for batch, _ in batches}

    def export(self, path: Path, weights: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """A file that `infer.py --refine native` runs."""
        export_weights(
            path,
            weights,
            architecture=ARCHITECTURE,
            hyperparameters=self._settings.network.settings,
            provenance=provenance,
            dtype=self._settings.export.dtype,
        )

    def load(self, network: nn.Module, path: Path) -> None:
        """Strictly."""
        load_exported(network, path)

    def conclude(self, network: nn.Module, run: Path) -> Mapping[str, Any]:  # noqa: ARG002 (the loop's protocol)
        """Which ensemble's images it learned from; it replaces nothing, so there is no gate."""
        return {"teacher": self.source.teacher}

    def _run(self, network: nn.Module, batch: TrainBatch) -> Tensor:
        """One whole image, seed 0, its sides cut to what the network's levels divide."""
        device = next(network.parameters()).device
        fused_BCHW, lr_BCHW = _fused(batch), batch.lr_BCHW
        height, width = lr_BCHW.shape[-2:]
        down, right = (-side % self.network.multiple for side in (height, width))
        lr_BCHW = F.pad(lr_BCHW, (0, right, 0, down), mode="replicate")
        padded_BCHW = F.pad(fused_BCHW, (0, SCALE * right, 0, SCALE * down), mode="replicate")
        noise_BCHW = noise_at(0, 0, 0, height + down, width + right)[None]
        with torch.no_grad():
            change_BCHW = network(*(one.to(device) for one in (padded_BCHW, lr_BCHW, noise_BCHW)))
        change_BCHW = change_BCHW.float().cpu()[..., : SCALE * height, : SCALE * width]
        return fused_BCHW + unseen(change_BCHW * allowance(fused_BCHW))


def _fused(batch: TrainBatch) -> Tensor:
    assert batch.sr_BECHW is not None
    return batch.sr_BECHW[:, 0]
