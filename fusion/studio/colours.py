"""Values of a map -> colours, and the same colours for its legend. Axes: E experts, H and W, C colour (RGB)."""

from __future__ import annotations

import cv2
import numpy as np

# Eight colours that people with any kind of colour vision tell apart (Okabe and Ito 2008), black left to the text.
_PALETTE = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (136, 136, 136),
)


def viridis(values_HW: np.ndarray, low: float, high: float) -> np.ndarray:
    """Viridis from `low` to `high`, uint8 (H, W, 3)."""
    levels_HW = (np.asarray(values_HW, np.float32) - low) / max(high - low, 1e-9)  # a constant map has high == low
    return _apply_viridis((levels_HW.clip(0, 1) * 255).round().astype(np.uint8))


def argmax_colours(gates_EHW: np.ndarray, colours: list[tuple[int, int, int]]) -> np.ndarray:
    """At every pixel the colour of the expert that weighs most, uint8 (H, W, 3)."""
    return np.array(colours, np.uint8)[gates_EHW.argmax(0)]


def expert_colours(count: int) -> list[tuple[int, int, int]]:
    """One for each expert; beyond eight they repeat."""
    return [_PALETTE[index % len(_PALETTE)] for index in range(count)]


def _apply_viridis(levels_HW: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.applyColorMap(levels_HW, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)


# Nine steps of the legend's gradient, from low to high: the browser blends between them.
COLOUR_BAR = [
    "rgb({}, {}, {})".format(*one) for one in _apply_viridis(np.linspace(0, 255, 9).round().astype(np.uint8)[None])[0]
]


def css_colour(index: int) -> str:
    """The same colours for charts."""
    return "rgb({}, {}, {})".format(*_PALETTE[index % len(_PALETTE)])
