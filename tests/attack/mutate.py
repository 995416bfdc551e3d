"""A sound file's bytes -> the same, damaged or made hostile, by a seed."""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    Mutate = Callable[[bytes, random.Random], bytes]

_EXTREME = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
_NUMBERS_OF_JSON = (-1, 0, 1e308, 10**40, math.inf, 1e-320)
_VALUES: tuple[Any, ...] = (None, True, "", "text", "\u0000", "../x", [], [[]], {}, *_NUMBERS_OF_JSON)


def flipped(data: bytes, rng: random.Random) -> bytes:
    """One bit, as a bad memory cell or disk has it; half of them in the first part, where headers are."""
    changed = bytearray(data)
    place = rng.randrange(min(len(data), 600) if rng.random() < 0.5 else len(data))
    changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bits, wild bytes and numbers, cuts, insertions, doublings, swaps: one to three of them."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        size = max(len(changed), 1)
        place = rng.randrange(min(size, 200) if rng.random() < 0.5 else size)
        other = rng.randrange(size)
        match rng.randrange(8):
            case 0 if changed:
                changed[place] ^= 1 << rng.randrange(8)
            case 1 if changed:
                changed[place] = rng.randrange(256)
            case 2:
                number = rng.choice((*_EXTREME, rng.randrange(1 << 20)))
                changed[place : place + 4] = struct.pack(rng.choice("<>") + "I", number)
            case 3:
                del changed[max(place, 1) :]
            case 4:
                del changed[place : place + rng.randint(1, 40)]
            case 5:
                changed[place:place] = rng.randbytes(rng.randint(1, 40))
            case 6:
                first, last = sorted((place, other))
                changed[last:last] = changed[first : first + min(last - first, 4096)]
            case _:
                changed[place : place + 16], changed[other : other + 16] = (
                    changed[other : other + 16],
                    changed[place : place + 16],
                )
    return bytes(changed)


def bits_and_damage(data: bytes, rng: random.Random) -> bytes:
    """Half single bits, half anything."""
    return flipped(data, rng) if rng.random() < 0.5 else damaged(data, rng)


def in_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON file with one value changed, gone or renamed; or damaged as any file."""
    if rng.random() < 0.5:
        return bits_and_damage(data, rng)
    document = json.loads(data)
    _change(document, rng)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def in_safetensors_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with one entry of its header changed, gone or renamed; or damaged as any file."""
    if rng.random() < 0.5:
        return bits_and_damage(data, rng)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    _change(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def in_yaml(data: bytes, rng: random.Random) -> bytes:
    """A YAML file with a line changed, doubled or indented, or with something that YAML readers choke on."""
    lines = data.decode().split("\n")
    place = rng.randrange(len(lines))
    match rng.randrange(7):
        case 0:
            return bits_and_damage(data, rng)
        case 1:
            lines[place] = lines[place].partition(":")[0] + ": " + rng.choice(_YAML)
        case 2:
            lines.insert(place, lines[rng.randrange(len(lines))])
        case 3:
            lines[place] = "  " + lines[place]
        case 4:
            del lines[place]
        case 5:
            lines[place] = lines[place].replace("e", "a", 1)
        case _:
            lines.append("x: " + rng.choice(_YAML))
    return "\n".join(lines).encode()


_ALIASES = "&a [x, x, x, x, x, x, x, x, x]"
_NESTED = (f"{n}: &{n} [{','.join([f'*{m}'] * 9)}]" for m, n in zip("abcdefg", "bcdefgh", strict=True))
_BOMB = "{" + ", ".join(["a: &a [1,1,1,1,1,1,1,1,1]", *_NESTED]) + "}"  # nine to the ninth, if it is unfolded
_NUMBERS = (".inf", ".nan", "-1", "0", "1e400", "9" * 5000, "0x" + "f" * 40, "2026-99-99", "1:99:99")
_TAGS = ("!!python/object/apply:os.system [x]", "!!binary x", "!!timestamp x", "!!int x", "!!float x", "!!omap [x]")
_ODD = ("*none", "'", "? x", "{}", "[]", "null", "true", '"\\ud800"', "<<: 5", "!!set {a}", "~", "|", "text")
_YAML = (*_NUMBERS, *_TAGS, *_ODD, "[" * 3000, "{" * 3000, _ALIASES, _BOMB)


def _change(document: Any, rng: random.Random) -> None:
    """One value, at any depth."""
    place = document
    while isinstance(place, (dict, list)) and place:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
            place = inner
            continue
        match rng.randrange(4):
            case 0:
                place[key] = rng.choice(_VALUES)
            case 1:
                place.pop(key)
            case 2 if isinstance(place, dict):
                place[f"{key}x"] = place.pop(key)
            case _:
                place[key] = _nudged(inner)
        return


def _nudged(value: Any) -> Any:
    """Another value of the same kind, close by."""
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value * 1.01 + 1e-6
        case str():
            return value[:-1] + chr(ord(value[-1]) ^ 1) if value else "x"
        case _:
            return [value]
