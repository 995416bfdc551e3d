"""What the tests of export share: packages that may be absent, and the command line."""

from __future__ import annotations

import pytest

from experts.__main__ import main
from imaging import command


def needs(*packages: str) -> None:
    """Skip, saying so, where one is absent."""
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'championship-sr[export]'")


def run(*words: object) -> int:
    return command.run(main, [str(word) for word in words])
