"""Caches on a real S3 server: every command, training and loader gives from an address what it gives from a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from cache_tools.read.dataset import CacheDataset
from cache_tools.read.reader import CacheReader
from cache_tools.storage.item_cache import FOLDER
from championship_sr.teacher import with_cached_experts
from fusion.__main__ import main
from fusion.inference.ensemble import Answer, Place, run_tile
from imaging.command import run
from infer import build
from tests.cache.parts import command, command_json, item_bytes_of, make_cache, weights_files
from tests.cluster.buckets import SIZES, extract, objects
from tests.cluster.s3 import SECRET, Server
from tests.training.parts import fusion_document, write_config
from tests.training.parts import make_cache as make_small_cache

if TYPE_CHECKING:
    Capture = pytest.CaptureFixture[str]

pytest.importorskip("s3fs", reason="needs the extra 's3'")
pytest.importorskip("moto.server", reason="needs moto's S3 server: pip install 'moto[server]'")
ROOT = Path(__file__).parents[2]


def test_every_command_takes_an_address(server: Server, local: Path, tmp_path: Path, capsys: Capture) -> None:
    out = server.address(tmp_path.name)
    code, plan = command_json(capsys, "plan", *extract(tmp_path, out)[1:], "--no-timing")
    assert (code, plan["files"], plan["free"]) == (0, len(SIZES), None)
    assert command(*extract(tmp_path, out)) == 0
    assert objects(out) == item_bytes_of(local)
    code, report = command_json(capsys, *extract(tmp_path, out))
    assert (code, report["made"], len(report["kept"])) == (0, [], len(SIZES))
    assert command(*extract(tmp_path, out), "--profile", "half") == 2
    assert "holds another cache" in capsys.readouterr().err
    code, info = command_json(capsys, "info", out)
    _, expected = command_json(capsys, "info", local)
    assert code == 0
    assert {key: info[key] for key in info if key != "root"} == {key: expected[key] for key in info if key != "root"}
    assert command("verify", out, "--full") == 0
    assert command("merge", out, make_other(tmp_path), "--out", server.address(f"{tmp_path.name}-merged")) == 0
    assert [one.name for one in CacheReader(server.address(f"{tmp_path.name}-merged")).recipe.experts] == [
        "e0",
        "e1",
        "e2",
    ]
    from fusion.evaluation.headroom import analyze

    assert analyze(out).table.rows == analyze(local).table.rows
    assert SECRET not in capsys.readouterr().err
    assert all(SECRET.encode() not in path.read_bytes() for path in tmp_path.rglob("*.json"))


def test_fusion_commands_give_the_same_from_an_address(server: Server, tmp_path: Path, capsys: Capture) -> None:
    local, out = make_small_cache(tmp_path / "cache"), server.address(tmp_path.name)
    assert command("push", local, out) == 0
    copies = tmp_path / "named"
    found: list[dict[str, Any]] = []
    for number, cache in enumerate((local, out)):
        place = tmp_path / str(number)
        place.mkdir()
        config = write_config(place / "c.yaml", fusion_document(local, place / "run", steps=2, checkpoint={"every": 2}))
        model, more = place / "base.safetensors", ["--local-cache", copies, "--json"]
        own = ["fit-base", cache, "--out", model], ["judge", model, cache], ["analyze", cache]
        budget = ["fit-budget", cache, "--seconds", "ann=1,bob=2", "--out", place / "b.json", "--check", cache]
        ablate = ["ablate", "--config", config, "--cache", cache, "--only", "no refine", "validation.every=2"]
        answers: dict[str, Any] = {}
        for words in (*own, budget, ablate):
            capsys.readouterr()
            assert run(main, list(map(str, [*words, *more]))) == 0, words[0]
            answers[str(words[0])] = json.loads(capsys.readouterr().out)
        del answers["fit-base"]["model"]
        found.append(answers)
    # A table of `judge` and of `fit-budget` has the name of its cache.
    assert len(list(found[1]["judge"].values())) == 1
    for name in ("fit-base", "analyze", "ablate"):
        assert found[0][name] == found[1][name], name
    assert [*found[0]["judge"].values()] == [*found[1]["judge"].values()]
    assert len(list(copies.rglob("*.h5"))) == len(CacheReader(local).entries)


def test_what_fusion_refuses_names_the_address(server: Server, tmp_path: Path, capsys: Capture) -> None:
    out = server.address(tmp_path.name)
    make_cache(tmp_path, SIZES[:1])
    words = ["--lr", tmp_path / "hr", "--experts", weights_files(tmp_path / "weights")[0], "--device", "cpu"]
    assert command("extract", *words, "--out", out) == 0
    assert run(main, ["analyze", out]) == 2
    assert f"refused: {out}: has no HR images" in capsys.readouterr().err


def test_a_distilled_teacher_reads_its_experts_from_an_address(server: Server, tmp_path: Path, capsys: Capture) -> None:
    local, out = make_cache(tmp_path, SIZES[:1]), server.address(tmp_path.name)
    assert command("push", local, out) == 0
    ensemble = build("none", weights_files(tmp_path / "weights"), device="cpu")

    def fail(*_: object) -> Answer:
        raise AssertionError("run, though the cache holds it")

    read = with_cached_experts(replace(ensemble, experts=dict.fromkeys(ensemble.experts, fail)), out)
    batch = next(iter(CacheReader(local)))
    place = Place(batch.items[0], 0, 0, *batch.lr_BCHW.shape[-2:])
    assert torch.equal(run_tile(read, batch.lr_BCHW, place), batch.sr_BECHW.mean(1)[0])
    words = ["distil", "--model", "none", "--experts", weights_files(tmp_path / "another", (2,))[0], "--cache", out]
    words += ["--lr", tmp_path / "hr", "--student", "MSG", "--device", "cpu", "--out", tmp_path / "student.safetensors"]
    assert run(main, list(map(str, words))) == 2
    assert f"refused: {out}: does not hold the expert 'e2'" in capsys.readouterr().err


def make_other(folder: Path) -> Path:
    """A third expert over the same images."""
    files = weights_files(folder / "other", (2,))
    assert (
        command("extract", "--hr", folder / "hr", "--experts", files[0], "--device", "cpu", "--out", folder / "o") == 0
    )
    return folder / "o"


def test_each_rank_downloads_its_share(server: Server, tmp_path: Path) -> None:
    local = make_cache(tmp_path, [(32, 32 + number) for number in range(12)])
    out = server.address(tmp_path.name)
    assert command("push", local, out) == 0
    shares: list[set[str]] = []
    for rank in range(2):
        os.environ[FOLDER] = str(tmp_path / f"rank-{rank}")
        dataset = CacheDataset(out, patch=32, batch=3, rank=rank, world=2, augment=False)
        server.faults.seen.clear()
        items = {item for step in range(2) for item in dataset.make(0, step).items}
        asked = {one.path.rpartition("/")[2].partition(".")[0] for one in server.faults.seen if one.method == "GET"}
        assert asked == items
        shares.append(items)
    assert not shares[0] & shares[1]
    assert len(shares[0] | shares[1]) == 12


def test_loader_workers_read_from_an_address(server: Server, local: Path, tmp_path: Path) -> None:
    out = server.address(tmp_path.name)
    assert command("push", local, out) == 0
    batches = [iter(CacheDataset(root, patch=32, batch=2, seed=3).loader(2)) for root in (out, local)]
    for _ in range(5):
        one, other = (next(loader) for loader in batches)
        assert torch.equal(one.sr_BECHW, other.sr_BECHW)
    del batches


@pytest.mark.slow
def test_two_ranks_train_the_same_model_from_an_address(server: Server, tmp_path: Path) -> None:
    local, out = make_cache(tmp_path, [(40, 48 + number) for number in range(12)]), server.address(tmp_path.name)
    assert command("push", local, out) == 0
    settings = ["processes=2", "steps=4", "data.patch=32", "data.batch=4", "data.hold_out=4", "data.workers=0"]
    models: list[dict[str, torch.Tensor]] = []
    for name, cache in (("folder", local), ("address", out)):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
        words = ["--config", "configs/fusion_x4.yaml", "--cache", str(cache), "--local-cache-size", "1", *settings]
        run = [f"run={tmp_path / name}", "device=cpu", "fusion.budget=false"]
        done = subprocess.run(
            [*launcher, *words, *run],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert SECRET not in done.stderr
        models.append(load_file(next((tmp_path / name).glob("*.safetensors"))))
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
