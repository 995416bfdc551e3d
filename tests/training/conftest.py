"""A cache that the tests of several rooms read, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.parts import make_cache


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny networks with features over twelve small pictures, which no test changes."""
    return make_cache(tmp_path_factory.mktemp("cache"))
