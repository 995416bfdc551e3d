"""Native networks and their large-kernel parts, as trained and folded, run in turns -> what folding saves.

The two forms alternate, so that other load on the machine affects both alike; each pair gives one ratio of CPU
seconds. Legend of a part's name: kernel's side, channels it is applied to of how many.
"""

from __future__ import annotations

import copy
import multiprocessing
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from benchmarks.native.cost import multiply_adds_of, picture
from experts.native.blocks.convolution import ConvGatedBlock, PartialLargeKernel
from experts.native.blocks.multi_branch import fold_all
from experts.native.freqnet import FreqNet
from experts.native.msg import MSG
from experts.native.ssm import SSM
from imaging.malloc import keep_freed_memory
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class FoldCase:
    """A network or layer to fold, and its input channels."""

    build: Callable[[], nn.Module]
    channels: int


FOLD_CASES = {
    "msg": FoldCase(MSG, 3),
    "freqnet": FoldCase(FreqNet, 3),
    "ssm": FoldCase(SSM, 3),
    "gated block with 13x13, 16 of 48": FoldCase(lambda: ConvGatedBlock(48, kernel=13), 48),
    "gated block with 9x9, 16 of 48": FoldCase(lambda: ConvGatedBlock(48, kernel=9), 48),
    "large kernel 13x13, 16 of 48": FoldCase(lambda: PartialLargeKernel(48, kernel=13), 48),
    "large kernel 9x9, 16 of 48": FoldCase(lambda: PartialLargeKernel(48, kernel=9), 48),
    "large kernel 7x7, 16 of 64": FoldCase(lambda: PartialLargeKernel(64, kernel=7), 64),
}


@dataclass(frozen=True)
class Folded:
    """CPU seconds of either form (medians), and the median of the pairs' ratios with its 95 % bootstrap interval."""

    what: str
    size: int
    pairs: int
    giga_multiply_adds: float
    giga_multiply_adds_folded: float
    cpu_seconds: float
    cpu_seconds_folded: float
    ratio: float
    ratio_low: float
    ratio_high: float
    faster: int
    largest_difference: float


def bench_fold(size: int, *, threads: int, pairs: int, only: str | None = None) -> list[Folded]:
    """Every case, each in a process of its own."""
    names = [name for name in FOLD_CASES if only is None or name == only]
    if not names:
        raise Refusal(f"no fold case '{only}'", where="bench-native", cure=f"give one of {list(FOLD_CASES)}")
    # A process per case: the memory that one case leaves to malloc must not speed up the next.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    results = []
    for name in tqdm(names, desc="bench-native fold", unit="case", disable=None):
        with context.Pool(1) as pool:
            results.append(pool.apply(measure_fold, (name, size, threads, pairs)))
    return results


@torch.no_grad()
def measure_fold(name: str, size: int, threads: int, pairs: int) -> Folded:
    """Runs in its own process."""
    keep_freed_memory()  # as every command does
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    case = FOLD_CASES[name]
    trained = case.build().eval()
    folded = copy.deepcopy(trained)
    fold_all(folded)
    image_BCHW = picture(size, case.channels)
    difference = float((trained(image_BCHW) - folded(image_BCHW)).abs().max())  # also the warm-up of both
    seconds = np.array([_pair(trained, folded, image_BCHW, swapped=index % 2 == 1) for index in range(pairs)])
    ratios = seconds[:, 0] / seconds[:, 1]
    # Bootstrap of the median: pairs are drawn with replacement.
    drawn = np.random.default_rng(0).choice(ratios, (4000, pairs))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    share = (size / 64) ** 2
    return Folded(
        what=name,
        size=size,
        pairs=pairs,
        giga_multiply_adds=round(multiply_adds_of(trained, case.channels) * share / 1e9, 3),
        giga_multiply_adds_folded=round(multiply_adds_of(folded, case.channels) * share / 1e9, 3),
        cpu_seconds=round(float(np.median(seconds[:, 0])), 4),
        cpu_seconds_folded=round(float(np.median(seconds[:, 1])), 4),
        ratio=round(float(np.median(ratios)), 4),
        ratio_low=round(float(low), 4),
        ratio_high=round(float(high), 4),
        faster=int((ratios > 1).sum()),
        largest_difference=difference,
    )


def _pair(trained: nn.Module, folded: nn.Module, image_BCHW: torch.Tensor, *, swapped: bool) -> tuple[float, float]:
    """CPU seconds as trained and folded, the latter first where `swapped`."""
    seconds = {}
    for network in (folded, trained) if swapped else (trained, folded):
        begun = time.process_time()
        network(image_BCHW)
        seconds[network] = time.process_time() - begun
    return seconds[trained], seconds[folded]


def fold_markdown(results: Sequence[Folded], *, threads: int) -> str:
    """The table, and how it was measured."""
    lines = [
        "## Folding",
        "",
        f"Both forms in turns, {results[0].pairs} pairs, {threads} threads, LR {results[0].size}x{results[0].size}; "
        "CPU seconds are medians, `times faster` is the median of the pairs' ratios with its 95 % bootstrap interval.",
        "",
        "| what | G multiply-adds, as trained | folded | CPU s, as trained | folded | times faster | interval "
        "| pairs in which folded was faster | largest difference |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.what} | {r.giga_multiply_adds:.2f} | {r.giga_multiply_adds_folded:.2f} | {r.cpu_seconds:.3f} "
        f"| {r.cpu_seconds_folded:.3f} | {r.ratio:.3f} | {r.ratio_low:.3f} to {r.ratio_high:.3f} "
        f"| {r.faster} of {r.pairs} | {r.largest_difference:.0e} |"
        for r in results
    ]
    return "\n".join(lines) + "\n"


def fold_json(results: Sequence[Folded]) -> list[dict[str, Any]]:
    """The same as plain data."""
    return [asdict(result) for result in results]
