"""A device's name, or none -> the torch device to run on; and an exception -> whether memory ran out there."""

from __future__ import annotations

import os

import torch

from imaging.refusal import Refusal

AUTO = "auto"
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


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA and others raise a class of their own, the CPU a RuntimeError, Python a MemoryError."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _CPU_ALLOCATOR)
