"""The code of a user's own network."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experts.loading.parts import NETWORKS


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The file of it, to be spoiled."""
    path = tmp_path / "net.py"
    path.write_text(NETWORKS)
    return path
