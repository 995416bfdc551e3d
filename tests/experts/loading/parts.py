"""A file's network by our loading; a user's own network, its code, its weights and the expert they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from experts.loading.load import load_network
from experts.loading.weights import read_state_file
from experts.open import open_experts
from experts.run import NetworkExpert
from experts.spec import ExpertSpec, WeightsSource


def spec_for(path: Path, **more: Any) -> ExpertSpec:
    """Of an expert whose weights are this file."""
    return ExpertSpec(name="x", weights=(WeightsSource(file=str(path)),), **more)


def load(path: Path, **more: Any) -> torch.nn.Module:
    """Its network."""
    return load_network(read_state_file(path), spec_for(path, **more)).network


NETWORKS = '''
import torch
from torch import nn


class Net(nn.Module):
    """A convolution to features, and a shuffle of them on top of the enlarged input."""

    def __init__(self, width=8, scale=4, value_range=1.0, multiple=1, minimum=1, pair=False, bad=""):
        super().__init__()
        print("this must not reach stdout")
        torch.manual_seed(0)
        self.scale, self.value_range, self.multiple, self.minimum = scale, value_range, multiple, minimum
        self.pair, self.bad = pair, bad
        self.body = nn.Conv2d(3, width, 3, padding=1)
        self.up = nn.Sequential(nn.Conv2d(width, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, x):
        if self.bad == "raises":
            raise KeyError("a table is missing")
        assert x.shape[-2] % self.multiple == 0 and x.shape[-1] % self.multiple == 0, "not a multiple"
        assert min(x.shape[-2:]) >= self.minimum, "too small"
        base = nn.functional.interpolate(x, scale_factor=self.scale, mode="bilinear")
        mean = 0.45 * self.value_range
        detail = self.up(torch.relu(self.body(x - mean)))
        y = base + 0.01 * detail if self.bad != "nan" else base / 0 * 0
        # Trained for its range: what comes in another is far from any image it knows.
        y = y if self.value_range == 1 or float(x.max()) > 1 else y + 100
        return (y, x) if self.pair else y


class Grey(Net):
    def forward(self, x):
        return super().forward(x)[:, :1]


def make(**arguments):
    return Net(**arguments)


def number():
    return 4


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        raise ZeroDivisionError("of the constructor")
'''


def network_of(code: Path, **arguments: Any) -> nn.Module:
    """Its network, made by Python itself."""
    namespace: dict[str, Any] = {"__name__": "made_for_the_test"}
    exec(code.read_text(), namespace)
    return namespace["Net"](**arguments)


def weights_of(code: Path, name: str = "weights.pth", wrap: Any = lambda state: state, **arguments: Any) -> Path:
    """A file of its weights beside the code, wrapped as they are often published."""
    path = code.parent / name
    torch.save(wrap(network_of(code, **arguments).state_dict()), path)
    return path


def opened(word: str, **more: Any) -> NetworkExpert:
    """The expert of a word, its code trusted."""
    (expert,) = open_experts([word], trust_code=True, **more)
    assert isinstance(expert, NetworkExpert)
    return expert
