"""Settings (device, processes, precision) -> an Accelerator that is exactly that, or a refusal.

A wrong launch does not fail by itself: it quietly trains several separate networks. So the number of processes is a
setting, and is checked against what the launcher started and what accelerate joined.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from imaging.device import warn_of_slow_bf16
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from fusion.training.settings import TrainSettings

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SCALED = ("cuda", "cpu")  # where torch's gradient scaler and its float16 autocast are tested


def open_accelerator(settings: TrainSettings) -> Accelerator:
    """Join the processes; precision is kept out of accelerate and done by `autocast` below."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != settings.processes:
        raise Refusal(
            f"the launcher started {started} processes, the settings ask for {settings.processes}",
            where="processes",
            cure=f"start with `torchrun --nproc-per-node N`, or set processes={started}",
        )
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise Refusal("there is no CUDA device", where="device", cure="set device=cpu or auto")
    on_cpu = settings.device == "cpu" or not cuda
    # Expert dropout leaves the parameters of absent experts without a gradient.
    unused = DistributedDataParallelKwargs(find_unused_parameters=settings.task == "fusion")
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[unused])
    if accelerator.num_processes != settings.processes:
        raise Refusal(
            f"{settings.processes} processes were asked for, {accelerator.num_processes} joined",
            where="processes",
            cure="start with torchrun, not with `accelerate launch`",
        )
    _check_precision(settings, accelerator.device)
    parts = settings.processes * settings.optimizer.accumulate
    if settings.data.batch % parts:
        raise Refusal(
            f"a batch of {settings.data.batch} cannot be cut into {parts} parts (processes x accumulate)",
            where="data.batch",
            cure=f"use a multiple of {parts}",
        )
    return accelerator


def _check_precision(settings: TrainSettings, device: torch.device) -> None:
    if settings.precision == "fp16" and device.type not in _SCALED:
        cure = "set precision=fp32, or device=cpu"
        raise Refusal(f"fp16 training is not known to work on {device.type}", where="precision", cure=cure)
    if settings.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise Refusal("this GPU has no bf16", where="precision", cure="set precision=fp16")
    warn_of_slow_bf16(device, settings.precision, "precision=bf16")


def autocast(settings: TrainSettings, device: torch.device) -> torch.autocast:
    """Mixed precision for the forward; a context that does nothing for fp32."""
    dtype = _DTYPES.get(settings.precision)
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
