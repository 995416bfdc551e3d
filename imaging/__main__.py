"""python -m imaging check-resize | samples | downscale | compare | pack: bicubic against MATLAB's, images to try."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from imaging.command import (
    DONE,
    FAILURES_LISTED,
    CommandParser,
    json_number,
    output_file,
    output_folder,
    print_json,
    run,
)
from imaging.files import list_images, read_rgb, write_picture
from imaging.names import counted
from imaging.resize import crop_to_multiple, downscale_8bit
from imaging.scale import SCALE, SCALES
from imaging.tools.check_resize import as_json, check_folders
from imaging.tools.compare import compare_folders
from imaging.tools.pack import pack
from imaging.tools.samples import write_samples

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from imaging.tools.check_resize import Agreement
    from imaging.tools.compare import Compared


def main(arguments: Sequence[str]) -> int:
    """Parse, run, print."""
    options = _parser().parse_args(arguments)
    return options.do(options)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="python -m imaging", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = CommandParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON document")

    one = commands.add_parser("check-resize", parents=[common], help="compare our downscale of HR/ with LRx4/")
    one.add_argument("folder", type=Path, help="holds HR/ and LRx4/, or folders that do")
    one.set_defaults(do=_check_resize)

    one = commands.add_parser("samples", parents=[common], help="write a few free photographs")
    one.add_argument("folder", type=output_folder, help="where to write them")
    one.set_defaults(do=_samples)

    one = commands.add_parser("downscale", parents=[common], help="make the smaller 8-bit images of a folder")
    one.add_argument("hr", type=Path, help="a folder of images; sides are cropped to multiples of the scale")
    one.add_argument("lr", type=output_folder, help="where to write the small ones")
    one.add_argument("--scale", type=int, choices=SCALES, default=SCALE, help="how many times smaller; default 4")
    one.set_defaults(do=_downscale)

    one = commands.add_parser("compare", parents=[common], help="PSNR and SSIM of a folder, and a picture of it")
    one.add_argument("--lr", type=Path, required=True)
    one.add_argument("--sr", type=Path, required=True)
    one.add_argument("--hr", type=Path, required=True)
    one.add_argument("--out", type=output_file, help="write the crops side by side to this file")
    one.set_defaults(do=_compare)

    one = commands.add_parser("pack", parents=[common], help="training images in one folder of limited size")
    one.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="image folders, in the order of data.hr")
    one.add_argument("--to", type=Path, required=True, metavar="OUT")
    one.add_argument("--limit-mib", type=float, default=48, metavar="N", help="of all images together")
    one.add_argument("--least", type=int, default=192, metavar="N", help="shorter side of the smallest cut, in pixels")
    one.set_defaults(do=_pack)
    return parser


def _check_resize(options: argparse.Namespace) -> int:
    """Exit code 1 where the requirement is not met."""
    agreements = check_folders(options.folder)
    if options.json:
        print_json(as_json(agreements))
    else:
        print(_agreement_table(agreements))
    return DONE if all(agreement.passed for agreement in agreements) else FAILURES_LISTED


def _samples(options: argparse.Namespace) -> int:
    return _print_written(write_samples(options.folder), options.folder, as_json=options.json)


def _downscale(options: argparse.Namespace) -> int:
    written = []
    for path in tqdm(list_images(options.hr), desc="downscale", unit="image"):
        target = (options.lr / path.relative_to(options.hr)).with_suffix(".png")
        write_picture(target, downscale_8bit(crop_to_multiple(read_rgb(path), options.scale), options.scale))
        written.append(target)
    return _print_written(written, options.lr, as_json=options.json)


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: json_number(one) if isinstance(one, float) else one for key, one in figures.items()}


def _compare(options: argparse.Namespace) -> int:
    compared = compare_folders(options.lr, options.sr, options.hr, options.out)
    if options.json:
        print_json([_finite(asdict(one)) for one in compared])
    else:
        print(_figures_table(compared))
    return DONE


def _pack(options: argparse.Namespace) -> int:
    packed = pack(options.folders, options.to, limit=int(options.limit_mib * 2**20), least=options.least)
    if options.json:
        print_json(asdict(packed))
    else:
        counts = f"{packed.copied} images as they are, {packed.cut} cut, {packed.left_out} left out"
        print(f"{packed.folder}: {counts}; {packed.bytes / 2**20:.1f} MiB, {packed.pixels_kept:.1%} of all pixels")
    return DONE


def _print_written(written: Sequence[Path], folder: Path, *, as_json: bool) -> int:
    if as_json:
        print_json([str(path) for path in written])
    else:
        print(f"{counted(len(written), 'image')} written to {folder}")
    return DONE


def _agreement_table(agreements: Sequence[Agreement]) -> str:
    """A Markdown table, ready for docs/results."""
    head = ("set", "method", "images", "pixels", "equal", "within 1 grey level", "worst")
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [
        f"| {a.folder} | `{a.method}` | {a.images} | {a.pixels:,} | {a.exact:.3%} | {a.within_one:.4%} | {a.worst} |"
        for a in agreements
    ]
    return "\n".join(lines)


def _figures_table(compared: Sequence[Compared]) -> str:
    """A Markdown table: each image, then their mean."""
    lines = ["| image | PSNR bicubic | PSNR | SSIM bicubic | SSIM |", "|---" * 5 + "|"]
    lines += [_figures_line(c.name, c.bicubic_psnr, c.psnr, c.bicubic_ssim, c.ssim) for c in compared]
    columns = [(c.bicubic_psnr, c.psnr, c.bicubic_ssim, c.ssim) for c in compared]
    lines.append(_figures_line("mean", *(sum(column) / len(compared) for column in zip(*columns, strict=True))))
    return "\n".join(lines)


def _figures_line(name: str, bicubic_psnr: float, psnr: float, bicubic_ssim: float, ssim: float) -> str:
    return f"| {name} | {bicubic_psnr:.2f} | {psnr:.2f} | {bicubic_ssim:.4f} | {ssim:.4f} |"


if __name__ == "__main__":
    sys.exit(run(main))
