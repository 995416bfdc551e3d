"""A small model folder, the studio's parts around it, and the real command in a process with recorded connections."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

import infer
from fusion.studio.jobs.ensemble_cache import EnsembleCache, ModelSettings
from fusion.studio.jobs.job_queue import JobQueue, QueuedJob
from fusion.studio.jobs.result_store import ResultStore
from fusion.studio.jobs.upscaler import Upscaler, UpscaleRequest
from fusion.studio.uploads import Limits
from fusion.training.loop.journal import TensorBoard
from fusion.training.loop.run_folder import RunFolder
from tests.inference.parts import enlarge, ensemble_of, fusion_folder, photo, weights_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fusion.studio.jobs.result_view import ResultView

ROOT = Path(__file__).resolve().parents[2]
BOTH = ("tiny-a", "tiny-b")  # the experts of `model_settings`
_START_S = 280
# Imported first by that process (sitecustomize): connections beyond this machine are recorded and refused.
_RECORD_CONNECTIONS = """
import os, socket
open(os.environ["STUDIO_TEST_CALLS"] + "-recorded", "w").close()
_connect, _resolve = socket.socket.connect, socket.getaddrinfo
def _record(place):
    with open(os.environ["STUDIO_TEST_CALLS"], "a") as file:
        file.write(f"{place}\\n")
    raise OSError("no network in this test")
def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
        _record(address)
    return _connect(self, address)
def resolve(host, *args, **kwargs):
    if host not in ("127.0.0.1", "::1", "localhost", None):
        _record(host)
    return _resolve(host, *args, **kwargs)
socket.socket.connect, socket.getaddrinfo = connect, resolve
"""


def model_settings(folder: Path, **more: Any) -> ModelSettings:
    """Two small EDSR networks with features and a fusion of both with random weights, on the CPU."""
    experts = tuple(str(weights_file(folder, name, seed)) for seed, name in enumerate(("tiny-a", "tiny-b")))
    fusion_folder(folder, {"tiny-a": 16, "tiny-b": 16})
    return ModelSettings(str(folder), "cpu", experts, **more)


def make_upscaler(folder: Path, settings: ModelSettings | None = None, limits: Limits | None = None) -> Upscaler:
    """All parts but the page."""
    place = folder / "studio"
    place.mkdir()
    ensembles = EnsembleCache.of(settings or model_settings(folder / "model"), infer.build)
    return Upscaler(ensembles, ResultStore(), limits or Limits(), place)


def upscaler_of_functions(folder: Path) -> Upscaler:
    """Two experts that are plain functions of each pixel: any tiling gives the same."""
    ensemble = ensemble_of(bright=lambda lr: enlarge(lr) * 1.2, dark=lambda lr: enlarge(lr) * 0.7)
    place = folder / "studio"
    place.mkdir()
    return Upscaler(EnsembleCache(lambda _wanted, _precision: ensemble, ensemble.names), ResultStore(), Limits(), place)


def save_photo(path: Path, height: int = 24, width: int = 28, seed: int = 0) -> Path:
    """A small image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(height, width, seed=seed)).save(path)
    return path


def make_run(folder: Path, values: dict[str, list[float]], *, ended: bool = False) -> Path:
    """A run folder as train.py leaves it: event files, config, summary."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    run.config.write_text("task: fusion\n")
    journal = TensorBoard(run, 0)
    for tag, curve in values.items():
        for index, value in enumerate(curve):
            journal.scalars({tag: value}, 10 * index)
    journal.close()
    if ended:
        run.summary.write_text(json.dumps({"best_step": 20, "scores": {"<model>": {"psnr_y": 28.125}}}))
    return folder


def run_job(upscaler: Upscaler, request: UpscaleRequest) -> QueuedJob:
    """One job, here and now; what it raises comes through."""
    job = QueuedJob("test", lambda job: upscaler.run(request, job))
    job.work(job)
    return job


@contextmanager
def open_queue(capacity: int = 8) -> Iterator[JobQueue]:
    """A job queue, closed in the end."""
    queue = JobQueue(capacity)
    try:
        yield queue
    finally:
        queue.close()


@contextmanager
def serving(folder: Path, options: Sequence[object]) -> Iterator[str]:
    """`python -m fusion serve OPTIONS` on a free port; `folder`/calls lists its connections to elsewhere."""
    record = folder / "record"
    record.mkdir(parents=True)
    (record / "sitecustomize.py").write_text(_RECORD_CONNECTIONS)
    threads = str(torch.get_num_threads())  # sums in the same order as in this process
    environment = {
        **os.environ,
        "PYTHONPATH": str(record),
        "STUDIO_TEST_CALLS": str(folder / "calls"),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    command = [sys.executable, "-m", "fusion", "serve", "--port", "0", *map(str, options)]
    log_file = folder / "log_file"
    with log_file.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=log, stdout=log)
    try:
        yield _address(process, log_file)
    finally:
        process.terminate()
        process.wait(timeout=60)


def _address(process: subprocess.Popen[bytes], log_file: Path) -> str:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"studio: (http://\S+)", log_file.read_text())
        if found:
            return found.group(1)
        time.sleep(0.1)
    raise AssertionError(f"the studio did not start:\n{log_file.read_text()}")


def only(upscaler: Upscaler, job: QueuedJob) -> ResultView:
    """The one image that a job made."""
    assert job.status.failures == []
    (name,) = job.status.finished
    result = upscaler.results.get(name)
    assert result is not None
    return result


def need_gradio() -> None:
    """Skip what cannot run without the extra."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the extra 'studio' is not installed (gradio)")
