"""What is wrong, where, and the cure -> one line for the user and exit code 2."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from imaging.names import printable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Refusal(Exception):  # noqa: N818 - a refused input, not a failure of the program
    """The program cannot do what was requested, and the user can fix it.

    Library code raises it; `imaging.command.run` prints it as a single line and exits with code 2.
    """

    def __init__(self, what: str, *, where: str | Path, cure: str) -> None:
        self.what = _one_line(what)
        self.where = printable(str(where))
        self.cure = _one_line(cure)
        super().__init__(f"{self.where}: {self.what}; {self.cure}")

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip through worker processes, where exceptions are pickled."""
        return _rebuild, (type(self), self.what, self.where, self.cure)


def _rebuild(kind: type[Refusal], what: str, where: str, cure: str) -> Refusal:
    return kind(what, where=where, cure=cure)


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def nearest(name: str, known: Iterable[str]) -> str:
    """A mistyped name and the right ones -> 'did you mean x?' or the list of what there is."""
    choices = sorted(known)
    close = closest(name, choices)
    if close is not None:
        return f"did you mean '{close}'?"
    return f"known: {', '.join(choices)}" if choices else "there is none to choose from"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The one that was probably meant."""
    return next(iter(get_close_matches(name, sorted(known), n=1, cutoff=0.6)), None)
