"""python -m experts list | check | fetch | import | run | deploy | export | bench-native: all about one expert."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from experts.catalog import load_catalog
from experts.export import command as export
from experts.listing import listed, listing
from experts.loading.weights import read_state_file
from imaging import command
from imaging.atomic import write_text
from imaging.device import find_device
from imaging.names import counted
from imaging.paths import pretrained_folder, require_checkout
from imaging.refusal import Refusal

# What opens an expert is imported by the command that does: `list` can do without a second for spandrel.
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from experts.catalog import Catalog
    from experts.loading.import_file import Record
    from experts.spec import ExpertSpec

MIRROR = "CHAMPIONSHIP_SR_MIRROR"


def main(arguments: Sequence[str]) -> int:
    """Parse, do, print."""
    options = _parser().parse_args(arguments)
    options.words = arguments
    catalog = load_catalog(options.config)
    return options.do(options, catalog)


def _parser() -> argparse.ArgumentParser:
    parser = command.CommandParser(prog="python -m experts", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = command.CommandParser(add_help=False)
    catalog_help = "a YAML file with further experts, in the form of catalog.yaml"
    common.add_argument("--catalog", "--config", dest="config", type=Path, metavar="FILE", help=catalog_help)
    common.add_argument("--json", action="store_true", help="print one JSON document")

    trust = command.CommandParser(add_help=False)
    trust.add_argument("--trust-code", action="store_true", help="run the Python file of a code: expert")

    one = commands.add_parser("list", parents=[common], help="all known experts and whether their weights are here")
    one.set_defaults(do=_list)

    one = commands.add_parser("check", parents=[common, trust], help="load an expert strictly and run it once")
    one.add_argument("expert", metavar="NAME|FILE|code:...")
    one.add_argument("--device", default="cpu")
    one.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    one.set_defaults(do=_check)

    one = commands.add_parser("fetch", parents=[common], help="download experts' weights, verified and resumable")
    one.add_argument("names", nargs="*", metavar="NAME")
    one.add_argument("--preset", help="all experts of a preset of the catalog, for example strong")
    one.add_argument(
        "--mirror",
        default=os.environ.get(MIRROR),
        metavar="ADDRESS",
        help=f"take the same paths from this base address instead; also by the environment variable {MIRROR}",
    )
    one.set_defaults(do=_fetch)

    one = commands.add_parser(
        "import", parents=[common, trust], help="copy a weights file into pretrained/ with a record"
    )
    one.add_argument("file", metavar="FILE|code:...")
    one.add_argument("--licence", help="the licence of the weights, for the record")
    one.set_defaults(do=_import)

    one = commands.add_parser("run", parents=[common, trust], help="upscale an image or a folder by one expert alone")
    one.add_argument("expert", metavar="NAME|FILE|code:...")
    one.add_argument("-i", "--input", type=Path, required=True, metavar="IN", help="an image, or a folder of them")
    one.add_argument(
        "-o", "--output", type=command.output_folder, required=True, metavar="OUT", help="a folder for PNG files"
    )
    one.add_argument("--device", default="cpu")
    one.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    one.add_argument("--tile", type=int, default=0, metavar="N", help="tile size in LR pixels; 0: whole images")
    one.set_defaults(do=_run)

    one = commands.add_parser("deploy", parents=[common], help="fold a native expert's branches: equal output")
    one.add_argument("expert", metavar="NAME|FILE")
    one.add_argument("output", type=command.output_file, metavar="OUT.safetensors")
    one.set_defaults(do=_deploy)

    export.add_arguments(commands.add_parser("export", parents=[common, trust], help="a file for other programs"))

    one = commands.add_parser("bench-native", parents=[common], help="what the native networks and their parts cost")
    parts = ("cost", "fold", "quality")
    one.add_argument("--what", nargs="+", choices=parts, default=["cost"], help="which tables (cost)")
    one.add_argument("--size", type=int, nargs="+", default=[256], metavar="N", help="sides of the LR image")
    one.add_argument("--network", help="cost and fold: only this one")
    one.add_argument("--threads", type=int, default=2)
    one.add_argument("--repeats", type=int, default=3, help="of each cost")
    one.add_argument("--pairs", type=int, default=12, help="of folded and not folded, in turns, at the smallest size")
    one.add_argument("--experts", nargs="+", default=[], metavar="NAME|FILE", help="whose quality to measure")
    one.add_argument("--hr", action="append", default=[], metavar="NAME=FOLDER", help="true images; may be repeated")
    one.add_argument("--images", type=int, metavar="N", help="only the first of each folder")
    one.add_argument("--degrade", type=Path, metavar="FILE.yaml", help="a further row, as training degrades")
    one.add_argument("--record", type=command.output_file, metavar="FILE.md", help="write the tables there as well")
    one.set_defaults(do=_bench_native)
    return parser


def _list(options: argparse.Namespace, catalog: Catalog) -> int:
    lines = listed(catalog)
    if options.json:
        command.print_json([asdict(line) for line in lines])
        return command.DONE
    print("\n".join(listing(lines)))
    return command.DONE


def _check(options: argparse.Namespace, catalog: Catalog) -> int:
    from experts.check import check

    report = check(
        options.expert, catalog, device=options.device, precision=options.precision, trust_code=options.trust_code
    )
    if options.json:
        command.print_json(asdict(report))
        return command.DONE
    for field, value in asdict(report).items():
        print(f"{field:14} {value}")
    return command.DONE


@command.goes_on_by("the same command")
def _fetch(options: argparse.Namespace, catalog: Catalog) -> int:
    names = [*options.names, *(catalog.preset(options.preset) if options.preset else ())]
    if not names:
        raise Refusal("names no expert", where="fetch", cure="give names, or --preset strong")
    specs = [catalog.get(name) for name in dict.fromkeys(names)]  # before the first byte: a mistyped name costs nothing
    records = [_fetch_one(spec, catalog, options.mirror, quiet=options.json) for spec in specs]
    if options.json:
        documents = [record.document() for record in records]
        command.print_json(documents[0] if len(documents) == 1 else documents)
    return command.DONE


def _fetch_one(spec: ExpertSpec, catalog: Catalog, mirror: str | None, *, quiet: bool) -> Record:
    from experts.loading.fetch import fetch
    from experts.loading.import_file import describe, write_record
    from experts.loading.load import load_network
    from experts.open import spec_of

    path, sha256 = fetch(spec, pretrained_folder(), mirror=mirror)
    spec = spec_of(spec.name, catalog)  # whose code is there now
    source = next(one for one in spec.weights if one.url)
    state = read_state_file(path, sha256)
    record = describe(state, load_network(state, spec), spec, source, source.url or "")
    write_record(path, record)
    if not quiet:
        print(record.in_words())
    return record


def _import(options: argparse.Namespace, catalog: Catalog) -> int:
    from experts.loading.import_file import import_file, way_to_use

    folder, trust = pretrained_folder(), options.trust_code
    record = import_file(options.file, catalog, folder, licence=options.licence, trust_code=trust)
    if not options.json:
        print(f"{folder / record.file}: use it by {way_to_use(record, catalog, folder)}")
    return _print_record(record, options.json)


def _run(options: argparse.Namespace, catalog: Catalog) -> int:
    from experts.apply import apply
    from experts.open import open_expert

    device = find_device(options.device)
    expert = open_expert(
        options.expert,
        catalog,
        device=device,
        precision=options.precision,
        tile=options.tile,
        features="none",
        trust_code=options.trust_code,
    )
    written, refused = apply(expert, options.input, options.output)
    if options.json:
        command.print_json({"written": [str(path) for path in written], "refused": refused})
    else:
        print(f"{counted(len(written), 'image')} written to {options.output}, {len(refused)} refused")
    return command.FAILURES_LISTED if refused else command.DONE


def _deploy(options: argparse.Namespace, catalog: Catalog) -> int:
    from experts.export.deploy import deploy

    made = deploy(options.expert, catalog, options.output)
    if options.json:
        command.print_json(asdict(made))
    else:
        print(f"{made.file}: {made.folded} convolutions folded, output within {made.largest_difference:.1e}")
    return command.DONE


def _bench_native(options: argparse.Namespace, catalog: Catalog) -> int:  # noqa: ARG001 (as every command)
    require_checkout("python -m experts bench-native")
    from benchmarks.native.tables import measure

    text, document = measure(options)
    if options.record is not None:
        write_text(options.record, text)
    if options.json:
        command.print_json(document)
    else:
        print(text, end="")
    return command.DONE


def _print_record(record: Record, as_json: bool) -> int:
    if as_json:
        command.print_json(record.document())
    else:
        print(record.in_words())
    return command.DONE


if __name__ == "__main__":
    sys.exit(command.run(main))
