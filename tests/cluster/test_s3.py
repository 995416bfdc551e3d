"""Caches on a real S3 server that fails on purpose: nothing lost, nothing wrong, one line where it must end."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cache_tools.format.errors import CorruptItem, StorageFailed
from cache_tools.read.dataset import CacheDataset
from cache_tools.read.reader import CacheReader
from cache_tools.storage.item_cache import FOLDER, SIZE
from cache_tools.storage.open import store_at
from imaging.refusal import Refusal
from tests.cache.parts import command, command_json, item_bytes_of
from tests.cluster.buckets import SIZES, extract, objects
from tests.cluster.s3 import SECRET, Server, always, once_each

if TYPE_CHECKING:
    Capture = pytest.CaptureFixture[str]

pytest.importorskip("s3fs", reason="needs the extra 's3'")
pytest.importorskip("moto.server", reason="needs moto's S3 server: pip install 'moto[server]'")


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "much"])
def test_a_local_cache_of_no_size_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv(SIZE, size)
    with pytest.raises(Refusal, match="is no size"):
        store_at(server.address("any"))


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


def test_storage_that_fails_is_not_a_bad_image(server: Server, local: Path, tmp_path: Path) -> None:
    """It ends a run at once: every later item would fail as well."""
    store = store_at(server.address(tmp_path.name))
    server.faults.of = always("500", "PUT", "/")
    with pytest.raises(StorageFailed), store.committing("item") as path:
        path.write_bytes(b"content")
