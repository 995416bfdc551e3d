"""An S3 server, started once, whole at the beginning of every test, and a cache in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cache_tools.storage.item_cache import FOLDER, SIZE
from tests.cache.parts import make_cache
from tests.cluster.buckets import SIZES
from tests.cluster.s3 import Server, s3_server

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package")
def started() -> Iterator[Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def server(started: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    for name, value in started.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(FOLDER, str(tmp_path / "copies"))
    monkeypatch.setenv(SIZE, "1")
    monkeypatch.setattr("cache_tools.storage.bucket._WAIT", 0.01)
    started.faults.of = lambda _seen: None
    started.faults.seen.clear()
    return started


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """The same cache in a folder, to compare with."""
    return make_cache(tmp_path, SIZES)
