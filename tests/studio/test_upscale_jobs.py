"""Jobs of the studio: a message for bad input, equal names, cancelling, progress, the oldest results deleted."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fusion.inference.options import Options
from fusion.studio.jobs.job_queue import JobCancelled, QueuedJob
from fusion.studio.jobs.progress import EnsembleProgress
from fusion.studio.jobs.result_store import ResultStore
from fusion.studio.jobs.upscaler import UpscaleRequest
from fusion.studio.uploads import Limits
from imaging.refusal import Refusal
from tests.inference.parts import pixels
from tests.studio.parts import BOTH, make_upscaler, only, run_job, save_photo, upscaler_of_functions


def test_bad_files_get_a_message_and_the_rest_is_done(tmp_path: Path) -> None:
    upscaler = make_upscaler(tmp_path, limits=Limits(megabytes=0.05, pixels=4000, images=6))
    empty, junk, cut, large, heavy = (
        tmp_path / "secret" / f"{one}.png" for one in ("e", "junk", "cut", "large", "heavy")
    )
    fine = save_photo(tmp_path / "secret" / "fine.png")
    empty.write_bytes(b"")
    junk.write_bytes(b"<script>alert(1)</script>")
    cut.write_bytes(fine.read_bytes()[:-200])
    save_photo(large, 100, 41)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (150, 150, 3), np.uint8)).save(heavy)
    status = run_job(upscaler, UpscaleRequest((empty, junk, cut, large, heavy, fine), BOTH, "fp32", Options())).status
    assert len(status.finished) == 1
    assert sorted(one.partition(":")[0] for one in status.failures) == [
        "cut.png",
        "e.png",
        "heavy.png",
        "junk.png",
        "large.png",
    ]
    messages = "\n".join(status.failures)
    for words in ("zero bytes", "is not an image", "41x100, more than the 4,000 pixels", "MB, more than the 0.05 MB"):
        assert words in messages
    assert "secret" not in messages
    assert not list(upscaler.folder.rglob("*.tmp.*"))
    with pytest.raises(Refusal, match="7 images are more than 6"):
        run_job(upscaler, UpscaleRequest((fine,) * 7, BOTH, "fp32", Options()))
    with pytest.raises(Refusal, match="no image was given"):
        run_job(upscaler, UpscaleRequest((), BOTH, "fp32", Options()))
    with pytest.raises(Refusal, match="no expert is chosen"):
        run_job(upscaler, UpscaleRequest((fine,), (), "fp32", Options()))
    with pytest.raises(Refusal, match="no precision"):
        run_job(upscaler, UpscaleRequest((fine,), BOTH, "int1", Options()))


def test_equal_names_do_not_meet(tmp_path: Path) -> None:
    upscaler = make_upscaler(tmp_path)
    twins = [save_photo(tmp_path / str(number) / "same.png", seed=number) for number in (1, 2)]
    status = run_job(upscaler, UpscaleRequest(tuple(twins), BOTH, "fp32", Options())).status
    first, second = (upscaler.results.get(name) for name in status.finished)
    assert first is not None
    assert second is not None
    assert first.output.name == second.output.name == "same.png"
    assert (pixels(first.output) != pixels(second.output)).any()


def test_cancelling_ends_between_two_calls_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler = upscaler_of_functions(tmp_path)
    source = save_photo(tmp_path / "photo.png", 80, 80)
    job = QueuedJob("me", lambda _: None)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            job.cancel()
        QueuedJob.check(job)

    monkeypatch.setattr(job, "check", check)
    with pytest.raises(JobCancelled):
        upscaler.run(UpscaleRequest((source,), ("bright", "dark"), "fp32", Options(tile=24)), job)
    assert job.status.finished == []
    assert [path for path in upscaler.folder.rglob("*") if path.is_file()] == []
    assert threading.active_count() < 20


def test_progress_counts_every_call(tmp_path: Path) -> None:
    upscaler = upscaler_of_functions(tmp_path)
    source = save_photo(tmp_path / "photo.png", 80, 80)
    job = run_job(upscaler, UpscaleRequest((source,), ("bright", "dark"), "fp32", Options(tile=24)))
    progress: EnsembleProgress = job.status.progress
    tiles = only(upscaler, job).seen["tiles"]
    assert tiles > 1
    assert {name: (one.done, one.expected) for name, one in progress.stages.items()} == {
        "bright": (tiles, tiles),
        "dark": (tiles, tiles),
        "fusion": (tiles, tiles),
    }
    assert all(one.seconds > 0 for one in progress.stages.values())


def test_the_result_store_deletes_the_oldest(tmp_path: Path) -> None:
    upscaler = make_upscaler(tmp_path)
    small = ResultStore(megapixels=0.025)
    source = save_photo(tmp_path / "photo.png")
    result = [only(upscaler, run_job(upscaler, UpscaleRequest((source,), BOTH, "fp32", Options()))) for _ in range(3)]
    names = [small.add(one) for one in result]
    assert [small.get(name) is not None for name in names] == [False, True, True]
    assert [one.folder.exists() for one in result] == [False, True, True]
    assert len(set(names)) == 3
    assert small.get("../../etc/passwd") is None
