"""Caches on a real S3 server that fails on purpose: nothing lost, nothing wrong, one line where it must end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from cache_tools.format.errors import CorruptItem, StorageFailed
from cache_tools.read.dataset import CacheDataset
from cache_tools.read.reader import CacheReader
from cache_tools.storage.item_cache import FOLDER, SIZE
from cache_tools.storage.open import store_at
from championship_sr.teacher import with_cached_experts
from fusion.__main__ import main
from fusion.inference.ensemble import Answer, Place, run_tile
from imaging.command import run
from imaging.refusal import Refusal
from infer import build
from tests.cache.parts import command, command_json, item_bytes_of, make_cache, weights_files
from tests.cluster.s3 import SECRET, Server, always, once_each, s3_server
from tests.training.parts import fusion_document, write_config
from tests.training.parts import make_cache as make_small_cache

if TYPE_CHECKING:
    from collections.abc import Iterator

    Capture = pytest.CaptureFixture[str]

pytest.importorskip("s3fs", reason="needs the extra 's3'")
pytest.importorskip("moto.server", reason="needs moto's S3 server: pip install 'moto[server]'")

ROOT = Path(__file__).parents[2]
SIZES = [(32 + 4 * number, 40) for number in range(6)]


@pytest.fixture(scope="module")
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


def extract(folder: Path, out: str, *more: object) -> list[object]:
    files = weights_files(folder / "weights")
    return ["extract", "--hr", folder / "hr", "--experts", ",".join(files), "--device", "cpu", "--out", out, *more]


def objects(address: str) -> dict[str, bytes]:
    """Every item's name and content, as the server has them."""
    bucket = store_at(address).bucket
    return {name.rpartition("/")[2]: bucket.read(name) for name in bucket.list("items/")}


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


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "much"])
def test_a_local_cache_of_no_size_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv(SIZE, size)
    with pytest.raises(Refusal, match="is no size"):
        store_at(server.address("any"))


def make_other(folder: Path) -> Path:
    """A third expert over the same images."""
    files = weights_files(folder / "other", (2,))
    assert (
        command("extract", "--hr", folder / "hr", "--experts", files[0], "--device", "cpu", "--out", folder / "o") == 0
    )
    return folder / "o"


@pytest.mark.parametrize("fault", ["500", "slow", "cut"])
def test_passing_faults_cost_time_only(server: Server, local: Path, tmp_path: Path, fault: str) -> None:
    out = server.address(f"{tmp_path.name}")
    server.faults.of = once_each(fault, "PUT", "/items/")
    if fault != "cut":  # an answer to a PUT has no body that could be cut
        assert command(*extract(tmp_path, out)) == 0
    else:
        assert command("push", local, out) == 0
    server.faults.of = lambda _seen: None
    assert objects(out) == item_bytes_of(local)
    server.faults.of = once_each(fault, "GET", "/items/")
    same(out, local)


def same(address: str, local: Path) -> None:
    """Whole items and random patches are those of the folder."""
    for one, other in zip(CacheReader(address), CacheReader(local), strict=True):
        assert torch.equal(one.sr_BECHW, other.sr_BECHW)
        assert all(torch.equal(one.feats[name], other.feats[name]) for name in other.feats)
    remote, folder = (iter(CacheDataset(root, patch=32, batch=3)) for root in (address, local))
    for _ in range(4):
        one, other = next(remote), next(folder)
        assert one.items == other.items
        assert torch.equal(one.sr_BECHW, other.sr_BECHW)
        assert one.feats_BCHW is not None
        assert other.feats_BCHW is not None
        assert torch.equal(one.feats_BCHW, other.feats_BCHW)


def test_a_damaged_answer_is_asked_for_again_and_never_served(server: Server, local: Path, tmp_path: Path) -> None:
    out = server.address(tmp_path.name)
    assert command("push", local, out) == 0
    server.faults.of = once_each("flip", "GET", "/items/")
    same(out, local)
    server.faults.of = always("flip", "GET", "/items/")
    os.environ[FOLDER] = str(tmp_path / "fresh")
    reader = CacheReader(out)
    with pytest.raises(CorruptItem, match=f"{out}.*arrives damaged"):
        reader.read(reader.entries[0].id)
    assert not [path for path in (tmp_path / "fresh").rglob("*.h5*") if path.is_file()]


def test_a_damaged_or_vanished_local_copy_is_fetched_again(server: Server, local: Path, tmp_path: Path) -> None:
    out = server.address(tmp_path.name)
    assert command("push", local, out) == 0
    same(out, local)
    copies = sorted((tmp_path / "copies").rglob("*.h5"))
    assert len(copies) == len(SIZES)
    for number, path in enumerate(copies):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content if number % 2 else content[: len(content) // 2])
    same(out, local)
    reader, folder = CacheReader(out), CacheReader(local)
    opened = [reader.file(entry.id) for entry in reader.entries]
    for path in copies:
        path.unlink()
    for file, entry in zip(opened, folder.entries, strict=True):
        assert (file.whole("lr") == folder.file(entry.id).whole("lr")).all()


def bytes_in(folder: Path) -> int:
    """On disk, of copies and of downloads that still run ahead; a file that holds room for one of them has no bytes."""
    total = 0
    for path in folder.rglob("*.h5*"):
        with suppress(FileNotFoundError):  # one that has been renamed or has gone since
            total += 0 if ".room" in path.name else path.stat().st_size
    return total


def test_the_local_copies_stay_within_their_limit(server: Server, local: Path, tmp_path: Path) -> None:
    out = server.address(tmp_path.name)
    assert command("push", local, out) == 0
    largest = max(len(content) for content in item_bytes_of(local).values())
    os.environ[SIZE] = str(2.2 * largest / 1e9)
    same(out, local)
    assert bytes_in(tmp_path / "copies") <= 2.2 * largest
    os.environ[SIZE] = str(0.5 * largest / 1e9)
    os.environ[FOLDER] = str(tmp_path / "small")
    with pytest.raises(Refusal, match="raise --local-cache-size"):
        list(CacheReader(out))


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_a_denied_key_is_one_line(server: Server, local: Path, tmp_path: Path, capsys: Capture, method: str) -> None:
    out = server.address(tmp_path.name)
    if method == "GET":
        assert command("push", local, out) == 0
    server.faults.of = always("403", method, "/")
    assert command(*(["info", out] if method == "GET" else extract(tmp_path, out))) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("refused: s3://")
    assert "access is denied" in last
    assert "credentials" in last
    assert SECRET not in last


def test_a_server_that_only_fails_ends_the_run_and_nothing_is_lost(
    server: Server, local: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = server.address(tmp_path.name)
    left: list[Any] = [3]

    def after_three(seen: Any) -> str | None:
        if seen.method == "PUT" and "/items/" in seen.path:
            left[0] -= 1
            return "500" if left[0] < 0 else None
        return None

    server.faults.of = after_three
    assert command(*extract(tmp_path, out)) == 2
    assert "failed 4 times" in capsys.readouterr().err.strip().splitlines()[-1]
    server.faults.of = lambda _seen: None
    assert len(objects(out)) == 3
    code, report = command_json(capsys, *extract(tmp_path, out))
    assert (code, len(report["made"]), len(report["kept"])) == (0, 3, 3)
    assert objects(out) == item_bytes_of(local)
    assert not list((tmp_path / "outgoing").rglob("*.h5*"))


def test_damaged_objects_are_found_set_aside_and_made_again(
    server: Server, local: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = server.address(tmp_path.name)
    assert command(*extract(tmp_path, out)) == 0
    bucket = store_at(out).bucket
    first, second = sorted(bucket.list("items/"))[:2]
    content = bytearray(bucket.read(first))
    content[len(content) // 2] ^= 1
    bucket.write(first, bytes(content))
    bucket.write(second, bucket.read(second)[:1000])
    assert command("verify", out, "--full", "--quarantine") == 1
    assert capsys.readouterr().out.count("failed: ") == 2
    assert len(bucket.list("quarantine/")) == 2
    assert command(*extract(tmp_path, out)) == 0
    assert objects(out) == item_bytes_of(local)
    assert command("verify", out, "--full") == 0


def test_pull_brings_back_what_push_sent_and_both_resume(server: Server, local: Path, tmp_path: Path) -> None:
    out = server.address(tmp_path.name)
    assert command("push", local, out) == 0
    before = server.faults.count("PUT", "/items/")
    assert command("push", local, out) == 0
    assert server.faults.count("PUT", "/items/") == before == len(SIZES)
    server.faults.of = once_each("cut", "GET", "/items/")
    assert command("pull", out, tmp_path / "back") == 0
    assert item_bytes_of(tmp_path / "back") == item_bytes_of(local)
    assert command("verify", tmp_path / "back", "--full") == 0
    next((tmp_path / "back").glob("items/*/*.h5")).unlink()
    assert command("pull", out, tmp_path / "back") == 0
    assert item_bytes_of(tmp_path / "back") == item_bytes_of(local)
    damaged = next(local.glob("items/*/*.h5"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert command("push", local, server.address(f"{tmp_path.name}-other")) == 2


def test_missing_caches_items_and_buckets_are_refused(
    server: Server, local: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert command("info", server.address("nothing-here")) == 2
    assert "is not a cache" in capsys.readouterr().err
    assert command(*extract(tmp_path, "s3://no-such-bucket/cache")) == 2
    out = server.address(tmp_path.name)
    assert command("push", local, out) == 0
    reader = CacheReader(out)
    store_at(out).remove(reader.entries[0].id)
    with pytest.raises(CorruptItem, match="item is missing"):
        reader.read(reader.entries[0].id)


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


def test_storage_that_fails_is_not_a_bad_image(server: Server, local: Path, tmp_path: Path) -> None:
    """It ends a run at once: every later item would fail as well."""
    store = store_at(server.address(tmp_path.name))
    server.faults.of = always("500", "PUT", "/")
    with pytest.raises(StorageFailed), store.committing("item") as path:
        path.write_bytes(b"content")
