"""The command line of `python -m cache_tools` -> parsed options, and options -> settings and experts."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cache_tools.format.location import parse_location, parse_target
from cache_tools.format.schema import PROFILES
from cache_tools.storage.item_cache import add_local_cache_arguments
from cache_tools.write.recipe import ExtractSettings, keeps_features
from experts.words import split_words
from imaging.cluster.options import add_engine_arguments
from imaging.command import CommandParser, output_file, parse_shard
from imaging.device import AUTO, choose_device
from imaging.scale import SCALE, SCALES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from experts.spec import Expert


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(prog="python -m cache_tools", description="Run the experts once and keep their outputs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_plan, _add_extract, _add_info, _add_verify, _add_merge, _add_repack, _add_transfers):
        add(commands)
    _add_imports(commands)
    _add_bench(commands)
    return parser.parse_args(arguments)


# The type of add_subparsers' result, which argparse does not export.
Commands = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]


def _command(commands: Commands[CommandParser], name: str, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary)
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def _add_plan(commands: Commands[CommandParser]) -> None:
    parser = _command(commands, "plan", "forecast bytes, files, time and free space, before anything runs")
    _image_options(parser)
    _expert_options(parser)
    parser.add_argument("--no-timing", action="store_true", help="do not run the experts on a sample")
    add = parser.add_argument_group("on many machines: also DF2K and LSDIR, with what is assumed").add_argument
    add("--workers", type=int, metavar="N", help="forecast for so many workers")
    add("--gpu", metavar="NAME", help="of each worker: h100, a100, ...; estimated from counted operations")
    add("--rate", type=float, metavar="S", help="measured instead: seconds of a worker for a million LR pixels")


def _add_extract(commands: Commands[CommandParser]) -> None:
    parser = _command(commands, "extract", "run the experts once and keep their outputs; resumable")
    _image_options(parser)
    _expert_options(parser)
    parser.add_argument("--batch", type=int, default=1, help="images of equal size to run together")
    parser.add_argument("--sequential", action="store_true", help="hold one expert in memory at a time")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="make the I-th of N parts (0 to N-1)")
    add_engine_arguments(parser)


def _add_info(commands: Commands[CommandParser]) -> None:
    parser = _command(commands, "info", "what a cache holds, where it came from, how good each expert is")
    _cache_argument(parser)
    parser.add_argument("--score", type=int, default=100, metavar="ITEMS", help="items to measure PSNR on, 0 for none")


def _add_verify(commands: Commands[CommandParser]) -> None:
    parser = _command(commands, "verify", "find damaged, missing and foreign items")
    _cache_argument(parser)
    depth = parser.add_mutually_exclusive_group()
    depth.add_argument("--quick", action="store_true", help="headers, chunk tables and sizes (the default)")
    depth.add_argument("--full", action="store_true", help="every chunk's crc32 as well")
    parser.add_argument("--quarantine", action="store_true", help="move damaged items aside, to be made again")


def _cache_argument(parser: argparse.ArgumentParser, name: str = "cache", nargs: str | None = None) -> None:
    parser.add_argument(name, type=parse_location, nargs=nargs, help="a folder, or an address: s3://BUCKET/CACHE")
    add_local_cache_arguments(parser)


def _add_transfers(commands: Commands[CommandParser]) -> None:
    push = _command(commands, "push", "copy a cache to object storage or hf://datasets/USER/NAME; resumable")
    push.add_argument("cache", type=parse_location)
    push.add_argument("address", type=parse_location)
    pull = _command(commands, "pull", "copy a cache from object storage into a folder; resumable")
    pull.add_argument("address", type=parse_location)
    pull.add_argument("cache", type=parse_target)


def _add_merge(commands: Commands[CommandParser]) -> None:
    parser = _command(commands, "merge", "unite shards of one recipe, or join different experts over the same images")
    _cache_argument(parser, "caches", nargs="+")
    parser.add_argument("--out", type=parse_target, required=True)


def _add_repack(commands: Commands[CommandParser]) -> None:
    parser = _command(commands, "repack", "rewrite in a smaller profile, with fewer experts or other compression")
    _cache_argument(parser)
    parser.add_argument("--out", type=parse_target, required=True)
    parser.add_argument("--profile", choices=list(PROFILES))
    parser.add_argument("--experts", type=_names, help="experts to keep, in order: a,b,c")
    parser.add_argument("--compress", choices=("none", "gzip", "zstd"))


def _add_imports(commands: Commands[CommandParser]) -> None:
    images = _command(commands, "import-images", "folders of a model's images -> a cache with an expert per folder")
    images.add_argument("folders", nargs="+", metavar="[NAME=]FOLDER")
    images.add_argument("--scale", type=int, choices=SCALES, default=SCALE, help="of these images to LR; default 4")
    _image_options(images, profile="images")
    tensors = _command(commands, "import-pt", "per-image .pt files (lr, hr, expert_imgs, expert_feats) -> a cache")
    tensors.add_argument("folder", type=Path)
    tensors.add_argument("--out", type=parse_target, required=True)
    _format_options(tensors, "compact")


def _add_bench(commands: Commands[CommandParser]) -> None:
    parser = _command(commands, "bench", "measure bytes, reading speed, extraction overhead and errors")
    parser.add_argument("--out", type=output_file, help="also write the results to this Markdown file")
    parser.add_argument("--work", type=Path, default=None, help="folder for the bench's files (several GB; removed)")
    parser.add_argument("--items", type=int, default=6, help="images in the reading benchmark")
    parser.add_argument("--size", type=_size, default=(339, 510), metavar="HxW", help="their LR size")
    parser.add_argument("--patches", type=int, default=200, help="patches to read, cold and warm")
    parser.add_argument(
        "--training", action="store_true", help="instead: training from a cache of full-size experts against live"
    )
    parser.add_argument("--patch", type=int, default=48, help="LR side of the patches trained on (with --training)")
    parser.add_argument("--batch", type=int, default=2, help="patches a step (with --training)")
    parser.add_argument(
        "--steps", type=int, nargs=2, default=(40, 1), metavar=("CACHED", "LIVE"), help="steps (with --training)"
    )


def _image_options(parser: argparse.ArgumentParser, profile: str = "compact") -> None:
    parser.add_argument("--hr", type=Path, help="folder of high-resolution images")
    parser.add_argument("--lr", type=Path, help="folder of low-resolution images; without it they are made from HR")
    parser.add_argument("--out", type=parse_target, required=True, help="the cache's folder, or s3://BUCKET/CACHE")
    _format_options(parser, profile)
    parser.add_argument("--no-features", action="store_true", help="SR images only (the profile `images`)")
    parser.add_argument(
        "--regions", type=int, default=0, metavar="N", help="N sampled regions per image, not all of it"
    )
    parser.add_argument("--region-size", type=int, default=128, help="side of a region in LR pixels")
    parser.add_argument("--context", type=int, default=16, help="LR pixels around a region that the experts also see")
    parser.add_argument("--dihedral", action="store_true", help="also the seven flips and rotations, run exactly")
    parser.add_argument("--seed", type=int, default=0, help="decides where regions lie")


def _format_options(parser: argparse.ArgumentParser, profile: str) -> None:
    parser.add_argument("--profile", choices=list(PROFILES), default=profile)
    parser.add_argument("--compress", choices=("none", "gzip", "zstd"), default="none")


def _expert_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--experts",
        type=split_words,
        required=True,
        help="catalog names, weights files, code:net.py:Net:weights.pth or images:FOLDER, as a,b,c",
    )
    catalog_help = "your own catalog of experts, added to the built-in one"
    parser.add_argument("--catalog", "--config", dest="config", type=Path, metavar="FILE", help=catalog_help)
    parser.add_argument("--trust-code", action="store_true", help="run the Python file of a code: expert")
    parser.add_argument("--device", default=AUTO, help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--tile", type=int, default=0, help="run larger images in tiles of this many LR pixels")


def settings_of(options: argparse.Namespace) -> ExtractSettings:
    """Options -> settings."""
    return ExtractSettings(
        out=options.out,
        hr=options.hr,
        lr=options.lr,
        profile="images" if options.no_features else options.profile,
        compression=options.compress,
        regions=options.regions,
        region_size=options.region_size,
        context=options.context,
        dihedral=options.dihedral,
        batch=getattr(options, "batch", 1),
        seed=options.seed,
    )


def openers_of(options: argparse.Namespace) -> list[Callable[[], Expert]]:
    """One function per named expert, which opens it when called: for holding one in memory at a time."""

    def opener(name: str) -> Callable[[], Expert]:
        return lambda: _open(options, [name])[0]

    return [opener(name) for name in options.experts]


def experts_of(options: argparse.Namespace) -> list[Expert]:
    """All named experts, opened."""
    return _open(options, options.experts)


def _open(options: argparse.Namespace, names: Sequence[str]) -> list[Expert]:
    from experts.open import open_experts  # imports forty architectures: only for commands that run experts

    device = choose_device(options.device)
    return open_experts(
        names,
        device=device,
        precision=options.precision,
        tile=options.tile,
        config=options.config,
        features="find" if keeps_features(settings_of(options)) else "none",
        trust_code=options.trust_code,
    )


def rank_and_world(shard: str) -> tuple[int, int]:
    """`--shard I/N` and the launcher's RANK and WORLD_SIZE, together."""
    part, parts = parse_shard(shard)
    # Both multiply: a scheduler's shard may itself be started by torchrun.
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return part * world + rank, parts * world


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width)
