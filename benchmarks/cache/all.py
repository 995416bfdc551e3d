"""All measurements of the cache, side by side -> figures, and the Markdown that records them."""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.cache.overhead import measure_overhead
from benchmarks.cache.profiles import measure_errors, measure_sizes
from benchmarks.cache.reading import measure_reading
from benchmarks.cache.training import bench_training
from benchmarks.cache.training import in_markdown as training_in_markdown
from cache_tools.write.space import require_room
from imaging.atomic import write_text

_BYTES_PER_PIXEL = 9000  # of LR, for one item in both layouts, with room for the temporary copy


def bench(
    *, work: Path | None, items: int, size: tuple[int, int], patches: int, out: Path | None
) -> tuple[dict[str, Any], str]:
    """Run all four measurements in a folder that is removed afterwards."""
    load = os.getloadavg()[0]
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        place = Path(folder)
        require_room(place, items * size[0] * size[1] * _BYTES_PER_PIXEL)
        results = {
            "when": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "command": shlex.join(["python", "-m", "cache_tools", *sys.argv[1:]]),
            "machine": _machine(load),
            "bytes_per_lr_pixel": measure_sizes(place, size),
            "errors": measure_errors(place),
            "reading": measure_reading(place, items, size, patches),
            "overhead": measure_overhead(place, images=4, rounds=3),
        }
    text = in_markdown(results)
    if out is not None:
        write_text(out, text)
    return results, text


def training(
    *, work: Path | None, out: Path | None, images: int, patch: int, batch: int, steps: tuple[int, int]
) -> tuple[dict[str, Any], str]:
    """Cached against live training by full-size experts."""
    load = os.getloadavg()[0]
    results = bench_training(work=work, images=images, patch=patch, batch=batch, steps=steps)
    results |= {
        "when": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "-m", "cache_tools", *sys.argv[1:]]),
        "machine": _machine(load),
    }
    text = "\n".join([*_head(results, "Training"), training_in_markdown(results)])
    if out is not None:
        write_text(out, text)
    return results, text


def _machine(load: float) -> str:
    """Cores and memory in general words; a load above the number of cores means that other programs ran too."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}"
    return (
        f"{os.cpu_count()} CPU cores, {memory:.0f} GiB of memory, {torch.get_num_threads()} torch threads, {versions}; "
        f"load average when it began {load:.1f}"
    )


def in_markdown(results: dict[str, Any]) -> str:
    """The results file."""
    parts = (_head(results), _sizes(results), _reading(results), _overhead(results), _errors(results))
    return "\n".join(line for part in parts for line in part) + "\n"


def _head(results: dict[str, Any], title: str = "Cache") -> list[str]:
    return [f"# {title}", "", f"`{results['command']}`, {results['when']}.", "", f"{results['machine']}.", ""]


def _sizes(results: dict[str, Any]) -> list[str]:
    table = results["bytes_per_lr_pixel"]
    size = results["reading"]["lr_size"]
    lines = ["## Bytes per LR pixel, four experts, 796 channels", "", "Sizes of real files, without compression.", ""]
    lines += [f"| layout | whole image, LR {size} | region, LR 128x128 |", "|---|---|---|"]
    lines += [f"| {name} | {table['whole'][name]} | {table['region'][name]} |" for name in table["whole"]]
    return [*lines, ""]


def _reading(results: dict[str, Any]) -> list[str]:
    reading = results["reading"]
    baseline = reading["patches_per_second_pt"]
    lines = [
        "## Random 64x64 patches per second",
        "",
        f"{reading['items']} items of LR {reading['lr_size']}, one process, no look-ahead. Cold: the files are dropped"
        " from the page cache before every load (`.pt`) or before every batch of 8 (cache). A patch is LR, HR, four SR"
        " images and 796 feature channels.",
        "",
        "| layout | cold | warm | times `.pt`, cold | times `.pt`, warm |",
        "|---|---|---|---|---|",
        f"| `.pt` per image | {baseline['cold']:.2f} | {baseline['warm']:.2f} | 1 | 1 |",
    ]
    for name, rates in reading["patches_per_second_cache"].items():
        ratio = reading["ratio"][name]
        lines.append(
            f"| compact, {name} | {rates['cold']:.0f} | {rates['warm']:.0f} | {ratio['cold']} | {ratio['warm']} |"
        )
    return [*lines, ""]


def _overhead(results: dict[str, Any]) -> list[str]:
    overhead = results["overhead"]
    return [
        "## Extraction beside bare forwards",
        "",
        f"{overhead['images']} images of LR {overhead['lr_size']}; the four reference architectures at full width with"
        " one group of blocks each (the published ones are seven to twelve times deeper, so their overhead is smaller)."
        " Reading, quantising, writing, fsync and checking included.",
        "",
        "CPU seconds count all threads of the process and are not stretched by other load on the machine; the work of"
        " the cache that is hidden behind the forwards is in them too.",
        "",
        "| round | bare, s | extraction, s | bare, CPU s | extraction, CPU s |",
        "|---|---|---|---|---|",
        *(
            f"| {number} | {bare['wall']} | {whole['wall']} | {bare['cpu']} | {whole['cpu']} |"
            for number, (bare, whole) in enumerate(zip(overhead["bare"], overhead["extract"], strict=True), 1)
        ),
        f"| overhead | | {overhead['overhead_percent']['wall']} % | | **{overhead['overhead_percent']['cpu']} %** |",
        "",
    ]


def _errors(results: dict[str, Any]) -> list[str]:
    lines = [
        "## What each profile loses",
        "",
        "Features: relative L2 error, real architectures with random weights on photographs. SR images (bicubic): PSNR"
        " of the stored against the unrounded image, and the PSNR against HR that rounding costs.",
        "",
        "| profile | hat | drct | grl | edsr | SR, dB to unrounded | dB lost against HR |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, errors in results["errors"].items():
        features = errors["features"] or {}
        cells = [f"{features[one]:.2g}" if one in features else "-" for one in ("hat", "drct", "grl", "edsr")]
        exact = "exact" if errors["sr_db"] is None else errors["sr_db"]
        lines.append(f"| {name} | {' | '.join(cells)} | {exact} | {errors['sr_db_lost']} |")
    return [*lines, ""]
