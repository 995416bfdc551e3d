"""Task fusion: cached or live expert outputs -> the fused image, compared with the base, the mean and each expert.

Legend: B batch, E experts, C channels, H and W height and width.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from itertools import combinations, cycle
from typing import TYPE_CHECKING, Any

import torch

from fusion.network.interface import TrainingRecord
from fusion.network.network import FusionSR, load_model
from fusion.network.save import save_model
from fusion.network.settings import FusionSettings
from fusion.training.judge.gate import FEWEST_IMAGES, half_of, paired_bootstrap
from fusion.training.judge.scores import ScoreTable
from fusion.training.judge.shrinkage import error_moments_of, fit_shrinkage, gain_db
from fusion.training.sources.sampling import Purpose, draw
from fusion.training.tasks.initial_statistics import initial_statistics_of
from fusion.training.tasks.networks import initial_weights_seed
from fusion.training.tasks.pictures import fusion_pictures
from fusion.training.tasks.task import Prediction
from imaging.refusal import Refusal
from imaging.settings import parse_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from fusion.network.base.blend import BaseRecord
    from fusion.training.judge.gate import GateDecision
    from fusion.training.judge.shrinkage import ErrorMoments
    from fusion.training.settings import TrainSettings
    from fusion.training.sources.batch import FusionSource, TrainBatch

log = logging.getLogger(__name__)
FUSED, BASE, MEAN = "fused", "base", "mean"


class FusionTask:
    """Measures base and features, then trains what the network adds to it."""

    judged = FUSED

    def __init__(self, settings: TrainSettings, source: FusionSource, base: BaseRecord | None = None) -> None:
        """`base` in place of what is measured on the source: used where only a network's speed is measured."""
        if settings.network.name != "fusion":
            raise Refusal(
                f"'{settings.network.name}' is no fusion network", where="network.name", cure="set it to fusion"
            )
        if settings.export.dtype != "fp32":
            raise Refusal("a fusion model is stored as fp32", where="export.dtype", cure="leave it out")
        if settings.data.hold_out < 2:
            what = "one half of the held-out images chooses the weights, the other judges: 1 image is no two halves"
            raise Refusal(what, where="data.hold_out", cure="hold out at least 2 images")
        self._settings = settings
        self.source = source
        judging = settings.data.hold_out // 2
        if judging < FEWEST_IMAGES and base is None:
            log.warning(
                "the gate will have %d held-out images and needs %d: whatever is learned, the base will be shipped; "
                "data.hold_out=%d or more, of at least twice as many images, lets it decide",
                *(judging, FEWEST_IMAGES, 2 * FEWEST_IMAGES),
            )
        slots = [slot.model_dump() for slot in source.slots]
        document = {**settings.network.settings, "experts": slots, "scale": source.scale}
        fusion = parse_settings(FusionSettings, document, where="network.settings")
        statistics = initial_statistics_of(source, settings.run) if base is None else None
        torch.manual_seed(initial_weights_seed(settings.network, settings.seed))
        self.network = FusionSR(fusion, statistics.base if statistics is not None else base)
        if statistics is not None:
            self.network.set_feature_moments(statistics.moments)

    def predict(self, network: nn.Module, batch: TrainBatch, step: int) -> Prediction:
        """The fused image of the experts that are not left out in this step."""
        return Prediction(_run(network, self._drop_experts(batch, step)).image_BCHW.float())

    def validate(self, network: nn.Module) -> ScoreTable:
        """The half of the held-out images on which the best weights are chosen."""
        return self._table(network, self._half(0))

    def pictures(self, network: nn.Module, count: int) -> Mapping[str, Tensor]:
        """Images and maps of the first held-out images, for the log."""
        shown: dict[str, Tensor] = {}
        for batch, _ in zip(self._half(0), range(count), strict=False):
            weights_E = self.network.base.weights(batch.experts)[-1]
            shown |= fusion_pictures(batch, self._fused(network, batch), weights_E)
        return shown

    def export(self, path: Path, weights: Mapping[str, Tensor], provenance: Mapping[str, Any]) -> None:
        """A fusion model file; the gate's decision is in its record."""
        model = FusionSR(self.network.settings, self.network.base.record, self._record(provenance))
        model.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()})
        save_model(model, path)

    def load(self, network: nn.Module, path: Path) -> None:
        """A fusion model file's weights and base; where its experts were trained further since, its weights alone."""
        model = load_model(path)
        assert isinstance(network, FusionSR)
        if model.settings == network.settings:
            network.load_state_dict(model.state_dict())
            return
        if _of_any_weights(model.settings) != _of_any_weights(network.settings):
            raise Refusal("is a model of other settings", where=path, cure="give the settings it was trained with")
        # The base and the features' moments stay those of the cache: they are measured on these experts.
        network.load_state_dict(dict(model.named_parameters()), strict=False)
        log.warning("%s: was trained with other weights of the same experts; its own weights are taken over", path)

    def conclude(self, network: nn.Module, run: Path) -> Mapping[str, Any]:  # noqa: ARG002 (the loop's protocol)
        """Shrinkage from the half of the held-out images that chose the weights; the gate's decision from the other."""
        assert isinstance(network, FusionSR)
        network.record = TrainingRecord()  # shrinkage 1 while it is measured
        known = len(self.source.slots)
        shrinkage = fit_shrinkage(self._error_moments(network, 0, known))
        fewer = tuple(self._shrinkage_with(network, count) for count in range(1, known))
        network.record = TrainingRecord(shrinkage=shrinkage, fewer=fewer)
        log.info("shrinkage %.3f; with 1, 2, ... experts %s", shrinkage, _listed(fewer))
        table = self._table(network, self._half(1))
        log.info("the gate's images\n%s", table.text(FUSED))
        verdict = self._gate(table)
        return {"shrinkage": shrinkage, "fewer": fewer, "gate": asdict(verdict), "gate_scores": table.as_dict()}

    def _gate(self, table: ScoreTable) -> GateDecision:
        """Is the fused image better than the base, image by image?"""
        psnr = {row: table.decibels(row) for row in (FUSED, BASE)}
        verdict = paired_bootstrap(
            psnr[FUSED],
            psnr[BASE],
            {item: self.source.image_of(item) for item in psnr[FUSED]},
            confidence=self._settings.fusion.gate_confidence,
            resamples=self._settings.fusion.gate_resamples,
            seed=self._settings.seed,
        )
        interval = f"{verdict.gain_db:+.4f} dB, {verdict.low_db:+.4f} to {verdict.high_db:+.4f}"
        log.info("gate: %s (%s, %d images)", verdict.reason, interval, verdict.images)
        return verdict

    def _shrinkage_with(self, network: FusionSR, count: int) -> float:
        """The factor with `count` experts; 0 (the output is the base) where it does not improve the gate's images."""
        factor = fit_shrinkage(self._error_moments(network, 0, count))
        return factor if gain_db(list(self._error_moments(network, 1, count)), factor) > 0 else 0.0

    def _error_moments(self, network: FusionSR, half: int, count: int) -> Iterator[ErrorMoments]:
        """Of each image of a half, with `count` experts: the subsets of that size take turns over the images."""
        choices = cycle(combinations(range(len(self.source.slots)), count))
        for batch, kept in zip(self._half(half), choices, strict=False):
            output = self._fused(network, _only(batch, kept))
            yield error_moments_of(output.base_BCHW.cpu(), output.image_BCHW.cpu(), batch.hr_BCHW)

    def _drop_experts(self, batch: TrainBatch, step: int) -> TrainBatch:
        """Leave experts out at random, the same ones in every process; at least one stays."""
        chance = draw(self._settings.seed, Purpose.EXPERT_DROPOUT, step)
        kept = [i for i in range(len(batch.experts)) if chance.random() >= self._settings.fusion.expert_dropout]
        return _only(batch, kept or [int(chance.integers(len(batch.experts)))])

    def _half(self, which: int) -> Iterator[TrainBatch]:
        return half_of(self.source.held_out(), self.source.image_of, which)

    def _table(self, network: nn.Module, batches: Iterator[TrainBatch]) -> ScoreTable:
        table = ScoreTable()
        for batch in batches:
            output, item = self._fused(network, batch), batch.items[0]
            assert batch.sr_BECHW is not None
            table.add(FUSED, item, output.image_BCHW, batch.hr_BCHW)
            table.add(BASE, item, output.base_BCHW, batch.hr_BCHW)
            table.add(MEAN, item, batch.sr_BECHW.mean(1), batch.hr_BCHW)
            for index, name in enumerate(batch.experts):
                table.add(name, item, batch.sr_BECHW[:, index], batch.hr_BCHW)
        return table

    def _fused(self, network: nn.Module, batch: TrainBatch) -> Any:
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        with torch.no_grad():
            return _run(network, _moved(batch, device))

    def _record(self, provenance: Mapping[str, Any]) -> TrainingRecord:
        gate = provenance.get("gate")
        if gate is None:
            return TrainingRecord(steps=int(provenance["step"]), details=dict(provenance))
        return TrainingRecord(
            verdict="fused" if gate["passed"] else "base",
            shrinkage=provenance["shrinkage"],
            fewer=provenance["fewer"],
            steps=int(provenance["step"]),
            gain_db=gate["gain_db"],
            gain_low_db=gate["low_db"],
            gain_high_db=gate["high_db"],
            held_out_items=gate["images"],
            data=self.source.fingerprint,
            details=dict(provenance),
            expert_specs=dict(self.source.expert_specs),
        )


def _only(batch: TrainBatch, kept: Sequence[int]) -> TrainBatch:
    """The batch with these of its experts."""
    if len(kept) == len(batch.experts):
        return batch
    assert batch.sr_BECHW is not None
    names = tuple(batch.experts[index] for index in kept)
    feats = {name: feat_BCHW for name, feat_BCHW in batch.feats.items() if name in names}
    return replace(batch, sr_BECHW=batch.sr_BECHW[:, list(kept)], feats=feats, experts=names)


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.3f}" for number in numbers) or "-"


def _run(network: nn.Module, batch: TrainBatch) -> Any:
    return network(batch.lr_BCHW, batch.sr_BECHW, batch.feats, batch.experts)


def _moved(batch: TrainBatch, device: torch.device) -> TrainBatch:
    assert batch.sr_BECHW is not None
    return replace(
        batch,
        lr_BCHW=batch.lr_BCHW.to(device),
        sr_BECHW=batch.sr_BECHW.to(device),
        feats={name: feat_BCHW.to(device) for name, feat_BCHW in batch.feats.items()},
    )


def _of_any_weights(settings: FusionSettings) -> FusionSettings:
    """The settings without the experts' hashes."""
    experts = tuple(slot.model_copy(update={"sha256": None}) for slot in settings.experts)
    return settings.model_copy(update={"experts": experts})
