"""Extraction resumed, in batches, expert by expert and in shards: the same cache, and no other settings mixed in."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cache_tools.format.errors import ForeignCache
from cache_tools.format.store import Store
from cache_tools.read.reader import iterate_items
from cache_tools.write.extract import extract
from cache_tools.write.jobs import make_batches, make_jobs, owned
from cache_tools.write.pairs import Source
from cache_tools.write.recipe import ExtractSettings
from cache_tools.write.sequential import extract_sequentially
from experts.open import open_experts
from imaging.files import write_picture
from tests.cache.parts import command, experts, item_bytes_of, make_cache, weights_files

if TYPE_CHECKING:
    from pathlib import Path


def test_resuming_makes_only_what_is_missing(tmp_path: Path) -> None:
    root = make_cache(tmp_path)
    before = item_bytes_of(root)
    next(root.glob("items/*/b-*.h5")).unlink()
    stamps = {path.name: path.stat().st_mtime_ns for path in root.glob("items/*/*.h5")}
    report = extract(ExtractSettings(out=root, hr=tmp_path / "hr"), experts(tmp_path / "weights"))
    assert [item[0] for item in report.made] == ["b"]
    assert len(report.kept) == 2
    assert item_bytes_of(root) == before
    assert all(
        path.stat().st_mtime_ns == stamps[path.name] for path in root.glob("items/*/*.h5") if path.name in stamps
    )


def test_a_lost_or_torn_index_is_mended(tmp_path: Path) -> None:
    root = make_cache(tmp_path)
    index = root / "index" / "rank-000.jsonl"
    whole = index.read_text()
    index.write_text(whole[:-20])
    assert len(Store(root).entries()) == 3
    make_cache(tmp_path)
    ids = {entry.id for entry in Store(root).entries()}
    assert {entry.id for entry in Store(root).index_lines()} == ids
    index.unlink()
    assert {entry.id for entry in Store(root).entries()} == ids


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"profile": "half"}, "profile is compact, requested half"),
        ({"regions": 1, "region_size": 16}, "regions is 0, requested 1"),
        ({"dihedral": True}, "dihedral is False"),
        ({"compression": "gzip"}, "compression"),
    ],
)
def test_other_settings_are_not_mixed_in(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    make_cache(tmp_path)
    with pytest.raises(ForeignCache, match=word):
        make_cache(tmp_path, **change)


def test_other_weights_are_not_mixed_in(tmp_path: Path) -> None:
    root = make_cache(tmp_path)
    settings = ExtractSettings(out=root, hr=tmp_path / "hr")
    other = weights_files(tmp_path / "other", (3, 1))
    shutil.move(other[0], tmp_path / "other" / "e0.safetensors")
    with pytest.raises(ForeignCache, match="expert e0 has channels|expert e0 has weights_sha256"):
        extract(settings, open_experts([str(tmp_path / "other" / "e0.safetensors"), other[1]]))
    with pytest.raises(ForeignCache, match="experts are e0, e1, requested e0"):
        extract(settings, experts(tmp_path / "weights", (0,)))


def test_a_changed_source_is_reported(tmp_path: Path) -> None:
    root = make_cache(tmp_path)
    write_picture(tmp_path / "hr" / "a.png", torch.rand(1, 3, 160, 192))
    report = extract(ExtractSettings(out=root, hr=tmp_path / "hr"), experts(tmp_path / "weights"))
    assert [(one.item[0], "changed since" in one.reason) for one in report.failures] == [("a", True)]
    (tmp_path / "hr" / "b.png").touch()
    report = extract(ExtractSettings(out=root, hr=tmp_path / "hr"), experts(tmp_path / "weights"))
    assert len(report.kept) == 2


def test_batches_give_the_same_items(tmp_path: Path) -> None:
    sizes = [(16, 16), (16, 16), (20, 16), (16, 16), (16, 16), (16, 16)]
    one = make_cache(tmp_path / "one", sizes, profile="lossless")
    three = make_cache(tmp_path / "three", sizes, profile="lossless", batch=3)
    for a, b in zip(iterate_items(one), iterate_items(three), strict=True):
        assert a.items == b.items
        assert torch.allclose(a.sr_BECHW, b.sr_BECHW, atol=1e-5)
    three_again = make_cache(tmp_path / "three", sizes, profile="lossless", batch=3)
    before = item_bytes_of(three_again)
    next(three.glob("items/*/e-*.h5")).unlink()
    make_cache(tmp_path / "three", sizes, profile="lossless", batch=3)
    assert item_bytes_of(three) == before


def test_one_expert_at_a_time_gives_the_same_cache(tmp_path: Path) -> None:
    together = make_cache(tmp_path)
    files = weights_files(tmp_path / "weights")
    settings = ExtractSettings(out=tmp_path / "apart", hr=tmp_path / "hr")
    openers = [lambda file=file: open_experts([file])[0] for file in files]
    report = extract_sequentially(settings, openers)
    assert len(report.made) == 3
    assert item_bytes_of(tmp_path / "apart") == item_bytes_of(together)
    assert not (tmp_path / "apart" / ".parts").exists()
    next((tmp_path / "apart").glob("items/*/c-*.h5")).unlink()
    report = extract_sequentially(settings, openers)
    assert [item[0] for item in report.made] == ["c"]
    assert item_bytes_of(tmp_path / "apart") == item_bytes_of(together)
    with pytest.raises(ForeignCache, match="experts are"):
        extract_sequentially(settings, openers[:1])


def test_shards_share_out_everything_once() -> None:
    sources = [Source(f"image{number}", None, None, 16, 16) for number in range(100)]
    batches = make_batches(make_jobs(sources, regions=0, region_size=0, seed=0, dihedral=False), 3)
    shares = [owned(batches, rank, 4) for rank in range(4)]
    assert sorted(job.id for share in shares for batch in share for job in batch) == sorted(
        job.id for batch in batches for job in batch
    )
    assert all(len(share) > 2 for share in shares)


def test_shards_make_together_what_one_run_makes(tmp_path: Path) -> None:
    whole = make_cache(tmp_path)
    words = ["extract", "--hr", tmp_path / "hr", "--experts", ",".join(weights_files(tmp_path / "weights"))]
    for part in range(2):
        assert command(*words, "--out", tmp_path / "parts", "--shard", f"{part}/2", "--device", "cpu") == 0
    assert item_bytes_of(tmp_path / "parts") == item_bytes_of(whole)
    assert command(*words, "--out", tmp_path / "parts", "--shard", "2/2") == 2
