"""Tiny bases, written once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.refinement.parts import save_sd2, save_sd3


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sd3/ and sd2/."""
    folder = tmp_path_factory.mktemp("bases")
    save_sd3(folder / "sd3")
    save_sd2(folder / "sd2")
    return folder


@pytest.fixture
def sd3(bases: Path, tmp_path: Path) -> Path:
    """A copy to be spoiled."""
    return Path(shutil.copytree(bases / "sd3", tmp_path / "sd3"))
