"""Two processes started by torchrun: their gradients equal one process on the same batch; wrong launches stop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from imaging.command import DONE
from tests.training.parts import (
    expert_document,
    fusion_document,
    make_cache,
    quiet_environment,
    write_config,
    write_pictures,
)
from tests.training.test_loop import last_state

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]


def launch(config: Path, port: int) -> subprocess.CompletedProcess[str]:
    words = [*TORCHRUN, str(port), "train.py", "--config", str(config)]
    return subprocess.run(words, cwd=ROOT, env=quiet_environment(), capture_output=True, text=True, timeout=240)


def first_moments(run: Path) -> dict[int, torch.Tensor]:
    """After one step Adam's first moment is a tenth of the (clipped) gradient."""
    state = last_state(run)["optimizer"]["state"]
    return {key: value["exp_avg"] for key, value in state.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("task", "port"), [("expert", 29611), ("fusion", 29612)])
def test_two_processes_have_the_gradients_of_one(tmp_path, task, port):
    if task == "expert":
        documents = [
            expert_document(write_pictures(tmp_path / "hr"), tmp_path / str(world), steps=2, processes=world)
            for world in (1, 2)
        ]
    else:
        cache = make_cache(tmp_path)
        documents = [
            fusion_document(cache, tmp_path / str(world), steps=2, processes=world, fusion={"expert_dropout": 0.5})
            for world in (1, 2)
        ]
    for document in documents:
        document["optimizer"] = {"lr": 1e-9, "clip": None}
        config = write_config(tmp_path / f"{document['processes']}.yaml", document)
        if document["processes"] == 1:
            assert train.main(["--config", str(config)]) == DONE
        else:
            done = launch(config, port)
            assert done.returncode == 0, done.stderr[-2000:]
    one, two = first_moments(tmp_path / "1"), first_moments(tmp_path / "2")
    assert one.keys() == two.keys() and one
    assert max(float(moment.abs().max()) for moment in one.values()) > 0
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-8)


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
    alone = first_moments(tmp_path / "alone")
    for name, meeting in (("static", STATIC), ("rendezvous", RENDEZVOUS)):
        config = config_of(name, 2)
        nodes = [start_node(config, [word.format(node=node) for word in meeting]) for node in range(2)]
        for node in nodes:
            _, errors = node.communicate(timeout=240)
            assert node.returncode == 0, errors[-2000:]
        together = first_moments(tmp_path / name)
        assert together.keys() == alone.keys() and alone
        for key, one in alone.items():
            torch.testing.assert_close(together[key], one, rtol=1e-3, atol=1e-8)


def start_node(config: Path, meeting: list[str]) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", *meeting]
    words += ["train.py", "--config", str(config)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, cwd=ROOT, env=quiet_environment(), text=True, **pipes)


@pytest.mark.slow
def test_two_processes_where_one_was_asked_for_are_refused(tmp_path):
    document = expert_document(write_pictures(tmp_path / "hr"), tmp_path / "run", steps=1)
    done = launch(write_config(tmp_path / "config.yaml", document), 29613)
    assert done.returncode != 0
    assert "the launcher started 2 processes, the settings ask for 1" in done.stderr
    assert not (tmp_path / "run").exists()
