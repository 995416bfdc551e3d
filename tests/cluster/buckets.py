"""A small cache at an address: what makes it, and what then lies in the bucket."""

from __future__ import annotations

from pathlib import Path

from cache_tools.storage.open import store_at
from tests.cache.parts import weights_files

SIZES = [(32 + 4 * number, 40) for number in range(6)]


def extract(folder: Path, out: str, *more: object) -> list[object]:
    """The words that make that cache at an address."""
    files = weights_files(folder / "weights")
    return ["extract", "--hr", folder / "hr", "--experts", ",".join(files), "--device", "cpu", "--out", out, *more]


def objects(address: str) -> dict[str, bytes]:
    """Every item's name and content, as the server has them."""
    bucket = store_at(address).bucket
    return {name.rpartition("/")[2]: bucket.read(name) for name in bucket.list("items/")}
