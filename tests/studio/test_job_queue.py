"""One job at a time, in the order they came; cancelled ones end, failed ones do not hold up the queue."""

from __future__ import annotations

import threading

import pytest

from fusion.studio.jobs.job_queue import QueuedJob
from fusion.studio.views.cards import progress_card
from imaging.refusal import Refusal
from tests.studio.parts import open_queue

_SOON = 20  # seconds: far more than any of this takes


def test_one_at_a_time_and_in_order() -> None:
    running, most, order = 0, 0, list[str]()

    def work(job: QueuedJob) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(job.owner)
        threading.Event().wait(0.02)
        running -= 1

    with open_queue() as queue:
        jobs = [queue.submit(name, work) for name in "abcde"]
        assert all(job.finished.wait(_SOON) for job in jobs)
    assert order == list("abcde")
    assert most == 1
    assert {job.state for job in jobs} == {"done"}


def test_waiting_and_cancelling() -> None:
    begun, go = threading.Event(), threading.Event()
    done: list[str] = []

    def work(job: QueuedJob) -> None:
        begun.set()
        while not go.wait(0.005):
            job.check()
        done.append(job.owner)

    with open_queue(capacity=2) as queue:
        first, second, third = (queue.submit(name, work) for name in "abc")
        assert begun.wait(_SOON)
        assert [queue.jobs_before(one) for one in (first, second, third)] == [0, 1, 2]
        assert "2 jobs before yours" in progress_card(third, queue.jobs_before(third))
        with pytest.raises(Refusal, match="jobs are waiting already"):
            queue.submit("d", work)
        with pytest.raises(Refusal, match="not finished yet"):
            queue.submit("b", work)
        queue.cancel("b")  # waits: gone at once, although another runs
        assert second.finished.wait(_SOON)
        assert second.state == "cancelled"
        assert queue.jobs_before(third) == 1
        queue.cancel("a")  # runs: gone at its next check
        assert first.finished.wait(_SOON)
        assert first.state == "cancelled"
        go.set()
        assert third.finished.wait(_SOON)
    assert done == ["c"]
    assert "Cancelled" in progress_card(first, 0)


def test_a_failed_job_is_reported_and_the_next_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_job: QueuedJob) -> None:
        raise Refusal("is <b>bad</b>", where="/tmp/secret/place/photo.png", cure="take another")

    def fail(_job: QueuedJob) -> None:
        raise ZeroDivisionError

    with open_queue() as queue:
        refused, failed, fine = (queue.submit(n, w) for n, w in (("a", refuse), ("b", fail), ("c", lambda _: None)))
        assert fine.finished.wait(_SOON)
    assert (refused.state, failed.state, fine.state) == ("refused", "refused", "done")
    assert "ZeroDivisionError" in caplog.text  # the console has the whole story
    card = progress_card(refused, 0)
    assert "photo.png: is &lt;b&gt;bad&lt;/b&gt;; take another." in card
    assert "secret" not in card
    assert "ZeroDivisionError" in progress_card(failed, 0)
