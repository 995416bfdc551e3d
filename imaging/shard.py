"""`I/N` on a command line -> which part of how many."""

from __future__ import annotations

from imaging.refusal import Refusal


def parse_shard(text: str) -> tuple[int, int]:
    """`0/4` -> (0, 4)."""
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise Refusal(f"'{text}' is not I/N with I from 0 to N-1", where="--shard", cure="write for example 0/4")
    return int(part), int(parts)
