"""All settings of a training run, as frozen types; the YAML files in configs/ are read into `TrainSettings`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from cache_tools.format.location import Location
from imaging.degrade import DegradeSettings
from imaging.paths import find_shipped
from imaging.refusal import Refusal
from imaging.settings import Settings, read_yaml

Share = float  # of the run or of the samples, in [0, 1]

FEWEST_IMAGES = 5  # that a gate takes: of one image, any gain would have an interval of zero width


def hold_out_cure(count: int) -> str:
    """A number of images to hold out that `count` of them allow: a fifth, or what the gate of a fusion needs."""
    if count < 4:
        return "use at least 4 images"
    enough = 2 * FEWEST_IMAGES  # one half chooses the weights, the other judges
    if count < 2 * enough:
        return f"for example data.hold_out={max(2, count // 5)}; no fusion passes its gate on fewer than {2 * enough}"
    return f"for example data.hold_out={max(enough, count // 5)}"


class DataSettings(Settings):
    """Images or cache, and how crops are cut. `patch` counts LR pixels, `batch` is global: over all processes.

    LR images are `scale` times smaller. `degrade` says how they are made of `hr`: by bicubic alone where it is left
    out, else as these settings, or the YAML file named in their place, have it.
    """

    hr: tuple[Path, ...] = ()
    cache: Location | None = None
    experts: tuple[str, ...] = ()
    catalog: Path | None = None  # a YAML file with further experts, as every command's --catalog
    scale: Literal[2, 3, 4] = 4
    degrade: DegradeSettings | None = None
    patch: PositiveInt = 32
    batch: PositiveInt = 16
    workers: int = Field(default=0, ge=0)
    hold_out: PositiveInt = 8
    hold_out_seed: int | None = Field(default=None, ge=0)  # None: of a cache the run's seed, else spread evenly

    @model_validator(mode="before")
    @classmethod
    def _degrade_in_full(cls, document: Any) -> Any:
        """The named file's settings in place of its name, at the run's scale: the run's config holds them all."""
        if not isinstance(document, dict):
            return document
        degrade = document.get("degrade")
        if isinstance(degrade, str | Path):
            degrade = read_yaml(find_shipped(Path(degrade)))
        if isinstance(degrade, dict):
            degrade = {"scale": document.get("scale", 4), **degrade}
        return {**document, "degrade": degrade}

    @model_validator(mode="after")
    def _one_scale(self) -> DataSettings:
        if self.degrade is not None and self.degrade.scale != self.scale:
            raise ValueError(f"degrade.scale is {self.degrade.scale} and scale is {self.scale}; leave the former out")
        return self

    def require_scale(self, scale: int, where: str) -> None:
        """Networks must enlarge as these images are made."""
        if scale != self.scale:
            what = f"enlarges {scale} times, this run's images are {self.scale} times as large as their LR"
            raise Refusal(what, where=where, cure=f"choose another, or data.scale={scale} where LR is made from HR")


class AugmentSettings(Settings):
    """Flips and rotations are on, off, or (None) on where they are exact; the others are the probability that a sample
    is treated. Cached features may only be turned where the cache holds them for every turn (extract --dihedral)."""

    flip: bool | None = None
    rotate: bool | None = None
    jitter: Share = Field(default=0.0, ge=0, le=1)
    blur: Share = Field(default=0.0, ge=0, le=1)
    crop_scale: Share = Field(default=0.0, ge=0, le=1)
    cutblur: Share = Field(default=0.0, ge=0, le=1)
    mixup: Share = Field(default=0.0, ge=0, le=1)


class NetworkSettings(Settings):
    """The network by name, its constructor's arguments, and the seed of its random initial weights (None: the run's).

    `start_from` is a trained file whose every key must fit, but for those that begin with a name in `start_new`:
    these parts keep their random initial weights.
    """

    name: str
    settings: dict[str, Any] = {}
    seed: int | None = Field(default=None, ge=0)
    start_from: Path | None = None
    start_new: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _new_beside_what(self) -> NetworkSettings:
        if self.start_new and self.start_from is None:
            raise ValueError("start_new needs start_from")
        return self


class OptimizerSettings(Settings):
    """AdamW or Muon, clipping of the gradient's norm, and into how many parts a batch is accumulated.

    `muon` is for the weights of ungrouped convolutions and linear layers; all other parameters are left to AdamW.
    """

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(default=1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=1e-4, ge=0)
    clip: float | None = Field(default=1.0, gt=0)
    accumulate: PositiveInt = 1


class ScheduleSettings(Settings):
    """Linear warm-up, then cosine cycles, each `growth` times as long as the one before, down to lr * floor."""

    warmup: int = Field(default=0, ge=0)
    cycles: PositiveInt = 1
    growth: float = Field(default=2.0, gt=0)
    floor: float = Field(default=0.0, ge=0, le=1)


class Stage(Settings):
    """One stage of the curriculum: the losses' weights until this share of the run is done."""

    until: float = Field(default=1.0, gt=0, le=1)
    losses: dict[str, float]


# The original curriculum: first pixels, then frequencies, then structure.
DEFAULT_STAGES = (
    Stage(until=0.4, losses={"l1": 1.0}),
    Stage(until=0.75, losses={"l1": 0.75, "swt": 0.20, "fft": 0.05}),
    Stage(until=1.0, losses={"l1": 0.60, "swt": 0.25, "fft": 0.10, "ssim": 0.05}),
)


class AdversarialSettings(Settings):
    """A patch discriminator for native experts; weight 0 means none is built."""

    weight: float = Field(default=0.0, ge=0)
    start: Share = Field(default=0.5, ge=0, le=1)
    lr: float = Field(default=1e-4, gt=0)
    features: PositiveInt = 32


class FusionTaskSettings(Settings):
    """Only for task fusion: how often an expert is left out of a step, the final gate, and whether a budget model is
    fitted for infer.py --budget (from a cache whose experts can be opened and timed)."""

    expert_dropout: Share = Field(default=0.1, ge=0, lt=1)
    budget: bool = True
    gate_resamples: PositiveInt = 2000
    gate_confidence: float = Field(default=0.95, gt=0.5, lt=1)


class DistilSettings(Settings):
    """Only for task distil: how much of the target is the truth where there is one (the rest is the teacher's image),
    and what the student must beat: `rival`, an expert's name or file; else the file that it goes on from; else bicubic
    enlargement.

    More than 1 leads away from the teacher's image. With the mean of the other experts as teacher this is negative
    correlation learning (Liu and Yao 1999): squared error less lambda times the squared distance to the others has the
    gradient, up to a factor, of the squared error to a target with a truth of 1 / (1 - lambda)."""

    truth: float = Field(default=0.5, ge=0, le=2)
    rival: str | None = None
    gate_resamples: PositiveInt = 2000
    gate_confidence: float = Field(default=0.95, gt=0.5, lt=1)


class RefinerTaskSettings(Settings):
    """Only for task refiner: the share of LPIPS between two seeds that is given back to the distance to the truth."""

    diversity: Share = Field(default=0.9, ge=0, le=1)


class ValidationSettings(Settings):
    """Every so many steps, on whole held-out images; `watch`: further HR folders, scored only."""

    every: PositiveInt = 500
    watch: dict[str, Path] = {}
    watch_images: PositiveInt = 8


class CheckpointSettings(Settings):
    """Every so many steps; the best by PSNR, the last, and one per `milestone` steps are kept."""

    every: PositiveInt = 500
    best: PositiveInt = 5
    last: PositiveInt = 10
    milestone: PositiveInt = 50_000


class ExportSettings(Settings):
    """How the final weights are stored; fp16 halves the file and rounds (the score is taken after rounding)."""

    name: str = "model"
    dtype: Literal["fp32", "fp16"] = "fp32"
    note: str = ""


class LogSettings(Settings):
    """Where scalars and images go."""

    to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)
    every: PositiveInt = 50
    images: int = Field(default=2, ge=0)


class TrainSettings(Settings):
    """One training run."""

    task: Literal["fusion", "expert", "distil", "refiner"]
    run: Path
    steps: PositiveInt
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: PositiveInt = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    ema: float = Field(default=0.999, ge=0, lt=1)
    bad_batches: PositiveInt = 10
    data: DataSettings = DataSettings()
    augment: AugmentSettings = AugmentSettings()
    network: NetworkSettings
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    stages: tuple[Stage, ...] = DEFAULT_STAGES
    weights: dict[str, Path] = {}
    adversarial: AdversarialSettings = AdversarialSettings()
    fusion: FusionTaskSettings = FusionTaskSettings()
    distil: DistilSettings = DistilSettings()
    refiner: RefinerTaskSettings = RefinerTaskSettings()
    validation: ValidationSettings = ValidationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    export: ExportSettings = ExportSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _stages_in_order(self) -> TrainSettings:
        ends = [stage.until for stage in self.stages]
        if not ends or ends != sorted(set(ends)) or ends[-1] != 1.0:
            raise ValueError(f"stages must rise to until: 1.0, got {ends}")
        return self
