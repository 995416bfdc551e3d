"""Full-size experts -> samples a second of training from a cache of them and of training with them running.

Both through `train.py --pace` on the same images: this room may import experts, that command trains.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from spandrel.architectures.DRCT import DRCT
from spandrel.architectures.GRL import GRL
from spandrel.architectures.HAT import HAT

from benchmarks.cache.networks import write_photographs
from cache_tools.write.extract import extract
from cache_tools.write.recipe import ExtractSettings
from experts.catalog import built_in_catalog
from experts.native.edsr import EDSR
from experts.open import open_experts
from imaging.paths import ROOT
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

FULL_SIZE = ("hat-l", "drct-l", "grl-b", "edsr-l")
CONTEXT = 16  # LR pixels by which a live crop is larger than the patch: 8 on each side
_ARCHITECTURES = {"HAT": HAT, "DRCT": DRCT, "GRL": GRL, "EDSR": EDSR}


def bench_training(
    *,
    work: Path | None,
    images: int,
    patch: int,
    batch: int,
    steps: tuple[int, int],
    weights: Sequence[Path] | None = None,
    config: Path = ROOT / "configs" / "fusion_x4.yaml",
) -> dict[str, Any]:
    """Write the networks (or take `weights`), extract a cache by them, time both ways; everything is removed after."""
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        place = Path(folder)
        files = [write_network(name, place) for name in FULL_SIZE] if weights is None else list(weights)
        side = patch + CONTEXT
        write_photographs(place, side, images)
        experts = open_experts([str(path) for path in files])
        begun = time.process_time()
        report = extract(ExtractSettings(out=place / "cache", hr=place / "hr"), experts)
        extraction = time.process_time() - begun
        if len(report.made) != images:
            raise Refusal(f"only {len(report.made)} of {images} images were extracted", where=place, cure="see the log")
        sizes = {one.name: sum(p.numel() for p in one.network.parameters()) for one in experts}  # pyright: ignore[reportAttributeAccessIssue]
        del experts
        pace = _pace(place, files, config, patch=patch, batch=batch, steps=steps)
    return {
        "experts": sizes,
        "images": images,
        "lr_size": side,
        "patch": patch,
        "batch": batch,
        "extraction_cpu_seconds": round(extraction, 1),
        **pace,
    }


def write_network(name: str, folder: Path) -> Path:
    """A catalog expert at its published size with seeded random weights, as a plain file of tensors."""
    spec = built_in_catalog().get(name)
    if spec.architecture not in _ARCHITECTURES:
        raise Refusal(f"'{name}' has architecture {spec.architecture}", where="--training", cure=f"give {FULL_SIZE}")
    torch.manual_seed(0)
    network = _ARCHITECTURES[spec.architecture](**spec.hyperparameters)
    found = sum(p.numel() for p in network.parameters())
    # No assert: the record claims this size, also where Python runs with -O.
    if spec.parameters not in (None, found):
        raise Refusal(
            f"has {found} parameters, published are {spec.parameters}",
            where=f"expert {name}",
            cure="correct the hyperparameters in experts/catalog.yaml",
        )
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous().clone() for key, tensor in network.state_dict().items()}, path)
    return path


def _pace(
    place: Path, files: Sequence[Path], config: Path, *, patch: int, batch: int, steps: tuple[int, int]
) -> dict[str, Any]:
    """What `train.py --pace` prints."""
    command = [sys.executable, "train.py", "--config", str(config), "--cache", str(place / "cache"), "--live"]
    command += ["--pace", ",".join(map(str, steps)), f"run={place / 'run'}", "data.workers=2", "data.hold_out=2"]
    command += [f"data.patch={patch}", f"data.batch={batch}", f"data.hr=[{place / 'hr'}]", "device=cpu"]
    command += [f"data.experts=[{','.join(map(str, files))}]"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)  # stderr keeps showing its progress
    if done.returncode != 0:
        raise Refusal("train.py failed", where=shlex.join(command), cure="run it alone")
    return json.loads(done.stdout)


def in_markdown(results: dict[str, Any]) -> str:
    """The body of the record; `benchmarks.cache.all` adds when and where."""
    cache, live = results["cache"], results["live"]
    sizes = ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in results["experts"].items())
    lines = [
        f"Experts with random weights ({sizes} parameters), which cost the same time as trained ones. A cache of"
        f" {results['images']} images of {results['lr_size']}x{results['lr_size']} LR pixels, profile compact with"
        f" features, made by the extraction itself in {results['extraction_cpu_seconds']:.0f} CPU seconds. Both ways"
        " train the fusion network of"
        f" configs/fusion_x4.yaml on patches of {results['patch']}x{results['patch']}, {results['batch']} a step, one"
        f" process and 2 loader workers; the experts' input of a live patch has 8 LR pixels more on each side.",
        "",
        "| | samples a second | CPU seconds a sample | waiting for data | steps | seconds |",
        "|---|---|---|---|---|---|",
        *(_row(name, one, results["batch"]) for name, one in (("from the cache", cache), ("experts running", live))),
        f"| **cache / live** | **{results['ratio']:.0f}x** | **{results['cpu_ratio']:.0f}x** | | | |",
        "",
        "CPU seconds are those of the training process; other load on the machine does not stretch them.",
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, pace: dict[str, Any], batch: int) -> str:
    rate, cpu = pace["samples_per_second"], pace["cpu_seconds"] / pace["steps"] / batch
    return f"| {name} | {rate:.4g} | {cpu:.2f} | {pace['wait_share']:.1%} | {pace['steps']} | {pace['seconds']:.1f} |"
