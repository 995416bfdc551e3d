"""Which work goes to which worker: largest first, bounded, and a killer told from its neighbours."""

from __future__ import annotations

import random

import pytest

from imaging.cluster.options import LOCAL, RAY, ClusterOptions, add_engine_arguments, cluster_options_of
from imaging.cluster.schedule import Schedule, WorkUnit
from imaging.refusal import Refusal


def units(*sizes: float, sources: str = "") -> list[WorkUnit[None]]:
    names = sources or "abcdefghijklmnopqrstuvwxyz"
    return [WorkUnit(f"{number}", None, size, names[number]) for number, size in enumerate(sizes)]


def names_of(given: list[WorkUnit[None] | None]) -> list[str]:
    return [one.name for one in given if one is not None]


def test_the_largest_comes_first_and_no_worker_holds_more_than_its_depth() -> None:
    schedule = Schedule(units(1, 5, 3, 4), depth=2, retries=1)
    assert names_of([schedule.next_for(1) for _ in range(5)]) == ["1", "3"]
    assert names_of([schedule.next_for(2) for _ in range(5)]) == ["2", "0"]


def test_a_worker_stays_with_the_image_that_it_has_decoded() -> None:
    schedule = Schedule(units(9, 8, 7, 6, sources="abab"), depth=4, retries=1)
    assert names_of([schedule.next_for(1), schedule.next_for(2)]) == ["0", "1"]
    assert names_of([schedule.next_for(1), schedule.next_for(2)]) == ["2", "3"]


def test_work_of_a_lost_worker_is_done_again_alone() -> None:
    schedule = Schedule(units(1, 2, 3, 4), depth=3, retries=1)
    assert names_of([schedule.next_for(1) for _ in range(3)]) == ["3", "2", "1"]
    assert schedule.lose(1) == []
    again = schedule.next_for(2)
    assert again is not None
    assert schedule.next_for(2) is None, "nothing else runs beside what may have killed its worker"
    schedule.finish(2, again)
    assert schedule.next_for(2) is not None


def test_only_the_unit_that_kills_is_given_up() -> None:
    """A worker dies of `killer` whenever it holds it; everything else gets done, whoever was beside it."""
    for seed in range(50):
        rng = random.Random(seed)
        schedule = Schedule(units(*(rng.randint(1, 9) for _ in range(12))), depth=3, retries=2)
        killer, done, lost, workers = str(rng.randrange(12)), set[str](), list[str](), [1, 2]
        held: dict[int, list[WorkUnit[None]]] = {1: [], 2: []}
        while schedule.unfinished:
            for worker in workers:
                while (unit := schedule.next_for(worker)) is not None:
                    held[worker].append(unit)
            worker = rng.choice([one for one in workers if held[one]])
            unit = rng.choice(held[worker])
            if unit.name == killer:
                lost += [one.name for one in schedule.lose(worker)]
                workers[workers.index(worker)] = new = max(workers) + 1
                held[new] = []
            else:
                held[worker].remove(unit)
                schedule.finish(worker, unit)
                done.add(unit.name)
        assert (lost, len(done)) == ([killer], 11)


def options_of(*words: str) -> ClusterOptions | None:
    import argparse

    parser = argparse.ArgumentParser()
    add_engine_arguments(parser)
    return cluster_options_of(parser.parse_args(words))


def test_the_options_of_a_cluster() -> None:
    assert options_of() is None
    assert options_of("--engine", LOCAL) is None
    assert options_of("--engine", RAY) == ClusterOptions()
    found = options_of("--engine", RAY, "--workers", "4", "--gpus-per-worker", "0.5", "--cpus-per-worker", "8")
    assert found == ClusterOptions(workers=4, gpus=0.5, cpus=8)
    with pytest.raises(Refusal, match="add --engine ray"):
        options_of("--workers", "2")
    with pytest.raises(Refusal, match="--workers: 0 is too few"):
        options_of("--engine", RAY, "--workers", "0")
