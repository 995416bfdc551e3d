"""A file name of any bytes -> text for pages, JSON, caches and terminals; a name that fits into a folder."""

from __future__ import annotations

import hashlib
import os
import re

LONGEST = 255  # bytes of one name, on every file system in common use
_HASH_DIGITS = 16
_SURROGATES = re.compile("[\ud800-\udfff]")


def valid_text(name: str) -> str:
    """The name as text that UTF-8 can hold: a byte that is none (a surrogate, in Python) becomes `\\xff`."""
    return _SURROGATES.sub(_spelled, name)


def printable(text: str) -> str:
    """As `valid_text`; also newlines, escape sequences and whatever else a terminal would act on, spelled out."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in valid_text(text))


def counted(number: int, noun: str) -> str:
    """`1 tile`, `2 tiles`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def fitting(front: str, name: str, end: str) -> str:
    """`front + name + end`; where that is too long for a folder, the name is cut and told apart by its hash."""
    whole = f"{front}{name}{end}"
    if len(os.fsencode(whole)) <= LONGEST:
        return whole
    raw = os.fsencode(name)
    mark = f"~{hashlib.sha256(raw).hexdigest()[:_HASH_DIGITS]}"
    room = LONGEST - len(os.fsencode(f"{front}{mark}{end}"))
    return f"{front}{raw[:room].decode('utf-8', 'ignore')}{mark}{end}"


def _spelled(surrogate: re.Match[str]) -> str:
    code = ord(surrogate[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
