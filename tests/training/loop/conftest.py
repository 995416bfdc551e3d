"""Pictures that the runs of these tests learn from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.parts import write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small PNGs, which no test changes."""
    return write_pictures(tmp_path_factory.mktemp("hr"))
