"""The fusion network: phases over the least-squares base; `network.py` is their table of contents.

What other rooms need of it, in `__all__`:

- `FusionSR` is the network, `FusionSettings` its frozen description, `ExpertSlot` one expert in it, `every_phase()` the
  settings with all phases of the original layout on, `FusionOutput` what a forward pass returns.
- `BaseFit` and `fit_base` fit the base, a `BaseRecord`, which `BaseBlend` applies.
- `save_model`, `load_model` and `read_header` write and read a model's file; `TrainingRecord` is its training, gate and
  shrinkage.
"""

from fusion.network.base.blend import BaseBlend, BaseRecord
from fusion.network.base.fit import BaseFit, fit_base
from fusion.network.interface import FusionOutput, TrainingRecord
from fusion.network.network import FusionSR, load_model
from fusion.network.save import read_header, save_model
from fusion.network.settings import ExpertSlot, FusionSettings, every_phase

__all__ = [
    "BaseBlend",
    "BaseFit",
    "BaseRecord",
    "ExpertSlot",
    "FusionOutput",
    "FusionSR",
    "FusionSettings",
    "TrainingRecord",
    "every_phase",
    "fit_base",
    "load_model",
    "read_header",
    "save_model",
]
