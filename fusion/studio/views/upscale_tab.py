"""Dropped images and ticked boxes -> a job at the desk, its news, and the pictures when they are there."""

from __future__ import annotations

from collections.abc import Iterator  # noqa: TC003 - gradio reads the annotations of what it calls
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from fusion.inference.options import Options
from fusion.refinement.presets import COLOURS, Blend
from fusion.studio.jobs.ensemble_cache import PRECISIONS
from fusion.studio.jobs.work import Wish
from fusion.studio.uploads import sentence
from fusion.studio.views.cards import progress_card, refused_card, viewer, welcome
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from fusion.refinement.presets import Colour
    from fusion.studio.jobs.ensemble_cache import Precision
    from fusion.studio.jobs.job_queue import JobQueue, Ticket
    from fusion.studio.jobs.work import Studio

EVERYTHING, SHARE, LOSS = "everything", "a share of the cost", "a greatest loss"
_EVERY_S = 0.25  # between two looks at a running job
PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}


def build_upscale_tab(studio: Studio, desk: JobQueue) -> None:
    """The tab and what its buttons do."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=270):
            files = gr.File(label="Images", file_count="multiple", elem_id="images", height=150)
            with gr.Row():
                run = gr.Button("Enlarge", variant="primary", elem_id="run", min_width=90)
                cancel = gr.Button("Cancel", elem_id="cancel", min_width=90)
            news = gr.HTML(elem_id="news")
            choices = [*_model_choices(studio), *_budget_choices(studio), *_refine_choices(studio)]
        with gr.Column(scale=5, min_width=320):
            pictures = gr.HTML(welcome(studio.workshop.full), elem_id="pictures")

    def enlarge(paths: list[str] | None, request: gr.Request, *chosen: Any) -> Iterator[tuple[Any, Any]]:
        try:
            wish = _wish(paths, *chosen)
            ticket = desk.submit(owner_of(request), lambda ticket: studio.work(wish, ticket))
        except Refusal as refusal:
            yield refused_card(sentence(refusal)), gr.skip()
            return
        yield from _follow(ticket, desk)

    run.click(enlarge, [files, *choices], [news, pictures], trigger_mode="multiple", **PRIVATE)
    cancel.click(stopper(desk), None, None, **PRIVATE)


def _model_choices(studio: Studio) -> list[Any]:
    names = list(studio.workshop.names)
    return [
        gr.CheckboxGroup(names, value=names, label="Experts", elem_id="experts", visible=len(names) > 1),
        gr.Radio(list(PRECISIONS), value=PRECISIONS[0], label="Precision of the experts", elem_id="precision"),
        gr.Checkbox(label="Self-ensemble", info="Eight flips and rotations, eight times the work", elem_id="tta"),
    ]


def _budget_choices(studio: Studio) -> list[Any]:
    kind = gr.Radio(
        [EVERYTHING, SHARE, LOSS],
        value=EVERYTHING,
        label="Budget",
        visible=studio.workshop.budget_model is not None,
        elem_id="budget",
    )
    share = gr.Slider(0.05, 1, value=0.5, step=0.05, label="Share of the full cost", visible=False)
    loss = gr.Slider(0, 0.5, value=0.02, step=0.01, label="Greatest loss, dB as predicted", visible=False)
    kind.change(
        lambda chosen: (gr.update(visible=chosen == SHARE), gr.update(visible=chosen == LOSS)),
        kind,
        [share, loss],
        **PRIVATE,
    )
    return [kind, share, loss]


def _refine_choices(studio: Studio) -> list[Any]:
    refiner = studio.workshop.refiner
    there = refiner is not None
    title = refiner.preset.title if refiner is not None else ""
    colour = refiner.preset.colour if refiner is not None else COLOURS[0]
    refine = gr.Checkbox(label="Refine by diffusion", info=title, visible=there, elem_id="refine")
    details = [
        gr.Slider(0, 1, value=1, step=0.05, label="Strength", visible=False),
        gr.Radio(list(COLOURS), value=colour, label="Colour fix", visible=False),
        gr.Number(None, label="Seed; empty: the mode, no chance in it", precision=0, minimum=0, visible=False),
    ]
    refine.change(lambda on: [gr.update(visible=on)] * len(details), refine, details, **PRIVATE)
    return [refine, *details]


def _wish(
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
) -> Wish:
    """The controls' values, in the order in which they stand on the page."""
    options = Options(
        tta=tta,
        budget=share if budget == SHARE else None,
        max_loss=loss if budget == LOSS else None,
        refine=Blend(strength, colour, None if seed is None else int(seed)) if refine else None,
    )
    return Wish(tuple(map(Path, paths or ())), tuple(experts), precision, options)


def _follow(ticket: Ticket, desk: JobQueue) -> Iterator[tuple[Any, Any]]:
    """News until the job is over; the viewer anew whenever an image is finished."""
    seen = 0
    while True:
        over = ticket.finished.wait(_EVERY_S)
        finished = list(ticket.news.finished) if ticket.news is not None else []
        shown = viewer(finished) if len(finished) > seen else gr.skip()
        seen = len(finished)
        yield progress_card(ticket, desk.ahead(ticket)), shown
        if over:
            return


def stopper(desk: JobQueue) -> Any:
    """What the Cancel buttons call."""

    def stop(request: gr.Request) -> None:
        desk.stop(owner_of(request))

    return stop


def owner_of(request: gr.Request) -> str:
    """One open page of one visitor."""
    return str(request.session_hash)
