"""Real extractions, really killed: nothing committed is lost, nothing half-written is left, resuming is exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from cache_tools.format.errors import StorageFailed
from tests.cache.parts import command, item_bytes_of, make_cache, weights_files, write_images

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """In this process as in those that tests start: another number moves the last bits of a convolution."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_killed_at_200_random_moments_and_at_every_write() -> None:
    # A killed process loses nothing that it handed to the system, so memory serves as well as a slow disk.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        _kill_in(folder)


def _kill_in(folder: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.cache.crash", folder, "200"],
        cwd=ROOT,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout)
    assert results["random"] == 200
    assert results["calls"] >= 15


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_torchrun_ranks_make_what_one_process_makes(tmp_path: Path) -> None:
    sizes = [(16, 16), (20, 24), (24, 20), (16, 40), (33, 20), (18, 18)]
    hr, weights = write_images(tmp_path / "hr", sizes), weights_files(tmp_path / "weights")
    words = ["extract", "--hr", str(hr), "--experts", ",".join(weights), "--device", "cpu"]
    assert command(*words, "--out", tmp_path / "one") == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "cache_tools", *words, "--out", str(tmp_path / "two")],
        cwd=ROOT,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert item_bytes_of(tmp_path / "two") == item_bytes_of(tmp_path / "one")
    lines = [path.read_text().splitlines() for path in sorted((tmp_path / "two" / "index").glob("*.jsonl"))]
    assert [path.name for path in sorted((tmp_path / "two" / "index").iterdir())] == [
        "rank-000.jsonl",
        "rank-001.jsonl",
    ]
    assert all(lines)
    assert sum(map(len, lines)) == len(sizes)
    assert command("verify", tmp_path / "two", "--full") == 0


# Runs in a process of its own, which may give up rights and set limits that this one must keep.
_LIMITED = """
import os, resource, sys
from cache_tools.__main__ import main
from imaging.command import run
if sys.argv[1] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
elif sys.argv[1] == "nobody":
    # Once as oneself: every module is loaded while one may still read them all.
    run(main, [*sys.argv[2:-1], sys.argv[-1] + "-before"] if sys.argv[2] == "extract" else sys.argv[2:])
    os.setgid(65534)
    os.setuid(65534)
sys.exit(run(main, sys.argv[2:]))
"""


def limited(kind: str, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _LIMITED, kind, *map(str, words)],
        cwd=ROOT,
        env=ONE_THREAD,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    hr = write_images(tmp_path / "hr", [(16, 16), (64, 64), (16, 16)])
    words = ["extract", "--hr", hr, "--experts", ",".join(weights_files(tmp_path / "w")), "--out", tmp_path / "c"]
    done = limited("full", *words)
    assert done.returncode == 2
    assert "no room" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("refused: ")
    assert {path.name[0] for path in (tmp_path / "c").glob("items/*/*")} in ({"a"}, {"a", "c"})
    assert command(*words) == 0
    assert command(*words[:-1], tmp_path / "fresh") == 0
    assert item_bytes_of(tmp_path / "c") == item_bytes_of(tmp_path / "fresh")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to become another user")
def test_a_folder_without_permission_is_refused_and_still_read(tmp_path: Path) -> None:
    root = make_cache(tmp_path, [(16, 16)])
    words = ["extract", "--hr", tmp_path / "hr", "--experts", ",".join(weights_files(tmp_path / "weights"))]
    for parent in (tmp_path, *list(tmp_path.parents)[:3]):
        parent.chmod(0o755)
    for path in (tmp_path / "weights").iterdir():
        path.chmod(0o644)
    done = limited("nobody", *words, "--out", tmp_path / "other")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert limited("nobody", "verify", root, "--full").returncode == 0


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageFailed, match="cannot be written"):
        make_cache_at(tmp_path, tmp_path / "file" / "cache")


def make_cache_at(folder: Path, out: Path) -> None:
    from cache_tools.write.extract import extract
    from cache_tools.write.recipe import ExtractSettings
    from tests.cache.parts import experts

    extract(ExtractSettings(out=out, hr=write_images(folder / "hr", [(16, 16)])), experts(folder / "weights"))
