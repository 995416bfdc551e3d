"""Requests that no page sends are answered 4xx in one line; the console sees no traceback, honest calls still work."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
from tests.studio.requests import JOIN, honest_calls, odd_call, odd_request, studio


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with studio(tmp_path_factory.mktemp("studio")) as client:
        yield client


def finish(client: Any, session: str) -> str:
    """Everything that the page is told of its calls."""
    return client.get(f"/gradio_api/queue/data?session_hash={session}").text


def test_honest_calls_are_taken(client: Any) -> None:
    taken = 0
    for number, call in enumerate(honest_calls(client)):
        answer = client.post(JOIN, json={**call, "session_hash": f"honest{number}"})
        assert answer.status_code == 200, (call, answer.text)
        assert "process_completed" in finish(client, f"honest{number}")
        taken += 1
    assert taken > 8


WRONG = [
    b"",
    b"{",
    b"[1]",
    b"[" * 100_000,
    b'{"session_hash": "a", "fn_index": "x", "data": []}',
    b'{"session_hash": 5, "fn_index": 0, "data": []}',
    b'{"session_hash": "a", "fn_index": 99999, "data": []}',
    b'{"session_hash": "a", "fn_index": 0, "data": "text"}',
    b'{"session_hash": "a", "fn_index": 0, "data": [NaN]}',
    b'{"session_hash": "a", "fn_index": 0, "data": ["\\ud800"]}',
    b" " * (1 << 21),
]


@pytest.mark.parametrize("body", WRONG, ids=range(len(WRONG)))
def test_a_call_that_is_none_is_refused_in_one_line(client: Any, body: bytes) -> None:
    answer = client.post(JOIN, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400 and len(answer.text.splitlines()) == 1


@pytest.mark.parametrize("value", ["text", None, True, [1], {"path": "x"}, 1e308, -5, "\ud800"])
def test_each_value_must_be_one_of_its_control(client: Any, value: object) -> None:
    """A text where a number belongs, for every event with a slider."""
    config = client.get("/config").json()
    sliders = {one["id"] for one in config["components"] if one["type"] == "slider"}
    tried = 0
    for call, event in zip(honest_calls(client), config["dependencies"], strict=True):
        for place, part in enumerate(event["inputs"]):
            if part in sliders:
                data = [*call["data"][:place], value, *call["data"][place + 1 :]]
                body = json.dumps({**call, "data": data})
                answer = client.post(JOIN, content=body, headers={"Content-Type": "application/json"})
                assert answer.status_code == 400, (place, answer.text)
                tried += 1
    assert tried > 2


def test_a_choice_that_is_none_is_told_without_a_traceback(client: Any, capfd: pytest.CaptureFixture[str]) -> None:
    config = client.get("/config").json()
    (run,) = [one["id"] for one in config["components"] if one["props"].get("elem_id") == "run"]
    (call,) = [
        call
        for call, event in zip(honest_calls(client), config["dependencies"], strict=True)
        if [run, "click"] in event["targets"]
    ]
    for place, value in ((1, ["nobody"]), (2, "fp99")):
        data = [*call["data"][:place], value, *call["data"][place + 1 :]]
        assert client.post(JOIN, json={**call, "data": data, "session_hash": f"choice{place}"}).status_code == 200
        assert '"success":false' in finish(client, f"choice{place}").replace(" ", "")
    assert "Traceback" not in capfd.readouterr().err


def test_a_choice_without_an_item_is_told_without_a_traceback(client: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Each event without what a listener of the page passes on: the table's needs the item that was pressed."""
    for number, call in enumerate(honest_calls(client)):
        for event_data in (None, {"item": 5}):
            session = f"chosen{number}-{event_data is None}"
            answer = client.post(JOIN, json={**call, "session_hash": session, "event_data": event_data})
            assert answer.status_code == 200
            finish(client, session)
    assert "Traceback" not in capfd.readouterr().err


def test_hundreds_of_odd_calls_leave_no_traceback(
    client: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rng, calls, refused = random.Random(5), honest_calls(client), 0
    for number in range(120):
        body = odd_call({**rng.choice(calls), "session_hash": f"odd{number}"}, rng)
        answer = client.post(JOIN, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (200, 400, 422), answer.text
        if answer.status_code == 200:
            finish(client, json.loads(body)["session_hash"])
        refused += answer.status_code != 200
    assert 40 < refused < 120
    assert "Traceback" not in capfd.readouterr().err + caplog.text


def test_hundreds_of_odd_requests_leave_no_traceback(
    client: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(6)
    for _ in range(300):
        method, address, body, headers = odd_request(rng)
        answer = client.request(method, address, content=body, headers=headers, follow_redirects=False)
        assert answer.status_code < 500, (method, address, answer.status_code)
    assert "Traceback" not in capfd.readouterr().err + caplog.text


def test_what_breaks_behind_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from fusion.studio.guard import Guard

    app = FastAPI()

    def broken() -> None:
        raise RuntimeError(str(tmp_path))

    app.add_api_route("/broken", broken)
    with TestClient(Guard(app, lambda _body: None, loopback=True), base_url="http://127.0.0.1") as client:
        answer = client.get("/broken")
    assert answer.status_code == 400 and str(tmp_path) not in answer.text
    assert "Traceback" not in capfd.readouterr().err
