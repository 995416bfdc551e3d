"""`python -m fusion bench-inference --out FILE`: time, memory over image sizes, tiled against whole, through infer.py.

Everything goes through infer.py's command line and real files, so that what is measured is what users get: time and
memory in a process of its own, images in this one.
Axes: C colour, H and W of an output.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from spandrel.architectures.HAT import HAT

from benchmarks.inference.seams import compare
from fusion.network import ExpertSlot, FusionSettings, FusionSR
from fusion.network.save import FILE_NAME, save_model
from imaging.atomic import write_text
from imaging.command import DONE, CommandParser, output_file, run
from imaging.files import png_rows, read_raster
from imaging.paths import ROOT
from imaging.refusal import Refusal
from infer import command_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

PART = 256  # side of the photograph that large test pictures are made of
INFER = ROOT / "infer.py"


@dataclass(frozen=True)
class Run:
    """One run of infer.py."""

    peak_mb: float
    seconds: float  # of all processors
    wall: float
    document: dict[str, Any]  # with --json


def main(arguments: Sequence[str]) -> int:
    """Measure and write the tables."""
    parser = CommandParser(prog="python -m fusion bench-inference", description=__doc__)
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE", help="a Markdown file")
    parser.add_argument("--sizes", type=int, nargs="*", default=[512, 1024, 2048, 4096], help="sides for memory")
    parser.add_argument("--time", type=int, nargs="*", default=[64, 128, 256], help="sides to time the default on")
    parser.add_argument("--image", type=Path, help="an LR image for tiled against whole")
    parser.add_argument("--tile", type=int, default=192, help="tile size in LR pixels for it")
    parser.add_argument("--experts", default="edsr-s", help="each alone, tiled against whole; separated by commas")
    parser.add_argument("--model", type=Path, help="a fusion model with its own experts, too")
    words = parser.parse_args(arguments)
    odd = [size for size in words.sizes if size % PART or size <= 0] + [size for size in words.time if size <= 0]
    if odd:
        raise Refusal(f"{odd[0]} is no multiple of {PART}", where="--sizes", cure="give such sides, or none")
    lines = ["# Inference", "", f"Recorded {date.today().isoformat()} by", ""]
    lines += [f"    python -m fusion bench-inference {shlex.join(arguments)}", ""]
    with tempfile.TemporaryDirectory() as folder:
        if words.time:
            lines += time_table(words.time, Path(folder))
        if words.sizes:
            lines += memory_table(words.sizes, Path(folder))
        if words.image is not None:
            hat = small_hat(Path(folder) / "small-hat.safetensors")
            both = random_fusion(Path(folder) / "random-fusion", {"edsr-s": 48, hat.stem: 24})
            models = [("none", one) for one in (*words.experts.split(","), str(hat))] + [(str(both), f"edsr-s,{hat}")]
            models += [(str(words.model), "")] if words.model else []
            lines += tiling_table(words.image, models, words.tile, Path(folder))
    write_text(words.out, "\n".join(lines) + "\n")
    log.info("%s", words.out)
    return DONE


def time_table(sizes: Sequence[int], folder: Path) -> list[str]:
    """What users get who name no model: the shipped experts and their fusion."""
    rows: list[str] = []
    for size in sizes:
        image, output = folder / f"{size}.png", folder / f"{size}-out.png"
        with png_rows(image, height=size, width=size, channels=3) as write:
            write(photograph(size))
        done = run_infer("-i", image, "-o", output, "--json")
        times = f"{done.document['seconds']:.1f} | {done.wall:.1f} | {done.seconds:.1f}"
        rows.append(f"| {size}x{size} | {4 * size}x{4 * size} | {times} | {done.peak_mb:.0f} |")
    head = "| input | output | seconds of computing | with start-up | of all processors | peak memory, MB |"
    text = f"## Time\n\nThe shipped default, `infer.py -i IMAGE -o OUT`, on {torch.get_num_threads()} cores."
    return [text, "", head, "|---|---|---|---|---|---|", *rows, ""]


def memory_table(sizes: Sequence[int], folder: Path) -> list[str]:
    """Peak resident memory of the whole process, Python and torch included."""
    expert = tiny_expert(folder / "tiny.safetensors")
    rows: list[str] = []
    for size in sizes:
        image = folder / f"{size}.png"
        write_mosaic(image, size)
        done = run_infer(
            "-i", image, "-o", folder / f"{size}-out.png", "-t", 128, "--model", "none", "--experts", expert
        )
        output = folder / f"{size}-out.png"
        rows.append(
            f"| {size}x{size} | {4 * size}x{4 * size} | {done.peak_mb:.0f} | {done.seconds:.1f} "
            f"| {output.stat().st_size / 1e6:.0f} |"
        )
        output.unlink()
    head = "| input | output | peak memory, MB | seconds | file, MB |"
    text = "## Memory\n\nA tiny expert, tiles of 128; the resident peak of the process, Python and torch included."
    return [text, "", head, "|---|---|---|---|---|", *rows, ""]


def tiling_table(image: Path, models: Sequence[tuple[str, str]], tile: int, folder: Path) -> list[str]:
    """The same image in tiles and whole, as 16-bit files, compared in 8-bit grey levels."""
    rows: list[str] = []
    for model, experts in models:
        outputs = [folder / "whole.png", folder / "tiled.png"]
        document: dict[str, Any] = {}
        for size, output in zip((0, tile), outputs, strict=True):
            words = ["-i", image, "-o", output, "-t", size, "--depth", 16, "--model", model]
            document = infer_here(*words, *(["--experts", experts] if experts else []), "--json")
        whole, tiled = (read_raster(path)[0].levels_HWC.astype(np.float64) / 257 for path in outputs)
        margin, multiple = document["margin"], document["multiple"]
        found = compare(whole, tiled, tile=tile, margin=margin, multiple=multiple)
        name = ", ".join(Path(one).stem for one in experts.split(",")) if model == "none" else Path(model).stem
        seams = f"{found.at_seams:.4f} | {found.elsewhere:.4f} | {found.step:.4f}"
        rows.append(f"| {name} | {margin} | {found.greatest:.3f} | {seams} |")
    text = (
        f"## Tiled against whole\n\n{image.name}, tiles of {tile} LR pixels, in grey levels of 8 bits. Margin: LR"
        " pixels of context on each side.\nAt seams: over the ramps where tiles meet and 4 pixels beside them. Step:"
        " the mean jump along a whole seam, which an eye\ncould follow as a line; half a level is rounding. small-hat"
        " is a random window attention (two groups of windows of 16),\nrandom-fusion the whole fusion network with"
        " random weights over it and edsr-s."
    )
    head = "| experts or model | margin | greatest difference | rms at seams | rms elsewhere | greatest seam step |"
    return [text, "", head, "|---|---|---|---|---|---|", *rows, ""]


def run_infer(*words: object) -> Run:
    """Run infer.py as users do; its peak memory and processor time."""
    command = [sys.executable, str(INFER), *map(str, words)]
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            errors.seek(0)
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Refusal(f"infer.py failed ({' '.join(last)[:300]})", where=shlex.join(command), cure="run it alone")
        output.seek(0)
        printed = output.read()
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = usage.ru_utime + usage.ru_stime
    wall = time.perf_counter() - begun
    return Run(usage.ru_maxrss * unit / 1e6, seconds, wall, json.loads(printed) if printed else {})


def infer_here(*words: object) -> dict[str, Any]:
    """Run infer.py's command line in this process: what it prints with --json."""
    arguments = [str(word) for word in words]
    with redirect_stdout(io.StringIO()) as printed:
        code = run(command_line, arguments)
    if code != DONE:
        raise Refusal(f"infer.py ended with code {code}", where=shlex.join(arguments), cure="its own line says why")
    return json.loads(printed.getvalue())


def photograph(size: int) -> np.ndarray:
    """Smooth noise at several scales, uint8 (size, size, 3): compresses about as photographs do."""
    rng = np.random.default_rng(0)
    total = np.zeros((size, size, 3), np.float32)
    for scale in (4, 16, 64):
        small = rng.normal(0, 20, (max(2, size // scale), max(2, size // scale), 3)).astype(np.float32)
        total += cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(total + 128, 0, 255).astype(np.uint8)


def write_mosaic(path: Path, size: int) -> None:
    """One photograph over and over, a few rows at a time (`size` is a multiple of PART).

    This process must stay smaller than the one it measures: Linux counts its memory into the other's peak.
    """
    part = photograph(PART)
    with png_rows(path, height=size, width=size, channels=3) as rows:
        for _ in range(size // PART):
            rows(np.tile(part, (1, size // PART, 1)))


def tiny_expert(path: Path, width: int = 4) -> Path:
    """A weights file of the Compact architecture, two hidden convolutions of `width`: fast, and real to spandrel."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    save_file(
        {
            "body.0.weight": noise(width, 3, 3, 3),
            "body.0.bias": noise(width),
            "body.1.weight": noise(width),
            "body.2.weight": noise(width, width, 3, 3),
            "body.2.bias": noise(width),
            "body.3.weight": noise(width),
            "body.4.weight": 0.1 * noise(48, width, 3, 3),
            "body.4.bias": 0.1 * noise(48),
        },
        path,
    )
    return path


def small_hat(path: Path) -> Path:
    """A small random HAT: window attention with shifts and overlaps."""
    torch.manual_seed(0)
    network = HAT(
        img_size=64, embed_dim=24, depths=(2, 2), num_heads=(2, 2), window_size=16, compress_ratio=3,
        squeeze_factor=4, conv_scale=0.01, overlap_ratio=0.5, mlp_ratio=2, upscale=4, img_range=1.0,
        upsampler="pixelshuffle", resi_connection="1conv",
    )  # fmt: skip
    save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
    return path


def random_fusion(folder: Path, channels: Mapping[str, int]) -> Path:
    """A fusion model of full size whose no part is zero."""
    torch.manual_seed(0)
    slots = tuple(ExpertSlot(name=name, channels=count) for name, count in channels.items())
    model = FusionSR(FusionSettings(experts=slots))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    save_model(model, folder / FILE_NAME)
    return folder
