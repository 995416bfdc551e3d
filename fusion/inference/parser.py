"""`infer.py`'s command line -> the request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from PIL import ImageColor

from fusion.inference.command import Request
from fusion.inference.jobs import AUTO
from fusion.inference.model_selection import DEFAULT
from fusion.inference.options import Options, OutputSize
from fusion.inference.report.provenance import recorded_precision
from fusion.refinement.native.run import DEFAULT_SEED
from fusion.refinement.presets import COLOURS, REFINERS, Blend, NativePreset, preset_of
from imaging.cluster.options import LOCAL, add_engine_arguments
from imaging.command import parse_shard
from imaging.device import Precision
from imaging.files import WRITTEN
from imaging.refusal import Refusal

if TYPE_CHECKING:
    import argparse

    from fusion.inference.source import Rgb
    from imaging.files import Depth

MAX_SIDE = 1_000_000  # pixels; formats have limits of their own
_DEPTHS: dict[str, Depth | None] = {AUTO: None, "8": 8, "16": 16}


def _ending(text: str) -> str:
    """`.JPG` -> `jpg`."""
    return text.lstrip(".").lower()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Every option, in groups; -i, -o, -n and -t are as in BasicSR and Real-ESRGAN."""
    add = parser.add_argument_group("images").add_argument
    add("-i", "--input", type=Path, metavar="IN", help="an image, or a folder of images (recursive)")
    add("-o", "--output", type=Path, metavar="OUT", help="a folder, or for one image a file")
    formats = [AUTO, *sorted(suffix[1:] for suffix in WRITTEN)]
    add("--ext", type=_ending, choices=formats, default=AUTO, help="format of the outputs; auto: that of each input")
    add("--suffix", default="", help="added to each output's name")
    add("--depth", choices=list(_DEPTHS), default=AUTO, help="bits per channel; auto: as the input")
    add(
        "-s",
        "--outscale",
        type=float,
        metavar="F",
        help="times the input's size; default 4; reduced or enlarged from 4",
    )
    add("--width", type=int, metavar="PX", help="of the outputs; the height follows")
    add("--height", type=int, metavar="PX", help="of the outputs; with --width: what fits into both")
    add("--max-side", type=int, metavar="PX", help="no output side longer than this")
    add("--shard", metavar="I/N", help="make the I-th of N parts of the folder (0 to N-1), for schedulers")
    add("--background", metavar="COLOUR", help="lay transparent images upon white, '#20a0ff', ...: for JPEG and BMP")
    add("--quality", type=int, metavar="N", help="of JPEG, WebP and AVIF, 1 to 100")
    add("--strip-metadata", action="store_true", help="leave EXIF (date, camera, GPS) and XMP out")
    add("--skip-existing", action="store_true", help="leave outputs alone that these weights and options made")
    add = parser.add_argument_group("model").add_argument
    add("-n", "--model", default=DEFAULT, help="default, strong, none, a folder, a file, or a name on the Hub")
    add("--experts", help="names, files, code:... or images:FOLDER, as a,b,c; any of those the model knows")
    add("--catalog", "--config", dest="config", type=Path, metavar="FILE", help="a YAML file with further experts")
    add(
        "--trust-code",
        action="store_true",
        help="run the Python file of an expert that is given as code:...",
    )
    add("--device", help="cpu, cuda, cuda:1, mps; cuda where there is one")
    add(
        "--precision",
        choices=[AUTO, *get_args(Precision)],
        default=AUTO,
        help="auto: bf16 where a model that ships meets a processor with instructions for it, else fp32",
    )
    add("--compile", action="store_true", help="torch.compile the experts; on a CPU that takes many minutes")
    add = parser.add_argument_group("computing").add_argument
    tile_help = "tile in LR pixels; auto by memory; 0: whole images (a refiner has its own tiles)"
    add("-t", "--tile", default=AUTO, metavar="auto|N|0", help=tile_help)
    add("--tta", action="store_true", help="mean over eight flips and rotations: eight times the work")
    add("--budget", type=float, metavar="SHARE", help="share of the experts' full cost to spend, 0 to 1")
    add("--max-loss", type=float, metavar="DB", help="spend as little as costs no more than this, as predicted")
    add("--budget-model", "--budget-head", type=Path, metavar="FILE", help="instead of the model's own budget.json")
    add = parser.add_argument_group("refinement by a diffusion model (perception against fidelity)").add_argument
    add("--refine", metavar="NAME", help=f"{' or '.join(REFINERS)}; needs the extra 'diffusion'")
    add(
        "--refine-model",
        metavar="DIR|ID",
        help="the base model: a folder as diffusers writes it, or a Hub id; native: a file",
    )
    add("--refine-lora", type=Path, metavar="DIR", help="the method's LoRA files and prompt tensors")
    add("--refine-strength", type=float, metavar="S", help="0: fused image untouched; 1 (default): refined image")
    add("--refine-colour", choices=COLOURS, help="colour fix; default: the preset's")
    add(
        "--refine-seed",
        type=int,
        metavar="N",
        help="draw from the VAE's posterior, default its mode; native: other texture, 0",
    )
    add_engine_arguments(parser)
    add = parser.add_argument_group("reporting").add_argument
    add("--report", action="store_true", help="write OUT/report.html")
    add("--hr", type=Path, metavar="DIR", help="the true images: the report then has PSNR and SSIM")
    add("--submission", action="store_true", help="pack OUT/submission.zip, see `python -m fusion submit`")
    add("--dry-run", action="store_true", help="print the forecast, write nothing")
    add("--json", action="store_true", help="print one JSON document on stdout")
    add("--verify", type=Path, metavar="FILE", help="check whether an output came from these weights and options")


def precision_of(words: argparse.Namespace) -> Precision | None:
    """`auto` is what an image to verify was made in, fp32 where machines must agree, else None: the model's choice."""
    if words.precision != AUTO:
        return words.precision
    if words.verify is not None:
        return recorded_precision(words.verify)
    return "fp32" if words.submission or words.engine != LOCAL else None


def request_of(words: argparse.Namespace) -> Request:
    """Check the options against each other."""
    if words.verify is None and (words.input is None or words.output is None):
        raise Refusal("needs -i IN and -o OUT", where="command line", cure="see python infer.py --help")
    if words.hr is not None and not words.report:
        raise Refusal("--hr is only read for a report", where="command line", cure="add --report")
    chosen = [one for one in (words.budget, words.max_loss) if one is not None]
    if len(chosen) == 2 or (words.budget_model and not chosen):
        cure = "give either --budget SHARE or --max-loss DB"
        raise Refusal("the budget is incomplete or given twice", where="command line", cure=cure)
    if words.budget is not None and not 0 < words.budget <= 1:
        raise Refusal(f"--budget {words.budget} is no share", where="command line", cure="give more than 0, up to 1")
    if words.shard is not None and (words.report or words.submission):
        cure = "run once more without --shard, by --skip-existing, for the report and the submission"
        raise Refusal("a part of a folder has no report or submission", where="--shard", cure=cure)
    options = Options(
        tile=_tile(words.tile),
        tta=words.tta,
        depth=_DEPTHS[words.depth],
        budget=words.budget,
        max_loss=words.max_loss,
        ext=words.ext,
        suffix=words.suffix,
        skip_existing=words.skip_existing,
        background=_colour(words.background),
        refine=_blend(words),
        size=_size(words),
        quality=_quality(words.quality),
        strip_metadata=words.strip_metadata,
    )
    return Request(
        words.input,
        words.output,
        options,
        report=words.report,
        hr=words.hr,
        submission=words.submission,
        dry_run=words.dry_run,
        as_json=words.json,
        verify=words.verify,
        budget_model=words.budget_model,
        shard=(0, 1) if words.shard is None else parse_shard(words.shard),
    )


def _blend(words: argparse.Namespace) -> Blend | None:
    details = ("refine_model", "refine_lora", "refine_strength", "refine_colour", "refine_seed")
    if words.refine is None:
        stray = [one for one in details if getattr(words, one) is not None]
        if stray:
            name = f"--{stray[0].replace('_', '-')}"
            raise Refusal(f"{name} without --refine", where="command line", cure=f"add --refine {'|'.join(REFINERS)}")
        return None
    preset = preset_of(words.refine)
    if words.refine_model is None and not isinstance(preset, NativePreset):
        cure = f"add --refine-model with a folder or Hub id of {preset.page} (LoRA: {preset.lora_page})"
        raise Refusal(f"--refine {words.refine} needs a base model", where="command line", cure=cure)
    strength = 1.0 if words.refine_strength is None else words.refine_strength
    seed = words.refine_seed
    if seed is None and isinstance(preset, NativePreset):
        seed = DEFAULT_SEED
    return Blend(strength, words.refine_colour or preset.colour, seed)


def _size(words: argparse.Namespace) -> OutputSize:
    size = OutputSize(words.outscale, words.width, words.height, words.max_side)
    if size == OutputSize():
        return size
    if words.outscale is not None and (words.width is not None or words.height is not None):
        cure = "give --outscale, or --width and --height"
        raise Refusal("the output's size is given twice", where="command line", cure=cure)
    for name, value in size.manifest().items():
        least, most = (0.1, 16) if name == "outscale" else (1, MAX_SIDE)
        if not least <= value <= most:  # a NaN is in no range
            what = f"--{name.replace('_', '-')} {value:g}"
            raise Refusal(what, where="command line", cure=f"give {least:g} to {most:,}")
    if words.submission:
        cure = "leave the size at four times, or pack no submission"
        raise Refusal("a submission holds images of four times their input", where="command line", cure=cure)
    return size


def _quality(number: int | None) -> int | None:
    if number is not None and not 1 <= number <= 100:
        raise Refusal(f"--quality {number}", where="command line", cure="give 1 to 100")
    return number


def _colour(word: str | None) -> Rgb | None:
    if word is None:
        return None
    try:
        colour = ImageColor.getrgb(word)
    except ValueError:
        colour = ()
    if len(colour) != 3:
        cure = "give a name such as white, or '#rrggbb'"
        raise Refusal(f"'{word}' is no opaque colour", where="--background", cure=cure)
    return colour


def _tile(word: str) -> int | None:
    if word == AUTO:
        return None
    if not word.isdigit():
        raise Refusal(f"--tile {word}", where="command line", cure="give auto, a number of LR pixels, or 0")
    return int(word)
