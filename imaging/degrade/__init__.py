"""HR image + a seed -> LR image and the record of what was done: drawn in degradation.py, applied by steps.py."""

from imaging.degrade.degradation import Degradation, DegradeSettings, degrade, draw_degradation

__all__ = ["Degradation", "DegradeSettings", "degrade", "draw_degradation"]
