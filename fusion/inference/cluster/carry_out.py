"""A request and a way to open its ensemble -> the whole run on a Ray cluster, and the exit code."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from tqdm import tqdm

from fusion.inference.cluster.worker import ImageAnswer, ImageWork, InferWorker
from fusion.inference.command import EnsembleFacts, collect, finish
from fusion.inference.jobs import RunResult, megapixels_of, part_of, remove_temporaries
from fusion.inference.pipeline import BAR
from imaging.cluster.pool import WorkerPool
from imaging.cluster.schedule import WorkUnit
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fusion.inference.cluster.worker import OpenAll
    from fusion.inference.command import Collected, Request
    from fusion.inference.report.page import ReportImage
    from imaging.cluster.options import ClusterOptions
    from imaging.cluster.pool import Done

_DEPTH = 2  # images under way in a worker: more would only hold more of them in memory


def carry_out_on_ray(request: Request, open_all: OpenAll, options: ClusterOptions) -> int:
    """As `carry_out`; the images are the same, bit for bit, where the workers compute as this machine does."""
    for name, given in (("--verify", request.verify is not None), ("--dry-run", request.dry_run)):
        if given:
            raise Refusal("runs on this machine alone", where=name, cure="leave --engine out")
    collected = collect(request)
    make_worker = partial(InferWorker, request, collected.sized, open_all)
    with WorkerPool[EnsembleFacts, ImageWork, ImageAnswer](make_worker, options, _DEPTH) as pool:
        facts = pool.facts
        collected.check(request, facts.scale)
        mine = part_of(collected.sized, request.shard)
        began = time.perf_counter()
        remove_temporaries(one.job for one in collected.sized)
        units = [
            WorkUnit(one.job.item, ImageWork(one, facts.tile), megapixels_of(one, facts.scale), one.job.item)
            for one in mine
        ]
        total = sum(unit.size for unit in units)
        with tqdm(total=total, unit="MP", desc="upscale", disable=None, bar_format=BAR) as bar:
            result, pages = _gather(pool.run(units), collected, bar)
    result.seconds = time.perf_counter() - began
    return finish(request, collected, result, facts, pages)


def _gather(
    answers: Iterable[Done[ImageWork, ImageAnswer]], collected: Collected, bar: tqdm[NoReturn]
) -> tuple[RunResult, list[ReportImage]]:
    """Answers in the order in which they come -> one result and its pages in the order of the inputs."""
    parts: dict[str, ImageAnswer] = {}
    total = RunResult()
    for job, refusal in collected.refused:
        total.failed[job.input] = refusal
    for number, done in enumerate(answers, 1):
        bar.set_postfix_str(f"image {number}", refresh=False)
        bar.update(min(done.unit.size, bar.total - bar.n))  # not past it by rounding
        if done.answer is not None:
            parts[done.unit.name] = done.answer
        else:
            source = done.unit.work.sized.job.input
            cure = "give workers more memory (--cpus-per-worker, --gpus-per-worker), or use a smaller --tile"
            total.failed[source] = Refusal(done.lost, where=source, cure=cure)
    pages: list[ReportImage] = []
    for one in collected.sized:
        if one.job.item in parts:
            total.add(parts[one.job.item].result)
            pages += parts[one.job.item].report
    return total, pages
