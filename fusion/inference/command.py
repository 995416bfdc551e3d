"""A request and an ensemble -> the whole run: plan, warn, compute, report; and the exit code."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fusion.budget.run import BudgetRunner
from fusion.inference import forecast
from fusion.inference.ensemble import EIGHTFOLD, Ensemble
from fusion.inference.input_check import warn_about
from fusion.inference.jobs import (
    ImageJob,
    RunResult,
    Sized,
    check_quality,
    find_unread,
    make_jobs,
    measure_jobs,
    part_of,
)
from fusion.inference.memory import effective_tile, settle_tile
from fusion.inference.options import Options
from fusion.inference.pipeline import Pipeline
from fusion.inference.refining import forecast_refinement, with_refiner
from fusion.inference.report.gallery import Gallery, write_report
from fusion.inference.report.provenance import make_manifest, read_manifest, verify
from fusion.inference.report.submission import EXTRA_DATA_ADVICE, Facts, check_set, pack, recorded_runtime, zip_names
from imaging.atomic import require_writable
from imaging.command import DONE, FAILURES_LISTED, print_json
from imaging.files import SUFFIXES, in_words
from imaging.names import counted
from imaging.refusal import Refusal
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from fusion.inference.memory import TileCost
    from fusion.inference.report.page import ReportImage
    from fusion.refinement.open import AnyRefiner

log = logging.getLogger(__name__)

REPORT, SUBMISSION = "report.html", "submission.zip"


@dataclass(frozen=True)
class Request:
    """What a command line requests; `input` and `output` may only be missing when a file is to be verified."""

    input: Path | None
    output: Path | None
    options: Options
    report: bool = False
    hr: Path | None = None
    submission: bool = False
    dry_run: bool = False
    as_json: bool = False
    verify: Path | None = None
    budget_model: Path | None = None
    shard: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class EnsembleFacts:
    """Of an ensemble, what a run tells of it; the tile is not compared, since it depends on a machine's free memory."""

    identity: Mapping[str, Any]
    names: tuple[str, ...]
    margin: int
    multiple: int
    scale: int
    device_type: str
    device: str = field(compare=False)
    tile: int = field(compare=False)

    @classmethod
    def of(cls, ensemble: Ensemble, tile: int) -> EnsembleFacts:
        """As it was opened here."""
        device = ensemble.device
        sizes = ensemble.margin, ensemble.multiple, ensemble.scale
        return cls(dict(ensemble.identity), ensemble.names, *sizes, device.type, str(device), tile)


@dataclass(frozen=True)
class Collected:
    """What a request comes to: images with their sizes, those that cannot be opened, the folder of all outputs."""

    sized: list[Sized]
    refused: list[tuple[ImageJob, Refusal]]
    folder: Path
    unread: list[Path]

    def check(self, request: Request, scale: int) -> None:
        """All that may refuse or warn comes before the first tile: a run may take hours."""
        if scale != SCALE and request.submission:
            what = f"holds images of four times their input, not {scale}"
            raise Refusal(what, where="--submission", cure="leave it out")
        require_writable(self.folder, make=True)
        if request.submission:
            assert request.input is not None
            zip_names([*(one.job.input for one in self.sized), *(job.input for job, _ in self.refused)], request.input)
        forecast.check_disk(part_of(self.sized, request.shard), self.folder, request.options.size, scale)
        warn_about([one.job.input for one in self.sized])


def carry_out(request: Request, ensemble: Ensemble, refiner: AnyRefiner | None = None) -> int:
    """The exit code: 0 done, 1 failures listed; what cannot be done at all is a Refusal."""
    ensemble = with_refiner(ensemble, refiner)
    if request.verify is not None:
        return _verify(request, request.verify, ensemble)
    collected = collect(request)
    sized, refused = collected.sized, collected.refused
    tile, cost = settle_tile(request.options, ensemble, sized)
    if request.dry_run:
        return _forecast(request, ensemble, part_of(sized, request.shard), refused, tile, cost, refiner)
    collected.check(request, ensemble.scale)
    runner = BudgetRunner.load(request.budget_model, ensemble, request.options) if request.budget_model else None
    gallery = Gallery(ensemble, request.hr, runner) if request.report else None
    result = Pipeline(ensemble, request.options, tile, gallery, runner, refiner).run(sized, refused, request.shard)
    if gallery is not None:
        gallery.add_skipped([one.job for one in sized], result)
    return finish(request, collected, result, EnsembleFacts.of(ensemble, tile), gallery.images if gallery else [])


def collect(request: Request) -> Collected:
    """The jobs of a request; one without any image that can be opened is refused."""
    assert request.input is not None
    assert request.output is not None
    jobs = make_jobs(request.input, request.output, request.options.ext, request.options.suffix)
    check_quality(jobs, request.options.quality)
    sized, refused = measure_jobs(jobs)
    if not sized:
        raise refused[0][1]
    unread = find_unread(request.input, request.output)
    if unread:
        log.warning("%s", in_words(unread, request.input))
    return Collected(sized, refused, _folder(request.input, request.output), unread)


def finish(
    request: Request, collected: Collected, result: RunResult, facts: EnsembleFacts, pages: Sequence[ReportImage]
) -> int:
    """The images are made: report, submission, what is printed, the exit code."""
    assert request.input is not None
    folder = collected.folder
    result.unread = collected.unread
    if result.failed and not request.input.is_dir():
        raise next(iter(result.failed.values()))
    extra: dict[str, Any] = {"tile": facts.tile, "margin": facts.margin, "multiple": facts.multiple}
    extra |= {"device": facts.device, **facts.identity}
    if request.report:
        path = write_report(folder / REPORT, pages, result, facts.tile, facts.device, facts.identity)
        extra["report"] = str(path)
    if request.submission:
        chosen = check_set(folder, request.input)
        # The clock of this run saw only what it made itself: with images of an earlier one, the records tell.
        seconds = result.seconds / max(1, len(result.written))
        seconds = recorded_runtime(list(chosen.values())) if result.skipped else seconds
        form = Facts.of_run(seconds, facts.device_type, facts.names)
        log.info("submission: readme.txt says extra data: %d (%s)", form.extra_data, EXTRA_DATA_ADVICE)
        extra["submission"] = str(pack(chosen, folder / SUBMISSION, form))
    _print_result(request, result, extra, folder)
    return FAILURES_LISTED if result.failed else DONE


def _folder(source: Path, target: Path) -> Path:
    """Where outputs, report and submission go."""
    is_file = not source.is_dir() and target.suffix.lower() in SUFFIXES and not target.is_dir()
    return target.parent if is_file else target


def _forecast(
    request: Request,
    ensemble: Ensemble,
    sized: Sequence[Sized],
    refused: Sequence[tuple[ImageJob, Refusal]],
    tile: int,
    cost: TileCost | None,
    refiner: AnyRefiner | None,
) -> int:
    turns = len(EIGHTFOLD) if request.options.tta else 1
    sized = Pipeline(ensemble, request.options, tile, refiner=refiner).outstanding(sized)
    document = forecast.forecast(sized, ensemble, tile, turns, cost, request.options.size)
    if refiner is not None:
        document["refine"] = forecast_refinement(refiner, sized)
    document["failed"] = {str(job.input): f"{one.what}; {one.cure}" for job, one in refused}
    if request.as_json:
        print_json(document)
    else:
        log.info("%s", forecast.as_text(document))
        for _, one in refused:
            log.error("%s", one)
    return FAILURES_LISTED if refused else DONE


def _verify(request: Request, image: Path, ensemble: Ensemble) -> int:
    options, silent = _options_to_verify(request, image, ensemble)
    check = verify(image, make_manifest("", ensemble.identity, options), request.input)
    if request.as_json:
        same = not check.differences
        found = {"differences": check.differences, "unchecked": check.unchecked, "from_record": silent}
        print_json({"file": image, "same": same, **found})
    else:
        for one in check.differences:
            log.error("%s: %s", image, one)
        if any(one.startswith(("experts", "fusion", "refine")) for one in check.differences):
            log.info("%s: if another --model, --experts or --refine made it, give them again: it records hashes", image)
        for one in check.unchecked:
            log.info("%s: not checked: %s", image, one)
        if not check.differences:
            named = ", ".join(f"{key}={value}" for key, value in silent.items())
            also = f", of which its record names {named}" if silent else ""
            log.info("%s: made by these weights and options%s", image, also)
    return FAILURES_LISTED if check.differences else DONE


def _options_to_verify(request: Request, image: Path, ensemble: Ensemble) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those given by hand are held against the record; on all others it is the record that tells, the second answer."""
    chosen = request.options
    if chosen.tile:
        chosen = replace(chosen, tile=effective_tile(chosen.tile, ensemble))
    given, default = chosen.manifest(), Options().manifest()
    written = read_manifest(image).get("options")
    written = dict[str, Any](written) if isinstance(written, dict) else {}
    silent = {key: value for key, value in written.items() if given.get(key) == default.get(key) != value}
    return given | silent, silent


def _print_result(request: Request, result: RunResult, extra: dict[str, Any], folder: Path) -> None:
    if request.as_json:
        print_json(result.document() | extra)
        return
    speed = f", {result.megapixels / result.seconds:.2f} MP/s" if result.written else ""
    log.info(
        "%s written to %s in %.1f s%s; %d skipped, %d failed%s",
        *(counted(len(result.written), "image"), folder, result.seconds, speed),
        *(len(result.skipped), len(result.failed)),
        f", {counted(len(result.unread), 'file')} not read" if result.unread else "",
    )
    for key in ("report", "submission"):
        if key in extra:
            log.info("%s: %s", key, extra[key])
    for refusal in result.failed.values():
        log.error("failed: %s", refusal)
