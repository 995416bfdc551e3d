"""A cache that these tests read, made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cache.parts import make_cache

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, which no test changes."""
    return make_cache(tmp_path_factory.mktemp("reader"), [(70, 80), (64, 64), (100, 40)])
