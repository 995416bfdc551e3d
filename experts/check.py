"""An expert -> what runs on a 64x64 image show of it: shapes, range, time, hash; seconds per LR pixel."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from experts.open import open_expert
from experts.run import NetworkExpert
from imaging.device import find_device

if TYPE_CHECKING:
    from experts.catalog import Catalog
    from experts.spec import Expert
    from imaging.device import Precision

CHECK_SIZE, REPEATS = 64, 3


@dataclass(frozen=True)
class CheckReport:
    """What `python -m experts check` prints."""

    name: str
    architecture: str
    parameters: int
    multiply_adds_per_pixel: int
    tap: str | None
    sr_shape: list[int]
    feature_shape: list[int] | None
    sr_range: list[float]
    feature_range: list[float] | None
    seconds: float
    precision: str
    device: str
    sha256: str
    code: str | None = None


def check(
    wanted: str,
    catalog: Catalog,
    *,
    device: str,
    precision: Precision,
    size: int = CHECK_SIZE,
    trust_code: bool = False,
) -> CheckReport:
    """Open the expert, run it once on a smooth seeded image of `size` x `size`, measure."""
    expert = open_expert(wanted, catalog, device=find_device(device), precision=precision, trust_code=trust_code)
    if not isinstance(expert, NetworkExpert):
        raise TypeError("only a weights file can be checked")
    lr_BCHW = smooth_image(size).to(device)
    began = time.perf_counter()
    output = expert.run(lr_BCHW)
    if lr_BCHW.is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    features = output.feat_BCHW
    identity = expert.identity
    return CheckReport(
        name=expert.name,
        architecture=identity.architecture,
        parameters=sum(p.numel() for p in expert.network.parameters()),
        multiply_adds_per_pixel=round(multiply_adds(expert, lr_BCHW) / size**2),
        tap=identity.tap,
        sr_shape=list(output.sr_BCHW.shape),
        feature_shape=None if features is None else list(features.shape),
        sr_range=_range(output.sr_BCHW),
        feature_range=None if features is None else _range(features),
        seconds=round(seconds, 3),
        precision=precision,
        device=device,
        sha256=identity.weights_sha256,
        code=identity.code,
    )


def multiply_adds(expert: NetworkExpert, lr_BCHW: torch.Tensor) -> float:
    """Of convolutions and matrix products of one run, padding included; other work is not counted."""
    # Attention as separate matrix products: the counter skips its fused form on a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        expert.run(lr_BCHW)
    return counter.get_total_flops() / 2


def smooth_image(size: int) -> torch.Tensor:
    """(1, 3, size, size) float32 in [0, 1]: a seeded image with some structure at every scale."""
    generator = torch.Generator().manual_seed(0)
    layers = [
        torch.nn.functional.interpolate(
            torch.rand(1, 3, cells, cells, generator=generator), (size, size), mode="bilinear", align_corners=False
        )
        for cells in (2, 8, size)
    ]
    return torch.stack(layers).mean(0).clamp(0, 1)


def _range(x: torch.Tensor) -> list[float]:
    return [round(float(x.amin()), 5), round(float(x.amax()), 5)]


def seconds_per_pixel(expert: Expert, *, side: int = CHECK_SIZE, repeats: int = REPEATS) -> float | None:
    """The fastest of several runs after one that warms up; None for folders of images, which cost nothing to ask.

    On a CPU the time of the process's own threads counts, which other programs do not stretch.
    """
    if not isinstance(expert, NetworkExpert):
        return None
    on_gpu = expert.device.type != "cpu"
    clock = time.perf_counter if on_gpu else time.process_time
    lr_BCHW = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(expert.device)
    taken: list[float] = []
    for _ in range(1 + repeats):
        begun = clock()
        expert.run(lr_BCHW)
        if expert.device.type == "cuda":
            torch.cuda.synchronize(expert.device)
        taken.append(clock() - begun)
    return min(taken[1:]) / side**2
