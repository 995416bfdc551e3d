"""What the tests of infer.py are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.inference.parts import weights_file


@pytest.fixture
def expert(tmp_path: Path) -> Path:
    return weights_file(tmp_path / "weights")
