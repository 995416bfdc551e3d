"""Caches and runs: what is shown of them is theirs, and nothing outside the chosen folders is ever found."""

from __future__ import annotations

import math
import sys
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cache_tools.read.reader import CacheReader
from fusion.evaluation.headroom import analyze
from fusion.studio.folders import Folders
from fusion.studio.jobs.job_queue import JobCancelled, QueuedJob
from fusion.studio.views.charts import Line, bar_chart, heatmap, line_chart, smoothed
from fusion.studio.views.headroom import find_headroom, headroom_page
from fusion.studio.views.items import INTACT, UNCHECKED, check_items, item_page, items_table, list_items
from fusion.studio.views.runs import read_run, runs_page
from imaging.refusal import Refusal
from tests.cache.parts import make_cache
from tests.studio.parts import make_run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three items of two experts."""
    return make_cache(tmp_path_factory.mktemp("caches"))


def well_formed(svg: str) -> ElementTree.Element:
    """Parsed as XML, which is stricter than a browser."""
    return ElementTree.fromstring(svg)


def test_only_names_from_the_chosen_folders_are_known(tmp_path: Path, cache: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "manifest.json").write_text("{}")
    (outside / "config.yaml").write_text("secret: yes\n")
    root = tmp_path / "caches"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "one").symlink_to(cache)  # leads out as well
    (root / "link").symlink_to(outside)
    (root / "inside").mkdir()
    (root / "inside" / "manifest.json").write_text("{}")
    (root / "half").mkdir()
    (root / "half" / "manifest.json").symlink_to(outside / "manifest.json")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "manifest.json").write_text("{}")
    folders = Folders.of(root, root)
    assert list(folders.caches()) == ["inside"]
    assert folders.runs() == {}
    assert folders.cache("inside") == root.resolve() / "inside"
    for name in ("../outside", str(outside), "link", "half", "inside/../../outside", "", "inside/", ".", "deep/er/one"):
        with pytest.raises(Refusal, match="there is no cache of this name"):
            folders.cache(name)
        with pytest.raises(Refusal, match="there is no run of this name"):
            folders.run(name)
    with pytest.raises(Refusal, match="no such folder"):
        Folders.of(tmp_path / "none", None)
    assert list(Folders.of(cache, None).caches()) == [cache.name]  # a cache itself may be named


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_no_name_is_taken_for_a_path(name: str) -> None:
    with pytest.raises(Refusal):
        Folders(None, None).run(name)


def test_items_and_their_crc(tmp_path: Path) -> None:
    cache = make_cache(tmp_path)
    rows = list_items(cache, tmp_path.resolve())
    entries = CacheReader(cache).entries
    assert [row.id for row in rows] == sorted(entry.id for entry in entries)
    assert {row.cells({})[-1] for row in rows} == {UNCHECKED}
    wanted = rows[1]
    assert wanted.entry is not None
    assert [row.id for row in list_items(cache, tmp_path.resolve(), wanted.entry.source.upper())] == [wanted.id]
    # One bit in the middle of the images: HDF5 itself would say nothing.
    with h5py.File(wanted.path, "r") as file:
        place = file["sr"].id.get_chunk_info(0).byte_offset + 7
    data = bytearray(wanted.path.read_bytes())
    data[place] ^= 4
    wanted.path.write_bytes(data)
    crc: dict[str, str] = {}
    check_items(rows, crc, QueuedJob("me", lambda _: None))
    assert [crc[row.id] == INTACT for row in rows] == [True, False, True]
    assert crc[wanted.id].startswith("damaged: ")
    table = items_table(rows, crc)
    assert table.count('class="good"') == 2
    assert table.count('class="bad"') == 1
    with pytest.raises(Refusal):
        item_page(cache, wanted)
    # A torn file, a missing one, one that leads away.
    rows[0].path.write_bytes(rows[0].path.read_bytes()[:100])
    outside = tmp_path.parent / f"{tmp_path.name}-outside.h5"
    rows[2].path.rename(outside)
    rows[2].path.symlink_to(outside)
    wanted.path.unlink()
    states = {row.id: row.cells({})[-1] for row in list_items(cache, tmp_path.resolve())}
    assert all(state.startswith("damaged: ") for state in states.values())
    assert "missing" in states[wanted.id]
    assert "leads out" in states[rows[2].id]


def test_an_item_page_shows_what_the_experts_made(cache: Path) -> None:
    row = list_items(cache, cache.parent.resolve())[0]
    page = item_page(cache, row)
    assert page.count("data:image/png;base64,") == 4  # LR, HR, two experts
    assert "http" not in page


def test_checking_can_be_cancelled(cache: Path) -> None:
    job = QueuedJob("me", lambda _: None)
    job.cancel()
    with pytest.raises(JobCancelled):
        check_items(list_items(cache, cache.parent.resolve()), {}, job)


def test_headroom_is_that_of_the_command(cache: Path) -> None:
    job = QueuedJob("me", lambda _: None)
    find_headroom(cache, job)
    found = job.status.found
    expected = analyze(cache)
    assert found["scores"] == expected.table.as_dict()
    page = headroom_page(found)
    for name in expected.experts:
        assert f"{expected.table.mean(name)[0]:.3f}" in page
    for svg in page.split("<svg")[1:]:
        well_formed(f"<svg{svg.partition('</svg>')[0]}</svg>")


def test_a_cache_without_headroom_is_refused_in_the_words_of_the_command(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "python"
    command.write_text(f"#!/bin/sh\necho 'refused: {cache}: has no HR images; extract it with them' >&2\nexit 2\n")
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(command))
    with pytest.raises(Refusal, match=r"analysis: cache: has no HR images; extract it with them"):
        find_headroom(cache, QueuedJob("me", lambda _: None))


def test_headroom_can_be_cancelled(cache: Path) -> None:
    job = QueuedJob("me", lambda _: None)
    job.cancel()
    with pytest.raises(JobCancelled):
        find_headroom(cache, job)
    assert job.status.found is None


def test_runs_are_read_and_drawn(tmp_path: Path) -> None:
    values = {"loss/total": [3.0, 2.0, math.nan, 1.0], "val/model/psnr_y": [27.0, 28.0], "train/skipped": [0.0, 0.0]}
    make_run(tmp_path / "a", values, ended=True)
    make_run(tmp_path / "b", {"loss/total": [5.0]})
    folders = Folders.of(None, tmp_path)
    runs = {name: read_run(folders.run(name)) for name in folders.runs()}
    assert list(runs) == ["a", "b"]
    steps, points = runs["a"].scalars["loss/total"]
    assert steps == [0, 10, 20, 30]
    np.testing.assert_array_equal(points, values["loss/total"])
    assert runs["a"].last_step == 30
    page = runs_page(runs, 0.6)
    assert page.index("val/model/psnr_y") < page.index("loss/total") < page.index("never changed")
    assert "&lt;model&gt; 28.125" in page
    assert "<model>" not in page
    for svg in page.split("<svg viewBox")[1:]:
        assert svg.count("<polyline") >= 1
    (tmp_path / "a" / "summary.json").write_text("{ torn")
    assert read_run(tmp_path / "a").summary == {}
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("")
    assert "Nothing is logged yet" in runs_page({"c": read_run(tmp_path / "c")}, 0)


def test_curves_lie_where_their_values_say() -> None:
    """The greatest value is drawn highest, steps go from left to right, and odd input is no trouble."""
    lines = [Line("<a>", [0, 5, 10], [1.0, 3.0, 2.0], 0), Line("b", [5], [2.5], 1)]
    root = well_formed(line_chart(lines))
    points = [one.get("points", "").split() for one in root.iter() if one.tag == "polyline"]
    xs, ys = zip(*(map(float, point.split(",")) for point in points[0]), strict=True)
    assert list(xs) == sorted(xs)
    assert np.argsort(ys).tolist() == [1, 2, 0]
    assert float(points[1][0].split(",")[0]) == pytest.approx(xs[1], abs=0.1)
    for odd in ([math.nan, math.nan], [7.0, 7.0], [1e300, -1e300]):
        well_formed(line_chart([Line("odd", [1, 2], odd, 0)], 0.5))


@given(st.floats(-1e5, 1e5), st.floats(1e-3, 1e5))
@example(27.6, 0.15)
def test_ticks_of_a_curve_can_be_told_apart(low: float, span: float) -> None:
    root = well_formed(line_chart([Line("a", [0, 1], [low, low + span], 0)]))
    ticks = [one.text for one in root.iter() if one.tag == "text"][:4]
    assert len(set(ticks)) == 4, ticks


def test_bars_are_as_long_as_their_values() -> None:
    root = well_formed(bar_chart({"a<": 0.5, "b": -0.25, "c": 0.0}, "{:.2f}".format, {"a<": 0}, zero=True))
    widths = [float(one.get("width", "")) for one in root.iter("rect")]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.02)
    assert widths[2] == 1  # a line that can still be seen
    assert "0.970" in heatmap(["a", "b"], [[1.0, 0.97], [0.97, 1.0]])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 0.99))
def test_smoothing_stays_within_the_values(values: list[float], weight: float) -> None:
    result = smoothed(values, weight)
    assert result[0] == pytest.approx(values[0])
    assert min(values) - 1e-3 <= min(result)
    assert max(result) <= max(values) + 1e-3
    assert smoothed([3.0] * 5, weight) == pytest.approx([3.0] * 5)
