"""A time budget and a probe's timings -> how many steps fit, and how often to validate and save within them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from imaging.refusal import Refusal
from imaging.settings import Settings

if TYPE_CHECKING:
    from fusion.training.dry_run import Probe

SPARE = 0.05  # of the time: a busy machine is slower than it was when it was probed
VALIDATIONS = 8  # within a run, and one at its end
SAVE_SECONDS = 20.0  # no more than this is lost when a run is stopped
LEAST_STEPS = 10  # fewer train nothing: better to refuse


class StepPlan(Settings):
    """The settings that make a run end in time."""

    steps: int
    validate_every: int
    save_every: int

    def words(self) -> list[str]:
        """As settings on the command line."""
        return [
            f"steps={self.steps}",
            f"validation.every={self.validate_every}",
            f"checkpoint.every={self.save_every}",
        ]


def plan_steps(seconds: float, probe: Probe, *, begin: float, calls: int, most: int | None = None) -> StepPlan:
    """Seconds in all, of which each of `calls` takes `begin` until its first step; `most` steps at most."""
    left = seconds * (1 - SPARE) - calls * begin - (VALIDATIONS + 1) * probe.validation
    steps = int(left / probe.step)
    if steps < LEAST_STEPS:
        needed = (seconds - left + LEAST_STEPS * probe.step) / 60
        raise Refusal(
            f"{seconds / 60:.1f} minutes are too few for a run: beginning takes {begin:.0f} s, "
            f"a step {probe.step:.2f} s, a validation {probe.validation:.1f} s",
            where="--minutes",
            cure=f"give at least {math.ceil(10 * needed) / 10} minutes for each run, or hold fewer images out",
        )
    steps = steps if most is None else min(steps, most)
    return StepPlan(
        steps=steps,
        validate_every=math.ceil(steps / VALIDATIONS),
        save_every=max(1, min(steps, int(SAVE_SECONDS / probe.step))),
    )
