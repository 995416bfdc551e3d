"""A network and a batch -> what one training step costs: multiply-adds, seconds, peak memory, and where they go.

Axes: B batch, E experts, C channels, H and W of the LR image.
"""

from __future__ import annotations

import multiprocessing
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks.fusion.original_layout import original_of_size
from fusion.network import FusionSettings, FusionSR
from fusion.network.attention import TokenAttention
from fusion.network.settings import every_phase

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Kind = Literal["default", "every phase", "original"]


class Size(NamedTuple):
    """What a step is measured on."""

    batch: int
    lr_size: int
    device: str


def build(kind: Kind, size: Size) -> Callable[[], Tensor]:
    """The network on random inputs -> a function that does one training step (no optimizer)."""
    torch.manual_seed(0)
    network = build_network(kind).to(size.device)
    lr_BCHW, sr_BECHW, feats = random_batch(FusionSettings(), size)
    call = partial(network, lr_BCHW, sr_BECHW, list(feats.values()) if kind == "original" else feats)

    def step() -> Tensor:
        output = call()
        image = output if kind == "original" else output.image_BCHW
        network.zero_grad(set_to_none=True)
        loss = (image - 0.5).abs().mean()
        loss.backward()
        return loss

    return step


def build_network(kind: Kind) -> nn.Module:
    """Ours at the default settings, ours with every phase on, or the original layout with as many parameters."""
    if kind == "default":
        return FusionSR()
    ours = FusionSR(every_phase())
    if kind == "every phase":
        return ours
    channels = [slot.channels for slot in ours.settings.experts]
    return original_of_size(channels, sum(p.numel() for p in ours.parameters()))


def random_batch(settings: FusionSettings, size: Size) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Noise in the shapes of a batch from the cache."""
    batch, side, device = size
    lr_BCHW = torch.rand(batch, 3, side, side, device=device)
    sr_BECHW = torch.rand(batch, len(settings.experts), 3, 4 * side, 4 * side, device=device)
    feats = {slot.name: torch.randn(batch, slot.channels, side, side, device=device) for slot in settings.experts}
    return lr_BCHW, sr_BECHW, feats


def multiply_adds(step: Callable[[], Any]) -> int:
    """Multiply-adds of convolutions and matrix products, forward and backward."""
    # torch's own formula for the backward pass of convolutions takes grouped ones for full ones.
    mapping = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        step()
    return counter.get_total_flops() // 2


def _convolution_backward(
    grad_out: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: Sequence[bool],
    **_: Any,
) -> int:
    """The gradients of the input and of the weight cost as much as the forward pass each, where they are wanted."""
    forward = conv_flop_count(list(x), list(weight), list(grad_out), transposed=transposed)
    return forward * (int(output_mask[0]) + int(output_mask[1]))


def seconds(step: Callable[[], Any], repeats: int, device: str) -> float:
    """The shortest of `repeats` steps after one that is not counted: processor time on a CPU, wall time elsewhere."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    taken = []
    for _ in range(repeats + 1):  # the first also allocates and chooses kernels
        start = clock()
        step()
        if device != "cpu":  # kernels run asynchronously
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return min(taken[1:])


def peak_bytes(kind: Kind, size: Size) -> int | None:
    """By how much a training step raises the memory in use; None where the system does not tell."""
    if size.device != "cpu":
        step = build(kind, size)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() - before
    # A process of its own: nothing that ran before hides the peak.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_resident_growth, (kind, size))


def _resident_growth(kind: Kind, size: Size) -> int | None:
    build(kind, Size(1, 8, "cpu"))()  # what libraries set up once is no part of the step
    step = build(kind, size)
    before = _resident("VmRSS")
    step()
    after = _resident("VmHWM")
    return None if before is None or after is None else after - before


def _resident(field: str) -> int | None:
    """A line of /proc/self/status in bytes, where there is such a file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def phases(size: Size, repeats: int) -> list[dict[str, Any]]:
    """Each phase alone, all switched on, forward and backward, on the whole network's inputs; attention inside too."""
    torch.manual_seed(0)
    network = build_network("every phase").to(size.device)
    watched = dict(network.named_children())
    watched |= {name: module for name, module in network.named_modules() if isinstance(module, TokenAttention)}
    caught: dict[str, Any] = {}

    def catch(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda _, inputs: caught.update({name: inputs})

    hooks = [module.register_forward_pre_hook(catch(name)) for name, module in watched.items()]
    network(*random_batch(FusionSettings(), size))
    for hook in hooks:
        hook.remove()
    return [_phase(name, watched[name], inputs, size, repeats) for name, inputs in caught.items()]


def _phase(name: str, module: nn.Module, inputs: Any, size: Size, repeats: int) -> dict[str, Any]:
    fresh = tree_map(lambda x: x.detach().requires_grad_() if isinstance(x, Tensor) else x, inputs)

    def step() -> None:
        outputs = [leaf for leaf in tree_leaves(module(*fresh)) if isinstance(leaf, Tensor)]
        torch.stack([leaf.float().mean() for leaf in outputs]).sum().backward()

    parameters = sum(p.numel() for p in module.parameters())
    macs = multiply_adds(step)
    return {
        "phase": name,
        "parameters": parameters,
        "multiply_adds": macs,
        "seconds": seconds(step, repeats, size.device),
    }


def busiest_operations(size: Size, count: int = 8) -> list[dict[str, Any]]:
    """The operations that a whole step with every phase spends its time in."""
    step = build("every phase", size)
    step()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if size.device != "cpu" else [])
    with profile(activities=activities, acc_events=True) as profiler:
        step()
    averages = profiler.key_averages()
    kind = "self_cpu_time_total" if size.device == "cpu" else "self_device_time_total"
    total = sum(getattr(event, kind) for event in averages)
    ranked = sorted(averages, key=lambda event: -getattr(event, kind))[:count]
    return [{"operation": event.key, "share": getattr(event, kind) / total, "calls": event.count} for event in ranked]
