"""A Ray cluster of two nodes on this machine, slow and deadly experts, and who to kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parents[2]
# Small, alone, and as reproducible as a local run: the same number of threads on both sides.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}  # bytes of shared memory: answers are small

# An expert that takes its time, and one that kills its process: once (until `marker` is there) or at one image size.
NETWORK = """
import os, signal, time
from pathlib import Path
import torch
from torch import nn
from torch.nn import functional as F

class Slow(nn.Module):
    def __init__(self, seconds=0.3, kill_width=0, marker=""):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seconds, self.kill_width, self.marker = seconds, kill_width, marker

    def forward(self, x):
        if x.shape[-1] == self.kill_width and not (self.marker and Path(self.marker).exists()):
            if self.marker:
                Path(self.marker).write_text("killed once")
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return F.interpolate(x, scale_factor=4, mode="nearest") * self.weight
"""


def slow_expert(folder: Path, **settings: object) -> list[object]:
    """The words that make `cache_tools extract` run it."""
    (folder / "net.py").write_text(NETWORK)
    save_file({"weight": torch.ones(1)}, folder / "slow.safetensors")
    arguments = ",".join(f"{name}={value!r}" for name, value in settings.items())
    return ["--experts", f"code:{folder / 'net.py'}:Slow({arguments}):{folder / 'slow.safetensors'}", "--trust-code"]


def two_nodes() -> Iterator[Any]:
    """A head without CPUs and two nodes with one each; gone afterwards, whatever happened."""
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    head = NODE | {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(**NODE)
        yield cluster
    finally:
        cluster.shutdown()


def start(*words: object) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(
        command, cwd=ROOT, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str, str]:
    """Wait for it: exit code, stdout, stderr."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Poll; what does not come is an error, not an endless test."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "did not happen in time"
        time.sleep(0.05)


def workers_of(cluster: Any) -> list[int]:
    """Process ids of the actors that hold experts: children of the nodes' raylets, by Linux's /proc."""
    return [worker for node in cluster.worker_nodes for worker in _workers_of(node)]


def kill_node(cluster: Any) -> None:
    """A machine with a worker on it loses its power: all its processes go at once."""
    wait_until(lambda: workers_of(cluster))
    node = next(node for node in cluster.worker_nodes if _workers_of(node))
    for process in (_raylet_of(node), *_workers_of(node)):
        kill(process)


def kill(process: int) -> None:
    """No farewell."""
    os.kill(process, signal.SIGKILL)


def _raylet_of(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def _workers_of(node: Any) -> list[int]:
    found: list[int] = []
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            name = (folder / "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue
        if parent == _raylet_of(node) and b"ray::WorkerProcess" in name:
            found.append(int(folder.name))
    return found
