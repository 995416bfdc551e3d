"""The images tab: uploads and controls -> a job in the queue, its status, and the viewer of its results."""

from __future__ import annotations

from collections.abc import Iterator  # noqa: TC003 - gradio reads the annotations of what it calls
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from fusion.inference.options import Options
from fusion.refinement.presets import COLOURS, Blend
from fusion.studio.jobs.ensemble_cache import PRECISIONS
from fusion.studio.jobs.upscaler import UpscaleRequest, UpscaleStatus
from fusion.studio.uploads import user_message
from fusion.studio.views.cards import progress_card, refused_card, viewer, welcome
from fusion.studio.views.events import EVENT_OPTIONS, POLL_S, cancel_handler, owner_of
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from fusion.refinement.presets import Colour
    from fusion.studio.jobs.job_queue import JobQueue, QueuedJob
    from fusion.studio.jobs.upscaler import Upscaler
    from imaging.device import Precision

NO_BUDGET, SHARE, LOSS = "none", "share of the cost", "maximum loss"


def build_upscale_tab(upscaler: Upscaler, queue: JobQueue) -> None:
    """The tab and what its buttons do."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=270):
            files = gr.File(label="Images", file_count="multiple", elem_id="images", height=150)
            with gr.Row():
                run = gr.Button("Upscale", variant="primary", elem_id="run", min_width=90)
                cancel = gr.Button("Cancel", elem_id="cancel", min_width=90)
            status = gr.HTML(elem_id="status")
            choices = [*_model_choices(upscaler), *_budget_choices(upscaler), *_refine_choices(upscaler)]
        with gr.Column(scale=5, min_width=320):
            results = gr.HTML(welcome(upscaler.ensembles.full), elem_id="results")

    def upscale(paths: list[str] | None, session: gr.Request, *chosen: Any) -> Iterator[tuple[Any, Any]]:
        try:
            request = _request_of(paths, *chosen)
            job = queue.submit(owner_of(session), lambda job: upscaler.run(request, job))
        except Refusal as refusal:
            yield refused_card(user_message(refusal)), gr.skip()
            return
        yield from _follow(job, queue)

    # Multiple: pressed twice, the second press is answered by the queue (refused), not swallowed by the page.
    run.click(upscale, [files, *choices], [status, results], trigger_mode="multiple", **EVENT_OPTIONS)
    cancel.click(cancel_handler(queue), None, None, **EVENT_OPTIONS)


def _model_choices(upscaler: Upscaler) -> list[Any]:
    names = list(upscaler.ensembles.names)
    return [
        gr.CheckboxGroup(names, value=names, label="Experts", elem_id="experts", visible=len(names) > 1),
        gr.Radio(list(PRECISIONS), value=PRECISIONS[0], label="Precision of the experts", elem_id="precision"),
        gr.Checkbox(label="Self-ensemble", info="Eight flips and rotations, eight times the work", elem_id="tta"),
    ]


def _budget_choices(upscaler: Upscaler) -> list[Any]:
    kind = gr.Radio(
        [NO_BUDGET, SHARE, LOSS],
        value=NO_BUDGET,
        label="Budget",
        visible=upscaler.ensembles.budget_model is not None,
        elem_id="budget",
    )
    share = gr.Slider(0.05, 1, value=0.5, step=0.05, label="Share of the full cost", visible=False)
    loss = gr.Slider(0, 0.5, value=0.02, step=0.01, label="Maximum predicted loss, dB", visible=False)
    kind.change(
        lambda chosen: (gr.update(visible=chosen == SHARE), gr.update(visible=chosen == LOSS)),
        kind,
        [share, loss],
        **EVENT_OPTIONS,
    )
    return [kind, share, loss]


def _refine_choices(upscaler: Upscaler) -> list[Any]:
    refiner = upscaler.ensembles.refiner
    available = refiner is not None
    title = refiner.preset.title if refiner is not None else ""
    colour = refiner.preset.colour if refiner is not None else COLOURS[0]
    refine = gr.Checkbox(label="Refine by diffusion", info=title, visible=available, elem_id="refine")
    details = [
        gr.Slider(0, 1, value=1, step=0.05, label="Strength", visible=False),
        gr.Radio(list(COLOURS), value=colour, label="Colour fix", visible=False),
        gr.Number(None, label="Seed (empty: not random, the mode of the VAE)", precision=0, minimum=0, visible=False),
    ]
    refine.change(lambda on: [gr.update(visible=on)] * len(details), refine, details, **EVENT_OPTIONS)
    return [refine, *details]


def _request_of(
    paths: list[str] | None,
    experts: list[str],
    precision: Precision,
    tta: bool,
    budget: str,
    share: float,
    loss: float,
    refine: bool,
    strength: float,
    colour: Colour,
    seed: float | None,
) -> UpscaleRequest:
    """The controls' values, in the order of `choices` on the page."""
    options = Options(
        tta=tta,
        budget=share if budget == SHARE else None,
        max_loss=loss if budget == LOSS else None,
        refine=Blend(strength, colour, None if seed is None else int(seed)) if refine else None,
    )
    return UpscaleRequest(tuple(map(Path, paths or ())), tuple(experts), precision, options)


def _follow(job: QueuedJob, queue: JobQueue) -> Iterator[tuple[Any, Any]]:
    """The status until the job is over; a new list of results whenever an image is finished."""
    listed = 0
    while True:
        over = job.finished.wait(POLL_S)
        # Finished images after the wait, or the last one could be missed.
        finished = list(job.status.finished) if isinstance(job.status, UpscaleStatus) else []
        # The viewer is sent only when it changes: a new one would lose the visitor's zoom and line.
        results = viewer(finished) if len(finished) > listed else gr.skip()
        listed = len(finished)
        yield progress_card(job, queue.jobs_before(job)), results
        if over:
            return
