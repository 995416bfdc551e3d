"""What a training run has to say about its model -> the record kept in the model file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from imaging.settings import Settings


class TrainingRecord(Settings):
    """Where the weights come from, and the verdict of the do-no-harm gate.

    `verdict` is "base" where the fused image did not beat the base on held-out items: such a model gives the base.
    `belief` is the share of every contribution that is added, fitted on held-out items, with all experts there;
    `fewer[n - 1]` that with n of them, 0 where no share of it helped. `gain_db` is fused minus base
    on others, with the ends of its bootstrap interval.
    """

    verdict: Literal["untrained", "fused", "base"] = "untrained"
    belief: float = Field(default=1.0, ge=0, le=1)
    fewer: tuple[float, ...] = ()
    steps: int = 0
    gain_db: float | None = None
    gain_low_db: float | None = None
    gain_high_db: float | None = None
    held_out_items: int = 0
    data: str = ""
    details: dict[str, Any] = {}

    def belief_in(self, present: int, known: int) -> float:
        """The share for as many experts as are present, of all the model knows."""
        return self.fewer[present - 1] if present < known and self.fewer else self.belief
