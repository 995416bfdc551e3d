"""The options of a run of inference, as one frozen record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fusion.inference.jobs import AUTO
from imaging.scale import SCALE

if TYPE_CHECKING:
    from fusion.inference.source import Rgb
    from fusion.refinement.presets import Blend
    from imaging.files import Depth


@dataclass(frozen=True)
class OutputSize:
    """How large the written image is: a multiple of the input, or sides in pixels with the shape kept.

    Both `width` and `height`: as large as fits into the two. `max_side` only makes smaller.
    """

    outscale: float | None = None
    width: int | None = None
    height: int | None = None
    max_side: int | None = None

    def of(self, height: int, width: int, own: int = SCALE) -> tuple[int, int]:
        """(height, width) to write for an input of this size, with experts that enlarge `own` times."""
        scale = float(own) if self.outscale is None else self.outscale
        sides = [side / old for side, old in ((self.height, height), (self.width, width)) if side is not None]
        scale = min(sides, default=scale)
        if self.max_side is not None:
            scale = min(scale, self.max_side / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def manifest(self) -> dict[str, float]:
        """What was asked for."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Options:
    """`tile` in LR pixels: None chooses by free memory, 0 runs images whole. `depth` None keeps the input's.

    `quality` (1 to 100) None: as write_levels has it. With `strip_metadata` no EXIF and no XMP goes along.
    `background` (8 bits each): what transparent images are laid upon, before the experts see them.
    """

    tile: int | None = None
    tta: bool = False
    depth: Depth | None = None
    budget: float | None = None
    max_loss: float | None = None
    ext: str = AUTO
    suffix: str = ""
    skip_existing: bool = False
    background: Rgb | None = None
    refine: Blend | None = None
    size: OutputSize = OutputSize()
    quality: int | None = None
    strip_metadata: bool = False

    def manifest(self) -> dict[str, Any]:
        """The options that decide pixels, and what stands beside them in the file."""
        chosen: dict[str, Any] = {"tile": AUTO if self.tile is None else self.tile, "tta": self.tta}
        chosen["depth"] = AUTO if self.depth is None else self.depth
        if self.budget is not None:
            chosen["budget"] = self.budget
        if self.max_loss is not None:
            chosen["max_loss"] = self.max_loss
        if self.background is not None:
            chosen["background"] = "#{:02x}{:02x}{:02x}".format(*self.background)
        if self.refine is not None:
            chosen["refine"] = self.refine.manifest()
        if self.size != OutputSize():  # records of images at four times their size stay as they were
            chosen["size"] = self.size.manifest()
        if self.quality is not None:
            chosen["quality"] = self.quality
        if self.strip_metadata:
            chosen["strip_metadata"] = True
        return chosen
