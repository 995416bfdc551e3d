"""One batch -> one update of the weights, or a counted skip when loss or gradients are not finite."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fusion.training.loop.accelerator import autocast
from fusion.training.loop.optimizers import learning_rate
from fusion.training.losses.curriculum import weights_at
from fusion.training.sources.sampling import seed_torch
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from accelerate import Accelerator

    from fusion.training.loop.state import TrainingState
    from fusion.training.losses.curriculum import WeightedLosses
    from fusion.training.settings import TrainSettings
    from fusion.training.sources.batch import TrainBatch
    from fusion.training.tasks.task import Task


@dataclass(frozen=True)
class StepResult:
    """What a step did, for the log."""

    loss: float
    parts: dict[str, float]
    lr: float
    gradient: float
    taken: bool


def take_step(
    state: TrainingState,
    batch: TrainBatch,
    task: Task,
    losses: WeightedLosses,
    settings: TrainSettings,
    accelerator: Accelerator,
) -> StepResult:
    """Forward and backward over the batch's parts, clip, update, average."""
    # A pure function of the step, so that dropout in a resumed run draws what it would have drawn.
    seed_torch(settings.seed, state.step, accelerator.process_index)
    lr = learning_rate(state.step, settings.steps, settings.optimizer.lr, settings.schedule)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    loss, parts = accumulate_gradients(state, batch, task, losses, settings, accelerator)
    state.scaler.unscale_(state.optimizer)
    clip = settings.optimizer.clip
    gradient = float(torch.nn.utils.clip_grad_norm_(state.network.parameters(), clip if clip is not None else math.inf))
    scale = state.scaler.get_scale()  # 1 where nothing is scaled
    # With room to lower the scale, overflowing gradients only ask for that; a bad loss is bad in any precision.
    sound = math.isfinite(loss) and (math.isfinite(gradient) or scale > 1)
    taken = _everywhere(sound, accelerator)
    if taken:
        state.scaler.step(state.optimizer)
    else:
        _count_skip(state, batch, settings, loss, gradient)
    state.scaler.update()
    if taken and state.scaler.get_scale() >= scale:  # else the scaler left the weights as they were
        state.average.update_parameters(state.network)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return StepResult(loss, parts, lr, gradient, taken)


def accumulate_gradients(
    state: TrainingState,
    batch: TrainBatch,
    task: Task,
    losses: WeightedLosses,
    settings: TrainSettings,
    accelerator: Accelerator,
) -> tuple[float, dict[str, float]]:
    """Fill the gradients with the mean over the whole batch; several processes average at the last part."""
    count = settings.optimizer.accumulate
    weights = weights_at(state.step, settings.steps, settings.stages)
    total, parts = 0.0, dict.fromkeys(weights, 0.0)
    for index in range(count):
        part = batch.part(index, count) if count > 1 else batch
        last = index == count - 1
        with nullcontext() if last else accelerator.no_sync(state.wrapped):
            with autocast(settings, accelerator.device):
                predicted = task.predict(state.wrapped, part, state.step)
            loss, values = losses(predicted.image_BCHW, part.hr_BCHW, weights, predicted.reported)
            if state.adversary is not None:
                loss = loss + state.adversary.weigh(predicted.image_BCHW, state.step)
            state.scaler.scale(loss / count).backward()
        if state.adversary is not None:
            state.adversary.learn(predicted.image_BCHW.detach(), part.hr_BCHW, state.step)
        total += float(loss.detach()) / count
        for name, value in values.items():
            parts[name] += float(value) / count
    return total, parts


def _everywhere(sound: bool, accelerator: Accelerator) -> bool:
    """Whether the step is sound in every process: one that skipped alone would diverge from the others."""
    if accelerator.num_processes == 1:
        return sound
    mine = torch.tensor([1 if sound else 0], device=accelerator.device)
    return bool(torch.as_tensor(accelerator.gather(mine)).min() == 1)


def _count_skip(state: TrainingState, batch: TrainBatch, settings: TrainSettings, loss: float, gradient: float) -> None:
    state.skipped += 1
    if state.skipped >= settings.bad_batches:
        raise Refusal(
            f"{state.skipped} batches gave no finite loss (last: loss {loss}, gradient {gradient}, "
            f"items {', '.join(sorted(set(batch.items)))})",
            where=f"step {state.step}",
            cure="look at those items, lower optimizer.lr, or train in fp32",
        )
