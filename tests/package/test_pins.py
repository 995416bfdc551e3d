"""constraints.txt: versions that go together, so that pip can install every extra with it."""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINS = Path(__file__).parents[2] / "constraints.txt"


def pinned() -> dict[str, str]:
    """Package -> version."""
    lines = [line.partition("#")[0].strip() for line in PINS.read_text(encoding="utf-8").splitlines()]
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2].strip() for line in lines if line}


def test_every_line_pins_one_version() -> None:
    assert [name for name, version in pinned().items() if not re.fullmatch(r"[\w.+!]+", version)] == []


def test_no_pinned_package_excludes_another_pin() -> None:
    """Of those installed here in the pinned version; with the extra cluster-dev, of Ray, s3fs and moto as well."""
    pins, against, checked = pinned(), [], 0
    for one in distributions():
        name = canonicalize_name(one.metadata["Name"])
        if pins.get(name) != one.version:
            continue
        for text in one.requires or []:
            needed = Requirement(text)
            version = pins.get(canonicalize_name(needed.name))
            if version is None or (needed.marker is not None and not needed.marker.evaluate({"extra": ""})):
                continue
            checked += 1
            if not needed.specifier.contains(version, prereleases=True):
                against.append(f"{name} {one.version} needs {needed}, pinned is {version}")
    if not checked:
        pytest.skip("nothing is installed in its pinned version")
    assert against == []
