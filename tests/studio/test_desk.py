"""One job at a time, in the order they came; cancelled ones end, broken ones hold nobody up."""

from __future__ import annotations

import threading

import pytest

from fusion.studio.jobs.job_queue import Ticket
from fusion.studio.views.cards import progress_card
from imaging.refusal import Refusal
from tests.studio.parts import open_desk

_SOON = 20  # seconds: far more than any of this takes


def test_one_at_a_time_and_in_order() -> None:
    running, most, order = 0, 0, list[str]()

    def work(ticket: Ticket) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        order.append(ticket.owner)
        threading.Event().wait(0.02)
        running -= 1

    with open_desk() as desk:
        tickets = [desk.submit(name, work) for name in "abcde"]
        assert all(ticket.finished.wait(_SOON) for ticket in tickets)
    assert order == list("abcde")
    assert most == 1
    assert {ticket.state for ticket in tickets} == {"done"}


def test_the_line_and_cancelling() -> None:
    begun, go = threading.Event(), threading.Event()
    done: list[str] = []

    def work(ticket: Ticket) -> None:
        begun.set()
        while not go.wait(0.005):
            ticket.check()
        done.append(ticket.owner)

    with open_desk(places=2) as desk:
        first, second, third = (desk.submit(name, work) for name in "abc")
        assert begun.wait(_SOON)
        assert [desk.ahead(one) for one in (first, second, third)] == [0, 1, 2]
        assert "2 jobs before yours" in progress_card(third, desk.ahead(third))
        with pytest.raises(Refusal, match="jobs are waiting already"):
            desk.submit("d", work)
        with pytest.raises(Refusal, match="not finished yet"):
            desk.submit("b", work)
        desk.stop("b")  # waits: gone at once, although another runs
        assert second.finished.wait(_SOON)
        assert second.state == "stopped"
        assert desk.ahead(third) == 1
        desk.stop("a")  # runs: gone at its next check
        assert first.finished.wait(_SOON)
        assert first.state == "stopped"
        go.set()
        assert third.finished.wait(_SOON)
    assert done == ["c"]
    assert "Cancelled" in progress_card(first, 0)


def test_what_breaks_is_told_and_the_next_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    def refuse(_ticket: Ticket) -> None:
        raise Refusal("is <b>bad</b>", where="/tmp/secret/place/photo.png", cure="take another")

    def break_down(_ticket: Ticket) -> None:
        raise ZeroDivisionError

    with open_desk() as desk:
        refused, broken, fine = (
            desk.submit(n, w) for n, w in (("a", refuse), ("b", break_down), ("c", lambda _: None))
        )
        assert fine.finished.wait(_SOON)
    assert (refused.state, broken.state, fine.state) == ("refused", "refused", "done")
    assert "ZeroDivisionError" in caplog.text  # the console has the whole story
    card = progress_card(refused, 0)
    assert "photo.png: is &lt;b&gt;bad&lt;/b&gt;; take another." in card
    assert "secret" not in card
    assert "ZeroDivisionError" in progress_card(broken, 0)
