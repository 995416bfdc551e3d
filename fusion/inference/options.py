"""The options of a run of inference, as one frozen record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fusion.inference.jobs import AUTO

if TYPE_CHECKING:
    from fusion.inference.source import Rgb
    from fusion.refinement.presets import Blend
    from imaging.files import Depth


@dataclass(frozen=True)
class Options:
    """`tile` in LR pixels: None chooses by free memory, 0 runs images whole. `depth` None keeps the input's.

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

    def manifest(self) -> dict[str, Any]:
        """The options that decide pixels."""
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
        return chosen
