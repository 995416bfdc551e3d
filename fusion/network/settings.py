"""YAML or a model file's header -> the frozen description of one fusion network: its experts and its phases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from imaging.refusal import Refusal, nearest
from imaging.scale import SCALE, SCALES
from imaging.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping


class ExpertSlot(Settings):
    """One expert the network knows: its name, its feature channels (0: images only), the weights it was trained on."""

    name: str = Field(min_length=1)
    channels: int = Field(ge=0)
    sha256: str | None = None


REFERENCE_EXPERTS = (
    ExpertSlot(name="hat-l", channels=180),
    ExpertSlot(name="drct-l", channels=180),
    ExpertSlot(name="grl-b", channels=180),
    ExpertSlot(name="edsr-l", channels=256),
)


class BandsSettings(Settings):
    """Phase 2: nine bands of the LR image. Temperatures are the steepness of the soft masks over [0, 1]."""

    enabled: bool = True
    wavelet: Literal["haar", "db4"] = "haar"
    dct_temperature: float = Field(default=50.0, gt=0)
    ring_temperature: float = Field(default=50.0, gt=0)


class CrossBandSettings(Settings):
    """Phase 3: tokens of `width`, attention inside `inner` channels, LKA block on the fused map."""

    enabled: bool = True
    width: int = Field(default=64, ge=1)
    inner: int = Field(default=16, ge=1)
    heads: int = Field(default=4, ge=1)
    expansion: int = Field(default=4, ge=1)


class CollaborationSettings(Settings):
    """Phase 4: tokens of `width` per expert, attention inside `inner` channels, LKA block on the consensus."""

    enabled: bool = True
    width: int = Field(default=128, ge=1)
    inner: int = Field(default=32, ge=1)
    heads: int = Field(default=8, ge=1)
    expansion: int = Field(default=2, ge=1)
    strength: float = Field(default=0.2, gt=0)


class HierarchySettings(Settings):
    """Phase 5: `blocks` residual blocks of `width` at each of three scales; the blend starts at 70/30."""

    enabled: bool = True
    width: int = Field(default=32, ge=1)
    blocks: int = Field(default=1, ge=1)
    blend: float = Field(default=0.7, gt=0, lt=1)


class GatingSettings(Settings):
    """Phase 6: difficulty, and weights per pixel that move around the base."""

    enabled: bool = True
    width: int = Field(default=32, ge=1)
    temperature: float = Field(default=1.0, gt=0)


class RefineSettings(Settings):
    """Phase 7a: six layers of `width` and `blocks` residual blocks at LR size; `scale` is where the learned residual
    scale starts. `direct`: it also reads every expert's difference and features itself, not only phases 2 to 6."""

    enabled: bool = True
    width: int = Field(default=96, ge=1)
    blocks: int = Field(default=4, ge=0)
    direct: bool = True
    scale: float = Field(default=0.5, gt=0)


class EdgesSettings(Settings):
    """Phase 7b: `levels` Laplacian levels, each with its small network; `strength` is where the learned one starts."""

    enabled: bool = True
    width: int = Field(default=32, ge=1)
    levels: int = Field(default=3, ge=1)
    strength: float = Field(default=0.15, gt=0)


class ConsistencySettings(Settings):
    """After phase 7: the output's antialiased bicubic downscale is brought within `tolerance` of the input."""

    enabled: bool = False
    tolerance: float = Field(default=0.5 / 255, ge=0)


class EnvelopeSettings(Settings):
    """After phase 7: no pixel may leave the range spanned by the experts and the base by more than `margin`."""

    enabled: bool = False
    margin: float = Field(default=0.0, ge=0)


class FusionSettings(Settings):
    """The whole network. A phase that is off has no parameters; neither has one whose result no other phase reads.

    On by default are those worth their cost (docs/results/fusion-experiments.md); naming another switches it on.
    `features`: of all experts (`taps`), of none, or of those named; the others give their images alone.
    """

    experts: tuple[ExpertSlot, ...] = Field(default=REFERENCE_EXPERTS, min_length=1)
    scale: int = Field(default=SCALE, ge=min(SCALES), le=max(SCALES))  # the experts' own
    features: Literal["taps", "none"] | tuple[str, ...] = Field(default="taps", min_length=1)
    context_width: int = Field(default=64, ge=1)
    bands: BandsSettings = BandsSettings(enabled=False)
    cross_band: CrossBandSettings = CrossBandSettings(enabled=False)
    collaboration: CollaborationSettings = CollaborationSettings(enabled=False)
    hierarchy: HierarchySettings = HierarchySettings(enabled=False)
    gating: GatingSettings = GatingSettings()
    refine: RefineSettings = RefineSettings()
    edges: EdgesSettings = EdgesSettings(enabled=False)
    consistency: ConsistencySettings = ConsistencySettings()
    envelope: EnvelopeSettings = EnvelopeSettings()

    @model_serializer(mode="wrap")
    def leave_out_the_usual_scale(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As pydantic writes it, without a scale of 4: models of before have no such key, and their hashes stay."""
        return {key: value for key, value in write(self).items() if key != "scale" or value != SCALE}

    @model_validator(mode="after")
    def _check(self) -> FusionSettings:
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"an expert is named twice: {', '.join(self.names)}")
        if isinstance(self.features, tuple) and "experts" in self.model_fields_set:  # else they are not known yet
            for name in self.features:
                self.index_of(name)
        for phase in (self.cross_band, self.collaboration):
            if phase.inner % phase.heads:
                raise ValueError(f"inner width {phase.inner} is not a multiple of {phase.heads} heads")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The experts' names in the network's own order."""
        return tuple(slot.name for slot in self.experts)

    @property
    def subpixels(self) -> int:
        """S: of a high-resolution image, under one LR pixel."""
        return self.scale**2

    @property
    def unshuffled(self) -> int:
        """Q: channels of an image that is unshuffled to LR size."""
        return 3 * self.subpixels

    @property
    def guided(self) -> bool:
        """Whether a phase is on that reads the guidance of phases 2 and 3."""
        return self.hierarchy.enabled or self.gating.enabled or self.refine.enabled

    @property
    def has_bands(self) -> bool:
        """Phase 2 is built: it is on, and another phase reads its result."""
        return self.bands.enabled and self.guided

    @property
    def has_cross_band(self) -> bool:
        """Phase 3 is built: switched on, and there are bands to attend over."""
        return self.cross_band.enabled and self.has_bands

    @property
    def reads_features(self) -> bool:
        """Of any expert."""
        return self.features != "none"

    def channels_of(self, name: str) -> int:
        """Feature channels that the network reads from an expert; 0 where it is to do without them."""
        slot = self.experts[self.index_of(name)]
        read = name in self.features if isinstance(self.features, tuple) else self.features == "taps"
        return slot.channels if read else 0

    def index_of(self, name: str) -> int:
        """An expert's place in the network's order."""
        if name not in self.names:
            raise Refusal(f"expert '{name}' is unknown to this model", where="experts", cure=nearest(name, self.names))
        return self.names.index(name)

    def check_weights(self, found: Mapping[str, str]) -> None:
        """Refuse experts (name -> sha256 of their weights) other than those the network was trained on."""
        for name, sha256 in found.items():
            expected = self.experts[self.index_of(name)].sha256
            if expected is not None and sha256 != expected:
                raise Refusal(
                    f"weights {sha256[:12]} are not those this model was trained on ({expected[:12]})",
                    where=f"expert {name}",
                    cure="use the weights named in the model, or train a fusion model for these",
                )


def every_phase() -> FusionSettings:
    """All phases of the original layout on, for the reference experts: configs/fusion_x4_full.yaml."""
    return FusionSettings(
        bands=BandsSettings(),
        cross_band=CrossBandSettings(),
        collaboration=CollaborationSettings(),
        hierarchy=HierarchySettings(),
        refine=RefineSettings(width=128, blocks=0, direct=False, scale=0.01),
        edges=EdgesSettings(),
    )
