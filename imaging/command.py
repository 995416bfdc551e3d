"""A command's main function -> its exit code: 0 done, 1 failures listed, 2 refused with one line."""

from __future__ import annotations

import argparse
import io
import json
import logging
import math
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tqdm import tqdm

from imaging.atomic import require_writable
from imaging.malloc import keep_freed_memory
from imaging.names import LONGEST, printable
from imaging.refusal import Refusal, closest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

DONE, FAILURES_LISTED, REFUSED, INTERRUPTED = 0, 1, 2, 130


class _AboveBars(logging.Handler):
    """Log lines go to stderr above the progress bars instead of through them."""

    def emit(self, record: logging.LogRecord) -> None:
        # Line by line: tables keep their lines, but no file name moves the cursor or colours the terminal.
        tqdm.write("\n".join(map(printable, self.format(record).split("\n"))), file=sys.stderr)


class CommandParser(argparse.ArgumentParser):
    """argparse with whole option names only, which refuses in one line: `--trust-cod` must not run code."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        super().__init__(**settings)
        self._given: list[str] = []

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]  # its overloads, in one
        self, args: Any = None, namespace: Any = None
    ) -> Any:
        """Keep the words: they say which subcommand was meant, and so whose options `error` may suggest."""
        self._given = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Name the option that was meant, if one is close."""
        _, unknown, words = message.partition("unrecognized arguments: ")
        used = self._in_use()  # what a subcommand does not know is refused by the parser above it
        options = [*used._option_string_actions, *self._option_string_actions]
        close = closest(words.split("=")[0].split(" ")[0], options) if unknown else None
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice is not None:
            close = closest(choice[1], [word.strip(" '") for word in choice[2].split(",")])
        cure = f"did you mean {close}?" if close else f"`{used.prog} --help` lists what there is"
        raise Refusal(message, where=used.prog, cure=cure)

    def _in_use(self) -> CommandParser:
        """The parser of the subcommand that the words name."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
                named = next((action.choices[word] for word in self._given if word in action.choices), None)
                return self if named is None else named._in_use()
        return self


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in a command that can go on where it stopped, and by which words."""


@contextmanager
def goes_on_by(words: str, place: str = "what was finished") -> Generator[None]:
    """Round a command, or as its decorator: what the user is told when it is interrupted."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        raise Interrupted(f"{words} goes on from {place}") from interrupt


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run `main` on the command line and turn a refusal into its one line and code 2."""
    logging.basicConfig(handlers=[_AboveBars()], level=logging.INFO, format="%(message)s")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr has it: file names may hold any bytes
    keep_freed_memory()  # here, once for every command: it must come before the first large allocation
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except Refusal as refusal:
        print(f"refused: {refusal}", file=sys.stderr)
        return REFUSED
    except Interrupted as interrupted:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted: no half-written file is left", file=sys.stderr)
        return INTERRUPTED


def output_file(text: str) -> Path:
    """The type of an option that names a file to write: refused at once where that cannot be."""
    path = Path(text)
    require_writable(path.parent)
    if len(os.fsencode(path.name)) > LONGEST:
        raise Refusal(f"its name has more than {LONGEST} bytes", where=path, cure="choose a shorter one")
    if path.is_dir():
        raise Refusal("is a folder", where=path, cure="name a file in it")
    return path


def output_folder(text: str) -> Path:
    """The type of an option that names a folder to write to; it is made with the first file."""
    path = Path(text)
    require_writable(path)
    return path


def json_number(value: float) -> float | None:
    """JSON has no infinity, such as the PSNR of identical images: null there."""
    return value if math.isfinite(value) else None


def print_json(document: Any) -> None:
    """Print one JSON document on stdout; numbers that JSON lacks (NaN, infinity) are refused."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False, default=str) + "\n")


def parse_shard(text: str) -> tuple[int, int]:
    """`0/4` -> (0, 4)."""
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise Refusal(f"'{text}' is not I/N with I from 0 to N-1", where="--shard", cure="write for example 0/4")
    return int(part), int(parts)
