"""`python -m experts export NAME|FILE --to FORM OUT`: parse, open, export; what it did, as a line or as JSON."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from experts.export.forms import ENDINGS
from imaging import command

if TYPE_CHECKING:
    import argparse

    from experts.catalog import Catalog


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.add_argument("expert", metavar="NAME|FILE|code:...")
    parser.add_argument(
        "output", type=command.output_file, metavar="OUT", help="FILE.onnx, FILE.param or FILE.safetensors"
    )
    parser.add_argument("--to", choices=list(ENDINGS), required=True, help="ncnn: FILE.param and FILE.bin, as Upscayl")
    parser.add_argument("--features", action="store_true", help="onnx: the features as a second output")
    parser.set_defaults(do=run_export)


def run_export(options: argparse.Namespace, catalog: Catalog) -> int:
    """On the CPU in float32: what is compared must be exact."""
    from experts.export.write import export_expert  # late, as in experts/__main__.py
    from experts.open import open_expert

    expert = open_expert(
        options.expert,
        catalog,
        device=torch.device("cpu"),
        features="find" if options.features else "none",
        trust_code=options.trust_code,
    )
    made = export_expert(expert, options.to, options.output, features=options.features)
    if options.json:
        command.print_json(asdict(made))
    else:
        sizes = ", ".join(made.sizes)
        files = " and ".join(made.files)
        sys.stdout.write(f"{files}: {made.architecture}, within {made.largest_difference:.1e} of torch on {sizes}\n")
    return command.DONE
