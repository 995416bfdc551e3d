"""LR image, experts' images and features -> one better image: the base plus the contributions of seven learned phases.

Axes: B batch, E experts present in the order of the call, C = 3 colours, Q unshuffled channels, S sub-pixels,
D a phase's width; H and W of the LR image (times the experts' scale for sr_BECHW and the output). Images are floats in
[0, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from fusion.network.bands.bands import FrequencyBands
from fusion.network.bands.cross_band import CrossBandAttention
from fusion.network.base.blend import BaseBlend, BaseRecord
from fusion.network.collaboration import CollaborativeFeatures
from fusion.network.consistency import Envelope, LRConsistency
from fusion.network.edges import LaplacianEdges
from fusion.network.evidence import DIFFERENCE_GAIN, Context, Evidence, gather
from fusion.network.gating import DynamicGates
from fusion.network.hierarchy import HierarchicalFusion
from fusion.network.hub import HubModel
from fusion.network.interface import FusionOutput, TrainingRecord, check_inputs
from fusion.network.parts import weigh, zero_mean_per_pixel
from fusion.network.refine import Refinement
from fusion.network.save import load_as
from fusion.network.settings import FusionSettings
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from fusion.network.evidence import Collaboration


class FusionSR(nn.Module, HubModel):
    """The fusion network. Before training its output is the base, bit for bit; a phase that is off does not exist."""

    def __init__(
        self,
        settings: FusionSettings | None = None,
        base: BaseRecord | None = None,
        record: TrainingRecord | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings = settings or FusionSettings()
        self.record = record or TrainingRecord()
        self.base = BaseBlend(_for_experts(base or BaseRecord.mean_of(settings.names), settings), settings.scale)
        self.bands = FrequencyBands(settings.bands) if settings.has_bands else None
        self.cross_band = CrossBandAttention(settings.cross_band) if settings.has_cross_band else None
        self.collaboration = CollaborativeFeatures(settings) if settings.collaboration.enabled else None
        self.context = Context(settings) if settings.guided else None
        self.hierarchy = HierarchicalFusion(settings) if settings.hierarchy.enabled else None
        self.gating = DynamicGates(settings) if settings.gating.enabled else None
        self.refine = Refinement(settings) if settings.refine.enabled else None
        self.edges = LaplacianEdges(settings) if settings.edges.enabled else None
        self.envelope = Envelope(settings.envelope) if settings.envelope.enabled else None
        self.consistency = LRConsistency(settings) if settings.consistency.enabled else None

    def set_base(self, base: BaseRecord) -> None:
        """Adopt a fitted base for the same experts."""
        self.base.set_record(_for_experts(base, self.settings))

    def set_feature_moments(self, moments: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Adopt the mean and spread of the experts' feature channels, by name."""
        if self.refine is not None and self.refine.features is not None:
            self.refine.features.set_moments(moments)

    def forward(
        self,
        lr_BCHW: Tensor,
        sr_BECHW: Tensor,
        feats: Mapping[str, Tensor | None] | None = None,
        experts: Sequence[str] | None = None,
    ) -> FusionOutput:
        """LR batch, experts' images, features by name, names present -> FusionOutput, alike in training and evaluation.

        `experts` names the E axis of sr_BECHW: any non-empty subset of those the model knows, all of them by default.
        """
        experts, present = check_inputs(self.settings, lr_BCHW, sr_BECHW, feats, experts)
        sr_BECHW = sr_BECHW.clamp(0, 1)  # as in 8-bit caches: running experts overshoot at sharp edges
        base_BCHW = self.base(lr_BCHW, sr_BECHW, experts)
        if self.record.verdict == "base":
            return self._finish(lr_BCHW, sr_BECHW, base_BCHW, experts, None, None, {})
        indices = tuple(self.settings.index_of(name) for name in experts)
        evidence = gather(lr_BCHW, sr_BECHW, base_BCHW, indices, self.settings.scale)
        bands = self.bands(lr_BCHW) if self.bands is not None else None
        routing_BDHW = self.cross_band(bands.bands_BKCHW) if self.cross_band is not None and bands is not None else None
        shared = self.collaboration(evidence, present) if self.collaboration is not None else None
        context_BDHW = self.context(evidence, bands, routing_BDHW, shared) if self.context is not None else None
        weights, parts, difficulty_B1HW = self._reweigh(evidence, shared, context_BDHW)
        parts |= self._restore(evidence, parts, context_BDHW, present)
        weights, parts = self._shrink(weights, parts, len(experts))
        return self._finish(lr_BCHW, sr_BECHW, base_BCHW, experts, weights, difficulty_B1HW, parts)

    def _reweigh(
        self, evidence: Evidence, shared: Collaboration | None, context_BDHW: Tensor | None
    ) -> tuple[Tensor | None, dict[str, Tensor], Tensor | None]:
        """Phases 4 to 6, which move weight between experts: total change of the weights, contributions, difficulty."""
        changes: list[Tensor] = []
        parts: dict[str, Tensor] = {}
        difficulty_B1HW = None
        if shared is not None:
            changes.append(shared.delta_BESHW)
            parts["collaboration"] = weigh(shared.delta_BESHW, evidence.diff_BEQHW)
        if self.hierarchy is not None:
            parts["hierarchy"], delta_BESHW = self.hierarchy(evidence, context_BDHW)
            changes.append(delta_BESHW)
        if self.gating is not None:
            tokens_BEDHW = shared.tokens_BEDHW if shared is not None else None
            delta_BESHW, difficulty_B1HW = self.gating(evidence, context_BDHW, tokens_BEDHW)
            changes.append(delta_BESHW)
            parts["gating"] = weigh(delta_BESHW, evidence.diff_BEQHW)
        parts = {phase: zero_mean_per_pixel(part) for phase, part in parts.items()}
        return (sum(changes[1:], changes[0]) if changes else None), parts, difficulty_B1HW

    def _restore(
        self,
        evidence: Evidence,
        parts: dict[str, Tensor],
        context_BDHW: Tensor | None,
        present: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Phases 7a and 7b, which add what no weighing of experts can."""
        change_BQHW = sum(parts.values(), evidence.base_BQHW.new_zeros(()))
        added: dict[str, Tensor] = {}
        if self.refine is not None and context_BDHW is not None:
            seen_BQHW = (change_BQHW * DIFFERENCE_GAIN).expand_as(evidence.base_BQHW)
            added["refine"] = self.refine(evidence, seen_BQHW, context_BDHW, present)
            change_BQHW = change_BQHW + added["refine"]
        if self.edges is not None:
            added["edges"] = self.edges(F.pixel_shuffle(evidence.base_BQHW + change_BQHW, self.settings.scale))
        return added

    def _shrink(
        self, change_BESHW: Tensor | None, parts: dict[str, Tensor], present: int
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Change of weights and contributions times the shrinkage factor for as many experts as are present."""
        factor = self.record.shrinkage_for(present, len(self.settings.experts))
        if factor == 1:
            return change_BESHW, parts
        scaled = {phase: factor * part for phase, part in parts.items()}
        return None if change_BESHW is None else factor * change_BESHW, scaled

    def _finish(
        self,
        lr_BCHW: Tensor,
        sr_BECHW: Tensor,
        base_BCHW: Tensor,
        experts: tuple[str, ...],
        change_BESHW: Tensor | None,
        difficulty_B1HW: Tensor | None,
        parts: dict[str, Tensor],
    ) -> FusionOutput:
        """Base plus contributions, the hard constraints where they are on, and the maps at the image's size."""
        contributions = {phase: F.pixel_shuffle(part, self.settings.scale) for phase, part in parts.items()}
        image_BCHW = sum(contributions.values(), base_BCHW)
        image_BCHW = self.envelope(image_BCHW, sr_BECHW, base_BCHW) if self.envelope is not None else image_BCHW
        image_BCHW = self.consistency(image_BCHW, lr_BCHW) if self.consistency is not None else image_BCHW
        gates_BEHW = base_BCHW.new_tensor(self.base.weights(experts)[-1])[None, :, None, None]
        if change_BESHW is not None:
            change_BXHW = change_BESHW.to(base_BCHW.dtype).flatten(1, 2)
            gates_BEHW = gates_BEHW + F.pixel_shuffle(change_BXHW, self.settings.scale)
        size = base_BCHW.shape[-2:]
        gates_BEHW = gates_BEHW.expand(base_BCHW.shape[0], -1, *size)
        if difficulty_B1HW is not None:
            difficulty_B1HW = F.interpolate(difficulty_B1HW.to(base_BCHW.dtype), size=size, mode="bilinear")
        return FusionOutput(image_BCHW, base_BCHW, gates_BEHW, difficulty_B1HW, contributions)

    def parameters_per_phase(self) -> dict[str, int]:
        """Phase -> its parameters, in the order of the forward pass; phases that are off are left out."""
        return {name: sum(p.numel() for p in module.parameters()) for name, module in self.named_children()}


def _for_experts(base: BaseRecord, settings: FusionSettings) -> BaseRecord:
    """Refuse a base that was fitted for other experts."""
    if sorted(base.experts) != sorted(settings.names):
        raise Refusal(
            f"the base was fitted for {', '.join(base.experts)}, the model has {', '.join(settings.names)}",
            where="base",
            cure="fit the base on a cache of the model's experts",
        )
    return base


def load_model(path: Path) -> FusionSR:
    """A file, or a folder with `model.safetensors` -> the model in eval mode. An invalid file is refused."""
    return load_as(FusionSR, path)
