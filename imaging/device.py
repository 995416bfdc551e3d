"""A device's name, or none -> the torch device to run on; and an exception -> whether memory ran out there."""

from __future__ import annotations

import logging
import os
from typing import Literal

import torch

from imaging.refusal import Refusal

log = logging.getLogger(__name__)

AUTO = "auto"
Precision = Literal["fp32", "bf16", "fp16"]
# What torch's CPU allocator writes into a plain RuntimeError; it has no class of its own for it.
_CPU_ALLOCATOR = ("can't allocate memory", "not enough memory")


def best_device() -> str:
    """CUDA where there is one, else the CPU. Under torchrun each process takes the GPU of its own LOCAL_RANK."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{rank}"


def choose_device(name: str) -> str:
    """A device option as given; `auto` is the best device."""
    return best_device() if name == AUTO else name


def find_device(name: str) -> torch.device:
    """`cpu`, `cuda`, `cuda:1`, `mps` -> the device, if this machine has it."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)  # a name can be valid while nothing can be allocated there
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0][:100]
        raise Refusal(f"is not usable here ({first})", where=f"device {name}", cure="use --device cpu") from None
    return device


def warn_of_slow_bf16(device: torch.device, precision: str, where: str) -> None:
    """A processor without instructions for bf16 computes it many times slower than fp32; torch itself is silent."""
    if precision == "bf16" and device.type == "cpu" and _processor_has_bf16() is False:
        log.warning("%s: this processor has no instructions for bf16, which is then many times slower than fp32", where)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether it is a processor with instructions for bf16. On GPUs nobody has measured it here: those stay at fp32."""
    return device.type == "cpu" and _processor_has_bf16() is True


def _processor_has_bf16() -> bool | None:
    """None where torch cannot tell."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or known.get("amx_bf16")) if known.get("architecture") == "x86_64" else None


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and others raise a class of their own, the CPU a RuntimeError, Python a MemoryError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _CPU_ALLOCATOR)
