"""Calls at the same time: which run together, on how many threads, in what order, and what an error does."""

from __future__ import annotations

import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

import infer
from experts.call import without_meshgrid_warning
from fusion.inference.ensemble import Place, run_tile
from imaging.device import SideBySide
from tests.experts.parts import image

if TYPE_CHECKING:
    from collections.abc import Callable

    from fusion.inference.ensemble import Answer


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def meet(barrier: threading.Barrier) -> int:
    barrier.wait(timeout=30)  # broken, and an error, unless as many are inside at once
    return torch.get_num_threads()


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(("workers", "share"), [(2, 2), (3, 1), (4, 1), (9, 1)])
def test_each_has_its_share_of_the_threads_at_the_same_time(workers: int, share: int) -> None:
    at_once = min(workers, 4)
    barrier = threading.Barrier(at_once)
    found = SideBySide(workers).run({str(n): partial(meet, barrier) for n in range(at_once)})
    assert found == {str(n): share for n in range(at_once)}
    assert torch.get_num_threads() == 4
    assert ThreadPoolExecutor(1).submit(torch.get_num_threads).result() == 4  # also of threads that begin later


@pytest.mark.usefixtures("four_threads")
@pytest.mark.parametrize(("workers", "calls"), [(1, 3), (4, 1)])
def test_one_alone_keeps_all_threads_and_the_callers_thread(workers: int, calls: int) -> None:
    found = SideBySide(workers).run(
        {str(n): lambda: (torch.get_num_threads(), threading.get_ident()) for n in range(calls)}
    )
    assert set(found.values()) == {(4, threading.get_ident())}


@pytest.mark.usefixtures("four_threads")
def test_results_come_in_their_own_order_and_the_longest_begins_first() -> None:
    begun: list[str] = []

    def call(name: str, seconds: float) -> str:
        begun.append(name)
        time.sleep(seconds)
        return name

    # Two workers: after the first round, "c" is known to take longest.
    together = SideBySide(2)
    calls = {name: partial(call, name, seconds) for name, seconds in (("a", 0.0), ("b", 0.0), ("c", 0.2))}
    for _ in range(2):
        assert list(together.run(calls).items()) == [("a", "a"), ("b", "b"), ("c", "c")]
    assert set(begun[:2]) == {"a", "b"}
    assert "c" in begun[3:5]


@pytest.mark.usefixtures("four_threads")
def test_an_error_is_raised_once_all_have_ended() -> None:
    ended = threading.Event()

    def fail() -> None:
        raise MemoryError("no more")

    def go_on() -> None:
        time.sleep(0.2)
        ended.set()

    with pytest.raises(MemoryError, match="no more"):
        SideBySide(2).run({"fails": fail, "goes on": go_on})
    assert ended.is_set()


def silenced() -> bool:
    """Whether the filter that counts first is the one for torch's sentence on meshgrid."""
    action, message, *_ = warnings.filters[0]
    return action == "ignore" and message is not None and "meshgrid" in message.pattern


def test_warnings_filters_are_put_back_by_the_last_of_several_threads() -> None:
    before = list(warnings.filters)
    assert not silenced()
    barrier = threading.Barrier(2)

    def inside(leaves_first: bool) -> None:
        with without_meshgrid_warning():
            barrier.wait(timeout=30)
            assert silenced()
            if not leaves_first:
                barrier.wait(timeout=30)
                assert silenced()  # the other has left
        if leaves_first:
            barrier.wait(timeout=30)

    with ThreadPoolExecutor(2) as pool:
        for one in [pool.submit(inside, leaves_first) for leaves_first in (True, False)]:
            one.result()
    assert list(warnings.filters) == before


@pytest.mark.usefixtures("four_threads")
def test_the_default_runs_its_experts_at_once_and_gives_the_same_image() -> None:
    ensemble = infer.build("default", None, device="cpu")
    lr_BCHW = image(33, 41)
    place = Place("test", 0, 0, 33, 41)
    inside = threading.Barrier(len(ensemble.names))

    def after_the_others(run: Callable[..., Answer]) -> Callable[..., Answer]:
        def wait_and_run(*words: Any) -> Answer:
            inside.wait(timeout=60)
            return run(*words)

        return wait_and_run

    waiting = {name: after_the_others(run) for name, run in ensemble.experts.items()}
    together = run_tile(replace(ensemble, experts=waiting), lr_BCHW, place)
    one_by_one = run_tile(replace(ensemble, together=SideBySide(1)), lr_BCHW, place)
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=2e-6)  # sums of other numbers of threads
