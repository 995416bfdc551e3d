"""`csr COMMAND ...` -> the command's own parser and exit code, as of infer.py, train.py and `python -m ROOM`."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from championship_sr import __version__
from imaging.command import DONE, run
from imaging.refusal import Refusal, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

# Command: (module, its function of the arguments, what it does). Modules are imported when called.
COMMANDS = {
    "upscale": ("infer", "command_line", "images -> better images, four times as large (infer.py)"),
    "train": ("train", "main", "train an expert, or the fusion of experts (train.py)"),
    "experts": ("experts.__main__", "main", "list, check, fetch, import and run experts (python -m experts)"),
    "cache": ("cache_tools.__main__", "main", "plan, extract, verify a cache of experts (python -m cache_tools)"),
    "fusion": ("fusion.__main__", "main", "analyze, evaluate and judge fusion (python -m fusion)"),
    "serve": ("fusion.__main__", "serve", "the studio, a local web page (python -m fusion serve)"),
    "images": ("imaging.__main__", "main", "downscale and compare images (python -m imaging)"),
}


def main() -> int:
    """The console script."""
    return run(dispatch)


def dispatch(arguments: Sequence[str]) -> int:
    """Hand over to the command, or list them."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:8} {summary}" for name, (_, _, summary) in COMMANDS.items()]
        sys.stdout.write("\n".join(["usage: csr COMMAND ...  |  csr --version\n", *lines, ""]))
        return DONE
    if arguments[0] == "--version":
        sys.stdout.write(f"championship-sr {__version__}\n")
        return DONE
    name, *rest = arguments
    if name not in COMMANDS:
        raise Refusal(f"no command '{name}'", where="csr", cure=nearest(name, COMMANDS))
    module, function, _ = COMMANDS[name]
    return getattr(import_module(module), function)(rest)
