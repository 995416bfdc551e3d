"""The fusion network: seven phases over the least-squares base, `network.py` is their table of contents."""

from fusion.network.base.blend import BaseRecord
from fusion.network.interface import FusionOutput, TrainingRecord
from fusion.network.network import FusionSR
from fusion.network.settings import ExpertSlot, FusionSettings

__all__ = ["BaseRecord", "ExpertSlot", "FusionOutput", "FusionSR", "FusionSettings", "TrainingRecord"]
