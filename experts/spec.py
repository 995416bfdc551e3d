"""What an expert is, as data: its architecture, where its features are tapped, how its input must be padded.

Legend: B batch, C channels, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from imaging.device import Precision
from imaging.refusal import Refusal
from imaging.scale import SCALE
from imaging.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

FOLDER = "images"  # the architecture of what is known by its images alone

Layout = Literal["BCHW", "BHWC", "BNC"]  # how a layer holds a map; N = H*W tokens, row by row


class Tap(Settings):
    """The layer whose output is the expert's feature map: last of the body, before the long residual.

    `module` is a dotted path in the network; a negative number counts from the end (`body.-1`).
    `channels` is checked where it is given; `layout` names the axes of the layer's output.
    """

    module: str
    channels: int | None = None
    layout: Layout = "BCHW"


class Padding(Settings):
    """What the runner does to an input before the network sees it: H and W up to a multiple and a minimum.

    The image goes on by reflection, without its last row (`reflect`) or with it (`symmetric`), or in black (`zeros`):
    as the network itself would pad, so that outputs are equal wherever the network can pad on its own.
    """

    multiple: int = Field(default=1, ge=1)
    minimum: int = Field(default=1, ge=1)
    mode: Literal["reflect", "symmetric", "zeros"] = "reflect"


class WeightsSource(Settings):
    """Where the published weights come from and how to know them; None where nobody has published the figure."""

    file: str
    page: str = ""
    licence: str = "unknown"
    url: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    note: str = ""


class CodeSource(Settings):
    """A network of its own code: a class or function in a Python file, and what it is called with.

    `sha256` pins the file, which then runs without being asked for again. `range` is the largest value of the images
    that the network takes; left out, it is found. Published code has an address, as weights do.
    """

    file: str
    name: str
    arguments: dict[str, Any] = {}
    sha256: str | None = None
    range: Literal[1, 255] | None = None
    page: str = ""
    licence: str = "unknown"
    url: str | None = None
    bytes: int | None = None


class ExpertSpec(Settings):
    """One expert, whole. Only `name` and a weights file must be given; the rest is read from the file itself.

    `hyperparameters` are what the file must agree with, and what the network is built from where the file
    cannot tell. `tap`, `padding` and `precision` left out mean: as is known of that architecture.
    `measured` is Y-PSNR in dB by test set, 4 border pixels left out, from the very file; `published` the authors' own.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    weights: tuple[WeightsSource, ...] = Field(min_length=1)
    title: str = ""
    architecture: str | None = None
    hyperparameters: dict[str, Any] = {}
    code: CodeSource | None = None
    parameters: int | None = None
    measured: dict[str, float] = {}
    published: dict[str, float] = {}
    tap: Tap | None = None
    features: bool = True
    padding: Padding | None = None
    precision: tuple[Precision, ...] = ("fp32", "bf16")
    overlap: int = Field(default=16, ge=0)


@dataclass(frozen=True)
class ExpertOutput:
    """What one expert gives for a batch: float32, not clamped, on the input's device.

    sr_BCHW is (B, 3, sH, sW) with the expert's scale s, nominally in [0, 1]; feat_BCHW is (B, C, H, W), aligned to the
    LR grid, or None where the expert has no features (a folder of images without feature files).
    """

    sr_BCHW: Tensor
    feat_BCHW: Tensor | None


@dataclass(frozen=True)
class ExpertIdentity:
    """All that decides an expert's numbers; two runs with equal identities give equal outputs."""

    name: str
    architecture: str
    tap: str | None
    channels: int
    weights_sha256: str
    precision: str
    tiling: str
    code: str | None = None
    scale: int = SCALE

    def document(self) -> dict[str, Any]:
        """As plain values. Without foreign code, or at four times, there is no such key: older records stay equal."""
        silent = {"code"} if self.code is None else set[str]()
        silent |= {"scale"} if self.scale == SCALE else set[str]()
        return {key: value for key, value in asdict(self).items() if key not in silent}

    @property
    def is_image_folder(self) -> bool:
        """Outputs are looked up by name and exist for whole, unflipped images only."""
        return self.architecture == FOLDER


class Expert(Protocol):
    """The one interface the rest of the program sees, whether a network or a folder of images stands behind it."""

    @property
    def name(self) -> str:
        """The short name under which caches, gates and reports speak of it."""
        ...

    @property
    def identity(self) -> ExpertIdentity:
        """What the cache's fingerprint is made of."""
        ...

    def run(self, lr_BCHW: Tensor, items: Sequence[str] = ()) -> ExpertOutput:
        """LR batch, float32 in [0, 1] -> its SR images and features; `items` names the images of the batch."""
        ...


def scale_of(experts: Sequence[Expert], where: str = "experts") -> int:
    """The one factor by which all of them enlarge."""
    return one_scale({one.name: one.identity.scale for one in experts}, where)


def one_scale(scales: Mapping[str, int], where: Path | str) -> int:
    """Of experts by name: those of different factors cannot be fused."""
    if len(set(scales.values())) > 1:
        named = ", ".join(f"{name} {scale}x" for name, scale in scales.items())
        raise Refusal(f"they enlarge by different factors: {named}", where=where, cure="choose those of one factor")
    return next(iter(scales.values()), SCALE)
