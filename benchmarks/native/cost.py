"""Native networks in several forms -> parameters, multiply-adds, seconds and memory of each, one process per form.

Random weights: time and memory depend on training by routing alone, and random routers route evenly.
"""

from __future__ import annotations

import multiprocessing
import platform
import resource
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from experts.native.base import NativeNetwork
from experts.native.blocks.state_space import StateSpaceMixer
from experts.native.blocks.window_attention import WindowAttention
from experts.native.freqnet import FreqNet
from experts.native.msg import MSG
from experts.native.ssm import SSM
from imaging.malloc import keep_freed_memory
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

KINDS: dict[str, type[nn.Module]] = {
    "msg": MSG,
    "freqnet": FreqNet,
    "ssm": SSM,
    "window attention": WindowAttention,
    "state space": StateSpaceMixer,
}


@dataclass(frozen=True)
class Case:
    """One form of one network; `deployed` folds its branches. A bare layer gets `channels` instead of an image."""

    network: str
    form: str
    settings: dict[str, Any] = field(default_factory=dict)
    deployed: bool = False
    channels: int = 3


CASES = (
    *(
        Case(name, form, settings, deployed)
        for name in ("msg", "freqnet", "ssm")
        for form, settings, deployed in (
            ("as trained: 2 experts of each token", {}, False),
            ("branches folded", {}, True),
            ("1 expert of each token, folded", {"top_k": 1}, True),
            ("all experts, folded", {"moe": "dense"}, True),
            ("no routing, one expert, folded", {"moe": "single"}, True),
        )
    ),
    Case("msg", "long range by state space, folded", {"long_range": "ssm"}, True),
    Case("msg", "long range by windows alone, folded", {"long_range": "window"}, True),
    Case("freqnet", "flat windows skipped, folded", {"skip_flat": 4 / 255}, True),
    Case("freqnet", "no attention, folded", {"attention": False}, True),
    Case("ssm", "windows in place of scans, folded", {"mixer": "window"}, True),
    Case("window attention", "one layer, 64 channels", {"channels": 64}, False, 64),
    Case("state space", "one layer, 64 channels", {"channels": 64}, False, 64),
)


@dataclass(frozen=True)
class Measured:
    """One form at one size; memory is the highest above what the process held before the forward.

    `cpu_seconds` count all threads: with one thread they are the steadier figure on a machine that others share.
    """

    network: str
    form: str
    size: int
    parameters: int
    giga_multiply_adds: float
    seconds: float
    cpu_seconds: float
    peak_mib: float


def bench(sizes: Sequence[int], *, threads: int, repeats: int, only: str | None = None) -> list[Measured]:
    """Every case at every size, each in a fresh process so that memory is its own; the fastest of `repeats` counts."""
    cases = [case for case in CASES if only is None or case.network == only]
    if not cases:
        raise Refusal(f"no such network '{only}'", where="bench-native", cure=f"give one of {', '.join(KINDS)}")
    work = [(case, size) for size in sizes for case in cases]
    # The fork server has imported everything and run nothing, so each case starts in a clean process at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    results = []
    for case, size in tqdm(work, desc="bench-native", unit="case", disable=None):
        with context.Pool(1) as pool:
            results.append(pool.apply(measure, (case, size, threads, repeats)))
    return results


@torch.no_grad()
def measure(case: Case, size: int, threads: int, repeats: int) -> Measured:
    """Runs in its own process."""
    keep_freed_memory()  # as every command does
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = KINDS[case.network](**case.settings).eval()
    if case.deployed and isinstance(network, NativeNetwork):
        network.reparameterize()
    # Work per pixel does not change with the size: all parts are local or linear (held by a test).
    multiply_adds = multiply_adds_of(network, case.channels) * (size / 64) ** 2
    image_BCHW = picture(size, case.channels)
    held = _highest_mib()
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        begun, cpu_begun = time.perf_counter(), time.process_time()
        network(image_BCHW)
        seconds.append(time.perf_counter() - begun)
        cpu_seconds.append(time.process_time() - cpu_begun)
    return Measured(
        network=case.network,
        form=case.form,
        size=size,
        parameters=sum(p.numel() for p in network.parameters()),
        giga_multiply_adds=round(multiply_adds / 1e9, 3),
        seconds=round(min(seconds), 3),
        cpu_seconds=round(min(cpu_seconds), 3),
        peak_mib=round(_highest_mib() - held, 1),
    )


def multiply_adds_of(network: nn.Module, channels: int) -> float:
    """Of one forward at 64x64; attention runs as separate matrix products, since the counter skips its fused form."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network(picture(64, channels))
    return counter.get_total_flops() / 2


def picture(size: int, channels: int) -> torch.Tensor:
    """(1, C, size, size): the left half flat, as skies are, the right half busy."""
    picture_BCHW = torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    picture_BCHW[..., : size // 2] = 0.5
    return picture_BCHW


def _highest_mib() -> float:
    """The most memory this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if platform.system() == "Darwin" else 1 << 10)


def as_markdown(results: Sequence[Measured], *, threads: int, repeats: int) -> str:
    """The table, and how it was measured."""
    lines = [
        "## Cost",
        "",
        f"{threads} threads, the fastest of {repeats}. Sizes are of the LR image; the output is 4x. "
        "Multiply-adds count convolutions and matrix products. CPU seconds count all threads: with one thread they "
        "are the steadier figure on a machine that others share. Memory is the peak above what was held before the "
        "forward. The left half of the picture is flat. Random weights.",
        "",
        "| network | form | size | parameters | G multiply-adds | seconds | CPU seconds | megapixels per CPU second "
        "| peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.network} | {r.form} | {r.size} | {r.parameters:,} | {r.giga_multiply_adds:.2f} | {r.seconds:.2f} "
        f"| {r.cpu_seconds:.2f} | {(4 * r.size) ** 2 / 1e6 / max(r.cpu_seconds, 1e-9):.2f} | {r.peak_mib:.0f} |"
        for r in results
    ]
    return "\n".join(lines) + "\n"


def as_json(results: Sequence[Measured]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [asdict(result) for result in results]


def machine() -> dict[str, str]:
    """Where it was measured."""
    return {"torch": torch.__version__, "processor": platform.machine(), "system": platform.system()}
