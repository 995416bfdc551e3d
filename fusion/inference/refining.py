"""A refiner and how it is applied -> a step of the pipeline: bar, events, provenance, forecast.

Axes: C colour, H and W at four times LR size.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from fusion.refinement.refine import count_tiles, refine
from imaging.refusal import Refusal
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fusion.inference.ensemble import Ensemble
    from fusion.inference.jobs import RunResult, Sized
    from fusion.inference.source import Source
    from fusion.inference.upscale import ImageCollector
    from fusion.refinement.open import AnyRefiner
    from fusion.refinement.presets import Blend

log = logging.getLogger(__name__)

# While an image is refined, the host holds about nine float copies of it beside the fused one.
HOST_BYTES_PER_PIXEL = 10 * 12


def with_refiner(ensemble: Ensemble, refiner: AnyRefiner | None) -> Ensemble:
    """The ensemble with the refiner in its identity: what is made carries it, and is verified against it."""
    if refiner is None:
        return ensemble
    if ensemble.scale != SCALE:
        what = f"refines images of four times their input, the experts enlarge {ensemble.scale} times"
        raise Refusal(what, where="--refine", cure="leave it out")
    return replace(ensemble, identity={**ensemble.identity, "refine": dict(refiner.identity)})


@dataclass(frozen=True)
class Refining:
    """Refines one image after the other; guard measures and events go into the run's result."""

    refiner: AnyRefiner
    how: Blend
    result: RunResult

    def of(self, source: Source, item: str, collector: ImageCollector | None) -> Callable[[Tensor], Tensor]:
        """What makes the whole fused image of this source into the refined one."""

        def rework(fused_CHW: Tensor) -> Tensor:
            lr_CHW = source.window(0, source.height, 0, source.width)[0]
            with tqdm(desc=f"refine {item}", unit="tile", leave=False) as bar:

                def tick(done: int, total: int) -> None:
                    bar.total = total
                    bar.update(done - bar.n)

                refined = refine(self.refiner, fused_CHW, lr_CHW, self.how, tick, self._warn)
            self.result.guards[item] = refined.guard
            if collector is not None:
                collector.add_refined(refined.image_CHW, refined.guard)
            return refined.image_CHW

        return rework

    def _warn(self, event: str) -> None:
        self.result.events.append(event)
        log.warning("%s", event)


def forecast_refinement(refiner: AnyRefiner, sized: Sequence[Sized]) -> dict[str, Any]:
    """For the dry run: calls of the diffusion model's parts, and the host's memory for the largest image."""
    sides = [(SCALE * one.height, SCALE * one.width) for one in sized]
    return {
        "preset": refiner.identity["preset"],
        "tiles": sum(count_tiles(refiner.preset, *side) for side in sides),
        "host_bytes": max(height * width for height, width in sides) * HOST_BYTES_PER_PIXEL,
        "precision": refiner.identity["precision"],
    }
