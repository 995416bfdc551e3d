"""`python -m benchmarks.cluster.measure --out FILE`: the Ray engine beside none, a killed node, S3 beside a folder.

The expert waits instead of computing, as a CPU does while a GPU works: so that one machine can stand for several, and
what is measured is the engine and not how two networks share two cores. One worker is measured with an expert that
computes, too. Needs the extra `cluster-dev`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray  # pyright: ignore[reportMissingImports]
import torch

from cache_tools.convert.transfer import push
from cache_tools.read.dataset import CacheDataset
from cache_tools.storage.item_cache import FOLDER, SIZE
from imaging.atomic import write_text
from imaging.refusal import Refusal
from tests.cache.parts import make_cache, write_images
from tests.cluster.parts import NODE, end, kill_node, slow_expert, start, two_nodes, wait_until
from tests.cluster.s3 import s3_server

if TYPE_CHECKING:
    from collections.abc import Generator

_SECONDS = 1.0  # that the expert takes for an image
_LR, _READ_LR, _COMPUTE_LR = (32, 32), (128, 128), (192, 192)
_COMPUTING = "edsr-s"  # an expert that ships with the project
_GOAL = 5  # percent that the engine may cost at one worker
_PATCH, _BATCH = 64, 8


@dataclass(frozen=True)
class Extraction:
    """Seconds from the command to its end, and from its first item to its last, on the files' own clocks."""

    whole: float
    between: float


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster.measure")
    parser.add_argument("--out", type=Path, help="write the results to this Markdown file")
    parser.add_argument("--images", type=int, default=40)
    words = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        results = {"engine": _measure_engine(Path(folder) / "engine", words.images)}
        results |= {"storage": _measure_storage(Path(folder) / "storage", 24, 40)}
    text = _in_markdown(results, words.images, load)
    if words.out is not None:
        write_text(words.out, text)
    sys.stdout.write(text)


def _measure_engine(folder: Path, images: int) -> dict[str, Any]:
    folder.mkdir()
    hr = write_images(folder / "hr", [_LR] * min(images, 26))
    for number in range(26, images):  # write_images has names for 26
        (hr / f"more{number}.png").write_bytes((hr / f"{chr(97 + number % 26)}.png").read_bytes())
    command = ["-m", "cache_tools", "extract", "--hr", hr, *slow_expert(folder, seconds=_SECONDS), "--device", "cpu"]
    found = {"none": _extract(folder / "none", command)}
    for cluster in two_nodes():
        engine = [*command, "--engine", "ray", "--address", cluster.address, "--workers"]
        found["1 worker"] = _extract(folder / "one", [*engine, 1])
        found["2 workers"] = _extract(folder / "two", [*engine, 2])
        found["2 workers, one node killed"] = _extract(folder / "killed", [*engine, 2], cluster, images // 2)
        found |= _measure_computing(folder / "computing", min(images, 26), cluster)
    return {name: asdict(one) for name, one in found.items()}


def _measure_computing(folder: Path, images: int, cluster: Any) -> dict[str, Extraction]:
    """Without and with the engine in turns, the better of two each: what else the machine does is in it."""
    hr = write_images(folder / "hr", [_COMPUTE_LR] * images)
    command: list[object] = ["-m", "cache_tools", "extract", "--hr", hr, "--experts", _COMPUTING, "--device", "cpu"]
    engine = [*command, "--engine", "ray", "--address", cluster.address, "--workers", 1]
    none: list[Extraction] = []
    one: list[Extraction] = []
    for turn in range(2):
        none.append(_extract(folder / f"none-{turn}", command))
        one.append(_extract(folder / f"one-{turn}", engine))
    best = [min(found, key=lambda extraction: extraction.between) for found in (none, one)]
    return {"computing, none": best[0], "computing, 1 worker": best[1]}


def _extract(out: Path, command: list[object], cluster: Any = None, kill_at: int = 0) -> Extraction:
    begun = time.perf_counter()
    process = start(*command, "--out", out)
    if cluster is not None:
        wait_until(lambda: len(list(out.glob("items/*/*.h5"))) >= kill_at, 600)
        kill_node(cluster)
        cluster.add_node(**NODE)  # the worker's next place, as a cluster's autoscaler would bring one
    code, _, err = end(process, 1200)
    whole = time.perf_counter() - begun
    if code:
        raise Refusal(f"the extraction failed: {err[-500:]}", where=out, cure="see its message")
    times = sorted(path.stat().st_mtime for path in out.glob("items/*/*.h5"))
    return Extraction(round(whole, 2), round(times[-1] - times[0], 2))


def _measure_storage(folder: Path, images: int, batches: int) -> dict[str, Any]:
    """Random patches a second: from a folder, from S3 with an empty local cache, and with a full one."""
    folder.mkdir()
    local = make_cache(folder, [_READ_LR] * images)
    found: dict[str, Any] = {}
    with s3_server() as server, _environment(server.environment | {FOLDER: str(folder / "copies"), SIZE: "2"}):
        address = server.address("bench")
        begun = time.perf_counter()
        push(local, address)
        size = sum(path.stat().st_size for path in local.glob("items/*/*.h5"))
        found["push, MB/s"] = round(size / 1e6 / (time.perf_counter() - begun), 1)
        found["item, MB"] = round(size / 1e6 / images, 2)
        for name, root in (("folder", local), ("S3, cold", address), ("S3, warm", address), ("folder again", local)):
            server.faults.seen.clear()
            found[name] = {
                "patches_per_second": round(_read(root, batches), 1),
                "downloads": server.faults.count("GET", "/items/"),
            }
    return found


def _read(root: Path | str, batches: int) -> float:
    source = CacheDataset(root, patch=_PATCH, batch=_BATCH, seed=1)
    begun = time.perf_counter()
    for number, _ in enumerate(source, 1):
        if number == batches:
            break
    return batches * _BATCH / (time.perf_counter() - begun)


@contextmanager
def _environment(values: dict[str, str]) -> Generator[None]:
    before = dict(os.environ)
    os.environ |= values
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _in_markdown(results: dict[str, Any], images: int, load: float) -> str:
    engine, storage = results["engine"], results["storage"]
    command = shlex.join(["python", "-m", "benchmarks.cluster.measure", *sys.argv[1:]])
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    rows = [
        f"| {name} | {one['whole']} | {one['between']} | {_against(engine, name, 'between'):+.1f} % |"
        for name, one in engine.items()
    ]
    goal = _against(engine, "1 worker", "between")
    computing = _against(engine, "computing, 1 worker", "between")
    one, two = engine["1 worker"]["between"], engine["2 workers"]["between"]
    killed, perfect = engine["2 workers, one node killed"]["between"], 2 * (images - 1) / (images - 2)
    reading = [
        f"| {name} | {found['patches_per_second']} | {found['downloads']} |"
        for name, found in storage.items()
        if isinstance(found, dict)
    ]
    return "\n".join(
        [
            "# Several machines and object storage",
            "",
            f"`{command}`, {when}. {os.cpu_count()} CPU cores, Python {platform.python_version()}, torch "
            f"{torch.__version__}, ray {ray.__version__}; load average when it began {load:.1f}.",
            "",
            "## The engine",
            "",
            f"{images} images, an expert that waits {_SECONDS:g} s for each (as a CPU for a GPU), two Ray nodes on one "
            "machine. From the first item to the last: without the time to start, which the whole has. `computing`: "
            f"{_COMPUTING} on up to 26 images of {_COMPUTE_LR[0]}x{_COMPUTE_LR[1]}, the better of two runs in turns. "
            "Not measured: a network between nodes, more than two workers, GPUs, and the start of a cluster.",
            "",
            "| engine | whole command, s | first to last item, s | against none |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Goal: at most {_GOAL} % at one worker. {_verdict(goal)} with the waiting expert. "
            f"{_verdict(computing)} with {_COMPUTING}, whose worker shares the cores with driver, Ray's own processes "
            f"and whatever else runs. Of the whole commands, {_against(engine, '1 worker', 'whole'):+.1f} % and "
            f"{_against(engine, 'computing, 1 worker', 'whole'):+.1f} %: the worker starts after the driver.",
            "",
            f"1 to 2 workers: {one / two:.2f} times as fast, where {perfect:.2f} is perfect, since "
            "the first items of two come together. A node killed in the middle, and another added at "
            f"once, costs {killed - two:.1f} s: for noticing it, the items under way, a new worker's start.",
            "",
            "## Object storage",
            "",
            f"A real S3 server (moto) on the loopback behind the tests' proxy, items of {storage['item, MB']} MB, "
            f"random patches of {_PATCH}x{_PATCH}, {_BATCH} a batch, one process. Two of the downloads are parts, of a "
            f"header. Push: {storage['push, MB/s']} MB/s. Server and proxy are Python programs on the same cores: what "
            "is cold here says how many requests there are, not how fast S3 is. How far the two rows of the folder "
            "differ is what the other rows may be off by.",
            "",
            "| read from | patches a second | items downloaded |",
            "|---|---|---|",
            *reading,
            "",
            "```json",
            json.dumps(results, indent=1),
            "```",
            "",
        ]
    )


def _against(engine: dict[str, Any], name: str, kind: str) -> float:
    """Percent of time more than without the engine."""
    alone = engine["computing, none" if name.startswith("computing") else "none"][kind]
    return 100 * (engine[name][kind] / alone - 1)


def _verdict(percent: float) -> str:
    return f"{'Reached' if percent <= _GOAL else 'Missed'}: {percent:+.1f} %"


if __name__ == "__main__":
    main()
