"""One image through the whole pipeline, with an expert that repeats pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion.inference.command import Request, carry_out
from fusion.inference.options import Options
from imaging.command import DONE
from tests.inference.parts import ensemble_of

if TYPE_CHECKING:
    from pathlib import Path


def upscale(source: Path, target: Path, **options: Any) -> Path:
    """Its file made, or a refusal."""
    assert carry_out(Request(source, target, Options(tile=0, **options)), ensemble_of()) == DONE
    return target
