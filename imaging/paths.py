"""Where the project keeps what is not code: shipped and fetched weights, configs, the checkout itself."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


def pretrained_folder() -> Path:
    """The folder of weights: `CHAMPIONSHIP_SR_PRETRAINED`, else `pretrained/` of this installation."""
    chosen = os.environ.get("CHAMPIONSHIP_SR_PRETRAINED")
    return Path(chosen) if chosen else ROOT / "pretrained"
