"""A task and its settings -> a trained, judged and exported model. One loop for experts and for fusion."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from fusion.training.loop.accelerator import open_accelerator
from fusion.training.loop.checkpoint import keep_best, latest_checkpoint, load_checkpoint, save_checkpoint
from fusion.training.loop.estimate import tell_duration
from fusion.training.loop.finish import finish
from fusion.training.loop.initial_weights import load_initial_weights
from fusion.training.loop.journal import open_journals, refuse_missing
from fusion.training.loop.run_folder import open_run
from fusion.training.loop.state import TrainingState, new_state
from fusion.training.loop.step import StepResult, take_step
from fusion.training.losses.curriculum import losses_of
from fusion.training.sources.degraded import refuse_for_fusion
from fusion.training.sources.loader import Waiting, stream
from imaging.atomic import require_writable
from imaging.command import json_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from accelerate import Accelerator

    from fusion.training.loop.journal import Journal
    from fusion.training.loop.run_folder import RunFolder
    from fusion.training.losses.curriculum import WeightedLosses
    from fusion.training.settings import TrainSettings
    from fusion.training.tasks.task import Task

log = logging.getLogger(__name__)


def train(settings: TrainSettings, make_task: Callable[[int, int], Task], *, resume: bool = False) -> dict[str, Any]:
    """Build the task by `make_task(rank, world)`, run to the last step, return the summary."""
    refuse_missing(settings)
    require_writable(settings.run)
    refuse_for_fusion(settings)
    accelerator = open_accelerator(settings)
    losses = losses_of(settings).to(accelerator.device)
    with accelerator.main_process_first():
        # The first process measures the initial statistics; the others read its file.
        task = make_task(accelerator.process_index, accelerator.num_processes)
        # Before the run's folder is made: a file that does not fit leaves no folder behind.
        load_initial_weights(task, settings.network)
        folder = open_run(settings, task.source.fingerprint, resume=resume or not accelerator.is_main_process)
    state = new_state(task, settings, accelerator)
    latest = latest_checkpoint(folder.checkpoints) if resume else None
    if latest is not None:
        state.restore(load_checkpoint(latest))
        log.info("resumed after step %d", state.step)
    journals = open_journals(settings, folder, state.step) if accelerator.is_main_process else []
    if folder.prolonged:
        _note_prolonged(state, settings, folder, accelerator, journals)
    waiting = Waiting()
    try:
        tell_duration(state, task, losses, settings, accelerator)
        run_steps(state, task, losses, settings, accelerator, folder, journals, waiting)
        return finish(state, task, settings, accelerator, folder, waiting)
    finally:
        for journal in journals:
            journal.close()


def _note_prolonged(
    state: TrainingState, settings: TrainSettings, folder: RunFolder, accelerator: Accelerator, journals: list[Journal]
) -> None:
    """From here on the schedule is that of the longer run: rates and stages jump to where it would be."""
    log.warning(
        "prolonged to %d steps after step %d: learning rate and stages go on as those of a run of %d steps",
        *(settings.steps, state.step, settings.steps),
    )
    if accelerator.is_main_process:
        folder.record_prolonged(settings, state.step)
    for journal in journals:
        journal.scalars({"train/planned_steps": float(settings.steps)}, state.step)


def run_steps(
    state: TrainingState,
    task: Task,
    losses: WeightedLosses,
    settings: TrainSettings,
    accelerator: Accelerator,
    folder: RunFolder,
    journals: list[Journal],
    waiting: Waiting,
) -> None:
    """Every step from where the state is to the last."""
    batches = stream(
        task.source,
        range(state.step, settings.steps),
        workers=settings.data.workers,
        device=accelerator.device,
        waiting=waiting,
    )
    bar = tqdm(
        total=settings.steps, initial=state.step, unit="step", disable=not accelerator.is_main_process, mininterval=2
    )
    state.wrapped.train()
    with bar:
        for _, batch in batches:
            result = take_step(state, batch, task, losses, settings, accelerator)
            bar.update()
            if accelerator.is_main_process:
                _note(state, result, settings, journals, waiting, bar)
                _keep(state, task, settings, folder, journals)
            if _due(state.step, settings.validation.every, settings):
                accelerator.wait_for_everyone()


def _note(
    state: TrainingState,
    result: StepResult,
    settings: TrainSettings,
    journals: list[Journal],
    waiting: Waiting,
    bar: tqdm[NoReturn],
) -> None:
    """Scalars every `log.every` steps; a warning for each skipped batch."""
    if not result.taken:
        log.warning("step %d: loss %s, gradient %s: batch skipped", state.step, result.loss, result.gradient)
        return
    if state.step % settings.log.every and state.step != settings.steps:
        return
    rate = _steps_per_second(bar) * settings.data.batch
    bar.set_postfix_str(f"loss {result.loss:.5f}, {rate:.0f} patches/s, waits {waiting.share:.1%}", refresh=False)
    values = {f"loss/{name}": value for name, value in result.parts.items()}
    values |= {
        "loss/total": result.loss,
        "train/lr": result.lr,
        "train/gradient": result.gradient,
        "train/patches_per_second": rate,
        "train/data_wait_share": waiting.share,
        "train/skipped": float(state.skipped),
    }
    for journal in journals:
        journal.scalars(values, state.step)


def _steps_per_second(bar: tqdm[NoReturn]) -> float:
    """The bar's smoothed rate; before it has one, the mean since the start."""
    known = bar.format_dict
    return known["rate"] or (known["n"] - known["initial"]) / max(known["elapsed"], 1e-9)


def _keep(
    state: TrainingState, task: Task, settings: TrainSettings, folder: RunFolder, journals: list[Journal]
) -> None:
    """Validate and save when it is time; the validation comes first, so that a checkpoint knows the best."""
    if _due(state.step, settings.validation.every, settings):
        judge(state, task, settings, folder, journals)
    if _due(state.step, settings.checkpoint.every, settings):
        save_checkpoint(folder.checkpoints, state.step, state.to_dict(), settings.checkpoint)


def judge(
    state: TrainingState, task: Task, settings: TrainSettings, folder: RunFolder, journals: list[Journal]
) -> None:
    """Validate the averaged weights on whole images, print the table, and keep them if they are among the best."""
    network = state.average.module
    network.eval()
    table = task.validate(network)
    log.info("after step %d\n%s", state.step, table.text(task.judged))
    psnr, merit = table.mean(task.judged)[0], table.merit(task.judged)

    def write(path: Any) -> None:
        scores = {"psnr_y": json_number(psnr), "merit": json_number(merit)}
        task.export(path, network.state_dict(), {"step": state.step, **scores})

    state.best = keep_best(
        state.best, merit, state.step, most=settings.checkpoint.best, folder=folder.best, write=write
    )
    for journal in journals:
        scores = {f"val/{name}/psnr_y": score["psnr_y"] for name, score in table.as_dict().items()}
        journal.scalars({name: score for name, score in scores.items() if score is not None}, state.step)
        if settings.log.images:
            journal.images(task.pictures(network, settings.log.images), state.step)


def _due(step: int, every: int, settings: TrainSettings) -> bool:
    return step % every == 0 or step == settings.steps
