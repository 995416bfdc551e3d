"""The forecast for many machines, and the files that start a cluster: their syntax and the commands in them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
import yaml

from cache_tools.format.location import parse_location
from cache_tools.options import parse
from imaging.refusal import Refusal
from tests.cache.parts import command, command_json, weights_files, write_images
from tests.experts.parts import small_network

if TYPE_CHECKING:
    Capture = pytest.CaptureFixture[str]

FILES = Path(__file__).parents[2] / "configs" / "cluster"


def words(folder: Path) -> list[object]:
    experts = ",".join(weights_files(folder / "w", (0,)))
    return ["plan", "--hr", write_images(folder / "hr"), "--experts", experts, "--device", "cpu", "--out", "s3://b/c"]


def test_a_measured_rate_is_multiplied_out(tmp_path: Path, capsys: Capture) -> None:
    more = ["--no-timing", "--workers", 8, "--rate", 50, "--regions", 4, "--region-size", 32, "--dihedral"]
    code, plan = command_json(capsys, *words(tmp_path), *more)
    assert code == 0
    own, df2k, lsdir = plan["cluster"]["sets"]
    assert (own["items"], own["bytes"]) == (plan["files"], plan["bytes"]["compact"])
    assert (df2k["items"], lsdir["items"]) == (3450 * 4 * 8, 84991 * 4 * 8)
    assert df2k["lr_pixels"] == 3450 * 8 * 4 * 32**2
    assert df2k["worker_hours"] == pytest.approx(3450 * 8 * 4 * 64**2 / 1e6 * 50 / 3600)
    assert df2k["hours"] == pytest.approx(df2k["worker_hours"] / 8)
    assert any("--rate as given" in one for one in plan["cluster"]["assumed"])


def test_a_gpu_is_estimated_from_counted_operations_and_says_so(tmp_path: Path, capsys: Capture) -> None:
    code, plan = command_json(capsys, *words(tmp_path), "--no-timing", "--workers", 64, "--gpu", "h100")
    assert code == 0
    network = small_network("EDSR", 0, num_feat=6, num_block=1)
    # Counted by hand from the layers: two operations a weight, at the resolution of each convolution's output.
    by_hand = 0
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(
                    lambda layer, _inputs, output: count.append(2 * layer.weight.numel() * output[0, 0].numel())
                )
        count: list[int] = []
        network(torch.zeros(1, 3, 64, 64))
        by_hand = sum(count) / 64**2
    assert plan["cluster"]["seconds_per_megapixel"] == pytest.approx(by_hand * 1e6 / (0.3 * 67e12), rel=0.01)
    assert any("no h100 was timed" in one for one in plan["cluster"]["assumed"])
    assert command(*words(tmp_path), "--workers", 2, "--gpu", "h10") == 2
    assert "did you mean 'h100'?" in capsys.readouterr().err
    assert command(*words(tmp_path), "--no-timing", "--workers", 2) == 2
    assert command(*words(tmp_path), "--gpu", "h100") == 2
    for wrong in (("--workers", 0, "--gpu", "h100"), ("--workers", 2, "--rate", -1), ("--workers", 2, "--rate", "nan")):
        capsys.readouterr()
        assert command(*words(tmp_path), "--no-timing", *wrong) == 2
        assert "give a number above 0" in capsys.readouterr().err


def test_addresses() -> None:
    assert parse_location("s3://bucket/a/b/") == "s3://bucket/a/b"
    assert parse_location("file:///a/b") == Path("/a/b")
    assert parse_location("a/b") == Path("a/b")
    for text in ("s3://key:secret@bucket/a", "s3://bucket/a?token=1"):
        with pytest.raises(Refusal, match="must not hold credentials") as refused:
            parse_location(text)
        assert "secret" not in str(refused.value)
    with pytest.raises(Refusal, match="names no bucket"):
        parse_location("s3://")


@pytest.mark.parametrize("name", ["slurm.sbatch", "machines.sh"])
def test_shell_files_parse(name: str) -> None:
    shell = shutil.which("bash")
    assert shell is not None
    done = subprocess.run([shell, "-n", FILES / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def stub(folder: Path, name: str, script: str) -> None:
    """A program of a cluster that this machine lacks."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)


def run_file(name: str, folder: Path, *words: str, **environment: str) -> tuple[int, list[str]]:
    """One of our files with `ray` and the like replaced by stubs, and what was asked of them, in order."""
    log, path = folder / "log", f"{folder / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", FILES / name, *words],
        cwd=folder,
        env={**os.environ, "PATH": path, "HOME": str(folder), "RAY_AUTH_MODE": "", "LOG": str(log), **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, log.read_text().splitlines() if log.exists() else [done.stderr]


def test_machines_start_run_and_stop_whatever_comes_of_it(tmp_path: Path) -> None:
    stub(tmp_path / "bin", "ssh", 'host=$1; shift; export HOST=$host; bash -c "$*"')
    token = "if [[ $1 == get-auth-token ]]; then printf secret; fi"
    stub(tmp_path / "bin", "ray", f'echo "$HOST: ray $* ($RAY_AUTH_MODE)" >> "$LOG"; {token}')
    command_line = ["python", "-c", "import os, sys; open(os.environ['LOG'], 'a').write(sys.argv[1]); sys.exit(3)"]
    code, log = run_file("machines.sh", tmp_path, "a", "b", "c", "--", *command_line, "two words; $HOST\n", PORT="7000")
    assert code == 3
    assert log == [
        "a: ray get-auth-token --generate ()",
        "a: ray start --head --port=7000 (token)",
        "b: ray start --address=a:7000 (token)",
        "c: ray start --address=a:7000 (token)",
        "two words; $HOST",
        *(f"{host}: ray stop ()" for host in "abc"),
    ]
    assert (tmp_path / ".ray" / "auth_token").read_text() == "secret"
    assert run_file("machines.sh", tmp_path / "bin", "a", "b")[0] == 2


def test_the_slurm_job_waits_for_its_head_and_ends_as_its_driver_does(tmp_path: Path) -> None:
    listen = "import os, socket; socket.create_server(('', int(os.environ['PORT']))).accept()"
    stub(tmp_path / "bin", "scontrol", "echo localhost; echo other")
    stub(tmp_path / "bin", "srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    head = f'{{ sleep 1; echo "head is up" >> "$LOG"; exec {sys.executable} -c "{listen}"; }}'
    stub(tmp_path / "bin", "ray", f'echo "ray $*" >> "$LOG"; if [[ "$*" == *--head* ]]; then {head}; fi')
    stub(tmp_path / "bin", "python", 'echo "python $*" >> "$LOG"; exit 1')
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    nodes = {"SLURM_JOB_NODELIST": "x", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    code, log = run_file("slurm.sbatch", tmp_path, PORT=port, **nodes)
    assert code == 1
    assert log.pop(0) == "ray get-auth-token --generate"
    assert log[:2] == [f"ray start --head --port={port} --block", "head is up"]
    assert f"ray start --address=localhost:{port} --block" in log[2:]
    driver = next(line for line in log[2:] if line.startswith("python"))
    assert f"cache_tools extract --engine ray --address localhost:{port}" in driver
    assert "--workers 16 " in driver


def test_kuberay_is_a_job_whose_command_is_one_of_ours() -> None:
    job = yaml.safe_load((FILES / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]["rayClusterSpec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
    options = parse(shlex.split(job["spec"]["entrypoint"])[3:])
    assert (options.command, options.engine, options.out) == ("extract", "ray", "s3://bucket/df2k")


def test_the_command_of_the_slurm_file_is_one_of_ours() -> None:
    text = (FILES / "slurm.sbatch").read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if "cache_tools extract" in line)
    values = {"$CACHE": "s3://bucket/df2k", "$IMAGES": "hr", "$EXPERTS": "a,b", "$address": "host:6379"}
    line = re.sub(r"\$\(\(.*?\)\)", "16", line.partition("cache_tools")[2])
    found = [re.sub(r"\$\w+", lambda name: values[name[0]], word) for word in shlex.split(line)]
    options = parse(found)
    assert (options.engine, options.address, options.gpus_per_worker) == ("ray", "host:6379", 1.0)
