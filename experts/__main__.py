"""python -m experts list | check | fetch | import | run | deploy | bench-native: know, prove, get, use, measure."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from experts.adopt import Record, adopt, describe, write_record
from experts.apply import apply
from experts.catalog import load_catalog
from experts.check import check, listed
from experts.deploy import deploy
from experts.fetch import fetch
from experts.load import load_network
from experts.native.bench import as_json, as_markdown, bench
from experts.open import find_device, open_expert
from experts.weights import pretrained_folder, read_state_file
from imaging import command
from imaging.atomic import write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from experts.catalog import Catalog


def main(arguments: Sequence[str]) -> int:
    """Parse, do, print."""
    options = _parser().parse_args(arguments)
    catalog = load_catalog(options.config)
    return options.do(options, catalog)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experts", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, help="a YAML file with further experts, in the form of catalog.yaml")
    common.add_argument("--json", action="store_true", help="print one JSON document")

    one = commands.add_parser("list", parents=[common], help="all known experts and whether their weights are here")
    one.set_defaults(do=_list)

    one = commands.add_parser("check", parents=[common], help="load an expert strictly and run it once")
    one.add_argument("expert", metavar="NAME|FILE")
    one.add_argument("--device", default="cpu")
    one.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    one.set_defaults(do=_check)

    one = commands.add_parser("fetch", parents=[common], help="download an expert's weights, verified and resumable")
    one.add_argument("name", metavar="NAME")
    one.set_defaults(do=_fetch)

    one = commands.add_parser("import", parents=[common], help="copy a weights file into pretrained/ with a record")
    one.add_argument("file", metavar="FILE", type=Path)
    one.add_argument("--licence", help="the licence of the weights, for the record")
    one.set_defaults(do=_import)

    one = commands.add_parser("run", parents=[common], help="upscale an image or a folder by one expert alone")
    one.add_argument("expert", metavar="NAME|FILE")
    one.add_argument("-i", "--input", type=Path, required=True, metavar="IN", help="an image, or a folder of them")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the folder to write PNG files to")
    one.add_argument("--device", default="cpu")
    one.add_argument("--precision", choices=["fp32", "bf16", "fp16"], default="fp32")
    one.add_argument("--tile", type=int, default=0, metavar="N", help="tile size in LR pixels; 0: whole images")
    one.set_defaults(do=_run)

    one = commands.add_parser("deploy", parents=[common], help="fold a native expert's branches: equal output")
    one.add_argument("expert", metavar="NAME|FILE")
    one.add_argument("output", type=Path, metavar="OUT.safetensors")
    one.set_defaults(do=_deploy)

    one = commands.add_parser("bench-native", parents=[common], help="what the native networks and their parts cost")
    one.add_argument("--size", type=int, nargs="+", default=[256], metavar="N", help="sides of the LR image")
    one.add_argument("--network", help="only this one")
    one.add_argument("--threads", type=int, default=2)
    one.add_argument("--repeats", type=int, default=3)
    one.add_argument("--record", type=Path, metavar="FILE.md", help="write the table there as well")
    one.set_defaults(do=_bench_native)
    return parser


def _list(options: argparse.Namespace, catalog: Catalog) -> int:
    lines = listed(catalog)
    if options.json:
        command.print_json([asdict(line) for line in lines])
        return command.DONE
    for line in lines:
        size = f"{line.parameters / 1e6:6.2f} M" if line.parameters else "       -"
        state = "here   " if line.present else "missing"
        print(f"{state}  {line.name:10} {size}  {line.licence:12} {line.file}  ({line.title})")
    return command.DONE


def _check(options: argparse.Namespace, catalog: Catalog) -> int:
    report = check(options.expert, catalog, device=options.device, precision=options.precision)
    if options.json:
        command.print_json(asdict(report))
        return command.DONE
    for field, value in asdict(report).items():
        print(f"{field:14} {value}")
    return command.DONE


def _fetch(options: argparse.Namespace, catalog: Catalog) -> int:
    spec = catalog.get(options.name)
    path, sha256 = fetch(spec, pretrained_folder())
    source = next(one for one in spec.weights if one.url)
    state = read_state_file(path, sha256)
    record = describe(state, load_network(state, spec), spec, source, source.url or "")
    write_record(path, record)
    return _say(record, options.json)


def _import(options: argparse.Namespace, catalog: Catalog) -> int:
    return _say(adopt(options.file, catalog, pretrained_folder(), licence=options.licence), options.json)


def _run(options: argparse.Namespace, catalog: Catalog) -> int:
    device = find_device(options.device)
    expert = open_expert(options.expert, catalog, device=device, precision=options.precision, tile=options.tile)
    written, refused = apply(expert, options.input, options.output)
    if options.json:
        command.print_json({"written": [str(path) for path in written], "refused": refused})
    else:
        print(f"{len(written)} images written to {options.output}, {len(refused)} refused")
    return command.FAILURES_LISTED if refused else command.DONE


def _deploy(options: argparse.Namespace, catalog: Catalog) -> int:
    made = deploy(options.expert, catalog, options.output)
    if options.json:
        command.print_json(asdict(made))
    else:
        print(f"{made.file}: {made.folded} convolutions folded, output within {made.largest_difference:.1e}")
    return command.DONE


def _bench_native(options: argparse.Namespace, catalog: Catalog) -> int:  # noqa: ARG001 (as every command)
    results = bench(options.size, threads=options.threads, repeats=options.repeats, only=options.network)
    how = {"threads": options.threads, "repeats": options.repeats}
    if options.record is not None:
        write_text(options.record, as_markdown(results, **how))
    if options.json:
        command.print_json(as_json(results, **how))
    else:
        print(as_markdown(results, **how), end="")
    return command.DONE


def _say(record: Record, as_json: bool) -> int:
    if as_json:
        command.print_json(asdict(record))
    else:
        print(f"{record.file}: {record.architecture}, {record.parameters:,} parameters, sha256 {record.sha256}")
    return command.DONE


if __name__ == "__main__":
    sys.exit(command.run(main))
