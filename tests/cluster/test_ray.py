"""Real Ray clusters of two nodes, their processes really killed: the same items and images, or one line each."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.cache.parts import command, item_bytes_of, weights_files, write_images
from tests.cluster.parts import NODE, end, kill, kill_node, slow_expert, start, two_nodes, wait_until, workers_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("ray", reason="needs the extra 'cluster'")
pytestmark = pytest.mark.slow

SIZES = [(16, 16 + 4 * number) for number in range(12)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    yield from two_nodes()


class Extraction:
    """One data set, extracted without Ray for comparison and then on the cluster."""

    def __init__(self, folder: Path, cluster: Any, experts: list[object], sizes: list[tuple[int, int]] = SIZES) -> None:
        hr = write_images(folder / "hr", sizes)
        self.words = ["extract", "--hr", hr, *experts, "--device", "cpu"]
        self.cluster, self.out = cluster, folder / "cache"
        self.engine = ["--engine", "ray", "--address", cluster.address]
        self._reference = folder / "reference"

    def start(self, *more: object) -> Any:
        return start("-m", "cache_tools", *self.words, "--out", self.out, *self.engine, "--json", *more)

    def items(self) -> int:
        return len(list(self.out.glob("items/*/*.h5")))

    def check(self) -> None:
        """Bit for bit what one process makes, nothing left behind, the index complete."""
        code, _, err = end(start("-m", "cache_tools", *self.words, "--out", self._reference))
        assert code == 0, err[-2000:]
        assert item_bytes_of(self.out) == item_bytes_of(self._reference)
        assert command("verify", self.out, "--full") == 0
        lines = [json.loads(line)["id"] for path in self.out.glob("index/*") for line in path.read_text().splitlines()]
        assert {f"{one}.h5" for one in lines} == set(item_bytes_of(self.out))


def test_items_are_those_of_one_process_by_real_networks(tmp_path: Path, cluster: Any) -> None:
    files = weights_files(tmp_path / "w")
    run = Extraction(
        tmp_path, cluster, ["--experts", ",".join(files), "--regions", 2, "--region-size", 16, "--dihedral"]
    )
    code, out, err = end(run.start("--workers", 2))
    assert code == 0, err[-2000:]
    assert len(json.loads(out)["made"]) == run.items() > len(SIZES)
    run.check()
    code, out, _ = end(run.start())
    report = json.loads(out)
    assert (code, report["made"], len(report["kept"])) == (0, [], run.items())


def test_a_killed_worker_and_a_killed_node_cost_nothing(tmp_path: Path, cluster: Any) -> None:
    run = Extraction(tmp_path, cluster, slow_expert(tmp_path))
    process = run.start("--workers", 1)  # so that whoever is killed has work
    wait_until(lambda: run.items() >= 2)
    kill(workers_of(cluster)[0])
    wait_until(lambda: run.items() >= 6)
    kill_node(cluster)
    code, out, err = end(process)
    cluster.add_node(**NODE)  # for the tests that follow
    assert code == 0, err[-2000:]
    assert err.count("is lost") == 2
    assert json.loads(out)["failures"] == []
    run.check()


def test_an_image_that_kills_its_worker_is_listed_and_the_others_are_made(tmp_path: Path, cluster: Any) -> None:
    run = Extraction(tmp_path, cluster, slow_expert(tmp_path, seconds=0.05, kill_width=24))
    code, out, err = end(run.start("--workers", 2, "--retries", 1))
    assert code == 1, err[-2000:]
    report = json.loads(out)
    assert [one["reason"][:27] for one in report["failures"]] == ["its worker died 2 times, la"]
    assert len(report["made"]) == run.items() == len(SIZES) - 1


def test_after_a_killed_driver_the_next_one_goes_on_and_two_at_once_agree(tmp_path: Path, cluster: Any) -> None:
    run = Extraction(tmp_path, cluster, slow_expert(tmp_path))
    process = run.start("--workers", 2)
    wait_until(lambda: run.items() >= 3)
    process.kill()
    process.communicate()
    there = set(item_bytes_of(run.out))
    # One worker each: both drivers are at work at the same time.
    both = [run.start("--workers", 1), run.start("--workers", 1)]
    reports = []
    for one in both:
        code, out, err = end(one)
        assert code == 0, err[-2000:]
        reports.append(json.loads(out))
    for report in reports:
        assert not report["failures"]
        assert {f"{one}.h5" for one in report["kept"]} >= there
        assert len({*report["made"], *report["kept"]}) == len(SIZES)
    run.check()


def test_without_an_address_the_run_has_a_cluster_of_its_own(tmp_path: Path, cluster: Any) -> None:
    run = Extraction(tmp_path, cluster, slow_expert(tmp_path))
    run.engine = ["--engine", "ray"]
    process = run.start("--workers", 1)
    wait_until(lambda: run.items() >= 1)
    assert not workers_of(cluster)  # not one of those that happen to run on this machine
    code, _, err = end(process)
    assert code == 0, err[-2000:]
    run.check()


def test_what_workers_refuse_is_one_line(tmp_path: Path, cluster: Any) -> None:
    run = Extraction(tmp_path, cluster, ["--experts", tmp_path / "missing.pth"])
    code, _, err = end(run.start())
    assert (code, err.strip().splitlines()[-1].split(":")[0]) == (2, "refused")
    assert "no such weights file" in err
    assert not run.out.exists()
    run.engine = ["--engine", "ray", "--address", "127.0.0.1:1"]
    code, _, err = end(run.start())
    assert code == 2
    assert "no Ray cluster answers" in err.strip().splitlines()[-1]


def test_images_are_those_of_one_process(tmp_path: Path, cluster: Any) -> None:
    lr = write_images(tmp_path / "lr", SIZES[:5], scale=1)
    (lr / "broken.png").write_bytes(b"no image")
    words = ["infer.py", "-i", lr, "--device", "cpu", "--report", "--budget", "0.5", "--json"]
    code, out, err = end(start(*words, "-o", tmp_path / "one"))
    assert code == 1, err[-2000:]
    alone = json.loads(out)
    process = start(*words, "-o", tmp_path / "two", "--engine", "ray", "--address", cluster.address, "--workers", "2")
    wait_until(lambda: list((tmp_path / "two").glob("*.json")))
    kill(workers_of(cluster)[0])
    code, out, err = end(process)
    assert code == 1, err[-2000:]
    together = json.loads(out)
    for path in (tmp_path / "one").glob("*.png"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    for key in ("failed", "plans", "experts", "fusion", "tile", "margin", "output_megapixels"):
        assert together[key] == alone[key], key
    assert [path.rpartition("/")[2] for path in together["written"]] == [
        path.rpartition("/")[2] for path in alone["written"]
    ]
    assert (tmp_path / "two" / "report.html").exists()
