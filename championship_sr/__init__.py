"""Championship SR: images -> better images four times as large, and the parts of which that is made.

    import championship_sr

    large = championship_sr.upscale("photo.jpg")

Nothing is imported before it is used: `import championship_sr` needs neither torch nor a moment's wait.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache_tools.read.batch import dequantize
    from cache_tools.read.dataset import CacheDataset
    from championship_sr.upscaling import upscale
    from experts.open import open_experts
    from fusion.network import FusionSR as FusionNetwork
    from imaging.refusal import Refusal

__version__ = "0.2.0"  # the one place: pyproject.toml reads it from here

__all__ = ["CacheDataset", "FusionNetwork", "Refusal", "__version__", "dequantize", "open_experts", "upscale"]

# Public name: (its module, its name there).
_HOMES = {
    "CacheDataset": ("cache_tools.read.dataset", "CacheDataset"),
    "FusionNetwork": ("fusion.network", "FusionSR"),
    "Refusal": ("imaging.refusal", "Refusal"),
    "dequantize": ("cache_tools.read.batch", "dequantize"),
    "open_experts": ("experts.open", "open_experts"),
    "upscale": ("championship_sr.upscaling", "upscale"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'championship_sr' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _HOMES.keys())
