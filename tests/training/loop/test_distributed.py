"""Two processes started by torchrun: their gradients equal one process on the same batch; wrong launches stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from imaging.command import DONE
from imaging.refusal import Refusal
from tests.training.loop.parts import last_state
from tests.training.parts import (
    expert_document,
    fusion_document,
    make_cache,
    quiet_environment,
    write_config,
    write_pictures,
)

ROOT = Path(__file__).parents[3]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def first_moments(run: Path) -> dict[int, torch.Tensor]:
    """After one step Adam's first moment is a tenth of the (clipped) gradient."""
    state = last_state(run)["optimizer"]["state"]
    return {key: value["exp_avg"] for key, value in state.items()}


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path):
    cache = make_cache(tmp_path)

    def config_of(world: int) -> Path:
        document = fusion_document(
            cache, tmp_path / str(world), steps=2, processes=world, fusion={"expert_dropout": 0.5}
        )
        document["optimizer"] = {"lr": 1e-9, "clip": None}
        return write_config(tmp_path / f"{world}.yaml", document)

    assert train.main(["--config", str(config_of(1))]) == DONE
    words = [*TORCHRUN, "--nproc-per-node", "2", "--master-port", "29612", "train.py", "--config", str(config_of(2))]
    done = subprocess.run(words, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_gradients(tmp_path / "2", tmp_path / "1")


def assert_same_gradients(run: Path, reference: Path) -> None:
    found, expected = first_moments(run), first_moments(reference)
    assert found.keys() == expected.keys() and expected
    assert max(float(moment.abs().max()) for moment in expected.values()) > 0
    for key, one in expected.items():
        torch.testing.assert_close(found[key], one, rtol=1e-3, atol=1e-8)


STATIC = ["--node-rank", "{node}", "--master-addr", "127.0.0.1", "--master-port", "29614"]
RENDEZVOUS = ["--rdzv-id", "job", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:29615"]


@pytest.mark.slow
def test_two_launchers_as_on_two_machines_have_the_gradients_of_one(tmp_path):
    """As docs/training.md starts it on two machines and under SLURM: each launcher knows of its own process alone."""
    hr = write_pictures(tmp_path / "hr")

    def config_of(name: str, world: int) -> Path:
        document = expert_document(hr, tmp_path / name, steps=2, processes=world)
        document["optimizer"] = {"lr": 1e-9, "clip": None}
        return write_config(tmp_path / f"{name}.yaml", document)

    assert train.main(["--config", str(config_of("alone", 1))]) == DONE
    for name, meeting in (("static", STATIC), ("rendezvous", RENDEZVOUS)):
        config = config_of(name, 2)
        nodes = [start_node(config, [word.format(node=node) for word in meeting]) for node in range(2)]
        for node in nodes:
            _, errors = node.communicate(timeout=240)
            assert node.returncode == 0, errors[-2000:]
        assert_same_gradients(tmp_path / name, tmp_path / "alone")


def start_node(config: Path, meeting: list[str]) -> subprocess.Popen[str]:
    words = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", *meeting, "train.py", "--config", str(config)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=ROOT, env=quiet_environment(), text=True, **pipes)


def test_two_processes_where_one_was_asked_for_are_refused(tmp_path, monkeypatch):
    document = expert_document(write_pictures(tmp_path / "hr"), tmp_path / "run", steps=1)
    monkeypatch.setenv("WORLD_SIZE", "2")  # what a launcher says to each process that it starts
    with pytest.raises(Refusal, match="the launcher started 2 processes, the settings ask for 1"):
        train.main(["--config", str(write_config(tmp_path / "config.yaml", document))])
    assert not (tmp_path / "run").exists()
