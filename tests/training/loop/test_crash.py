"""Real trainings with two loader workers, killed by SIGKILL again and again: each ends with an unkilled one's bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.training.parts import quiet_environment

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kills"), [("fusion", 4), ("expert", 2)])
def test_killed_at_random_moments_with_workers_it_ends_with_the_same_bits(task: str, kills: int) -> None:
    """Against an uninterrupted run without workers. What a killed process handed to the system survives in memory."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        words = [sys.executable, "-m", "tests.training.loop.crash", folder, task, "2", str(kills)]
        done = subprocess.run(words, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == kills and found["ends"] >= 1
    assert len(found["resumed_from"]) >= 2, "all kills fell on one moment"
