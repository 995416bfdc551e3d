"""Requests that no page sends -> how the studio answers each, with an eye on its console."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import sys
from typing import TYPE_CHECKING

from tests.studio.requests import JOIN, honest_calls, odd_call, odd_request, studio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def send_all(
    folder: Path, numbers: range, seed: int, limit_memory: Callable[[], None]
) -> Iterator[tuple[str, int, str]]:
    """(outcome, number, example): detected is an answer of 4xx, harmless one of less."""
    console = io.StringIO()
    logging.disable(logging.NOTSET)
    logging.basicConfig(stream=console, level=logging.INFO, force=True)
    with contextlib.redirect_stderr(console), studio(folder) as client:
        calls = honest_calls(client)
        limit_memory()
        for number in numbers:
            rng = random.Random(f"{seed} requests {number}")
            yield "begins", number, ""
            before = console.tell()
            if rng.random() < 0.6:
                body = odd_call({**rng.choice(calls), "session_hash": f"odd{number}"}, rng)
                what = f"POST {JOIN} {body[:120]!r}"
                answer = client.post(JOIN, content=body, headers={"Content-Type": "application/json"})
                if answer.status_code == 200:  # taken: what the handlers make of it
                    session = json.loads(body)["session_hash"]
                    client.get(f"/gradio_api/queue/data?session_hash={session}")
            else:
                method, address, body, headers = odd_request(rng)
                what = f"{method} {address}"
                answer = client.request(method, address, content=body, headers=headers, follow_redirects=False)
            said = console.getvalue()[before:]
            if "Traceback" in said or answer.status_code >= 500:
                yield "traceback", number, f"{what}: {answer.status_code}, {said[-200:]!r}"
            else:
                yield ("detected" if answer.status_code >= 400 else "harmless"), number, ""
    sys.stderr.flush()
