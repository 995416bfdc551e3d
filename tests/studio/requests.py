"""The whole studio in this process, and requests to it: honest ones, and seeded ones that no page would send."""

from __future__ import annotations

import json
import os
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fusion.studio.folders import Folders
from fusion.studio.jobs.ensemble_cache import EnsembleCache
from fusion.studio.jobs.result_store import ResultStore
from fusion.studio.jobs.upscaler import Upscaler
from fusion.studio.uploads import Limits
from tests.cache.parts import make_cache
from tests.inference.parts import ensemble_of
from tests.studio.parts import enlarge, make_run, open_queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.testclient import TestClient

JOIN = "/gradio_api/queue/join"
_TEXTS = ["", "text", "../..", "\x00", "x" * 20_000, "\ud800"]
_LISTS: list[Any] = [[], [[]], [None], ["a", 5], ["\udcff"], [{"path": "x", "size": "y"}]]
_OBJECTS: list[Any] = [{}, {"path": "/etc/passwd"}, {"path": 5}, {"": None}]
ODD: list[Any] = [None, True, -1, 0, 7, 10**30, 1e308, -0.5, *_TEXTS, *_LISTS, *_OBJECTS]


@contextmanager
def studio(folder: Path) -> Iterator[TestClient]:
    """Two experts that are plain functions, a cache and a run; a client that raises nothing of the server's."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from starlette.testclient import TestClient

    from fusion.studio.app import make_app

    make_cache(folder / "caches" / "one", [(8, 8)])
    make_run(folder / "runs" / "first", {"loss/total": [1.0, 0.5]}, ended=True)
    ensemble = ensemble_of(bright=lambda lr: enlarge(lr) * 1.2, dark=lambda lr: enlarge(lr) * 0.7)
    (folder / "studio").mkdir()
    ensembles = EnsembleCache(lambda _wanted, _precision: ensemble, ensemble.names)
    upscaler = Upscaler(ensembles, ResultStore(), Limits(), folder / "studio")
    folders = Folders.of(folder / "caches", folder / "runs")
    with open_queue() as queue:
        app = make_app(upscaler, queue, folders, loopback=True)
        with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=True) as client:
            yield client


def honest_calls(client: TestClient) -> list[dict[str, Any]]:
    """Every event of the page with the values that its controls have at first."""
    config = client.get("/config").json()
    parts = {one["id"]: one for one in config["components"]}
    calls: list[dict[str, Any]] = []
    for event in config["dependencies"]:
        values = [parts[one]["props"].get("value") for one in event["inputs"]]
        calls.append({"data": values, "fn_index": event["id"], "session_hash": "honest", "trigger_id": None})
    return calls


def odd_call(call: dict[str, Any], rng: random.Random) -> bytes:
    """An honest call with one or two things in it that no page would send."""
    changed = json.loads(json.dumps(call))
    for _ in range(rng.randint(1, 2)):
        match rng.randrange(6):
            case 0 if isinstance(changed.get("data"), list) and changed["data"]:
                changed["data"][rng.randrange(len(changed["data"]))] = rng.choice(ODD)
            case 1:
                changed[rng.choice([*changed, "event_id", "event_data", "batched", "oauth_token"])] = rng.choice(ODD)
            case 2:
                changed.pop(rng.choice(list(changed)), None)
            case 3:
                changed["data"] = rng.choice(ODD)
            case 4:
                text = bytearray(json.dumps(changed).encode())
                for place in rng.sample(range(len(text)), min(3, len(text))):
                    text[place] = rng.randrange(256)
                return bytes(text)
            case _:
                return rng.choice([b"", b"{", b"[" * 100_000, b"NaN", b"null", b'{"data": [NaN]}', rng.randbytes(40)])
        if not changed:
            break
    return json.dumps(changed).encode()


def odd_request(rng: random.Random) -> tuple[str, str, bytes, dict[str, str]]:
    """Method, address, body and headers of something else than a call."""
    number = rng.choice(["0", "-1", "x", "9" * 40, "1e3", "%00", "..%2f..", "%ff", ""])
    addresses = [
        f"/studio/results/{number}",
        f"/studio/results/x/picture/{number}",
        f"/studio/results/x/pixel?x={number}&y={number}",
        f"/studio/static/{number}",
        f"/gradio_api/queue/data?session_hash={number}",
        f"/gradio_api/file={number}",
        f"/gradio_api/upload_progress?upload_id={number}",
        f"/gradio_api/run/{number}",
        f"/gradio_api/call/{number}",
        f"/gradio_api/component_server/{number}",
        f"/theme.css?{number}",
        f"/config?{number}",
        f"/{number}",
        "/gradio_api/upload",
        "/gradio_api/cancel",
        "/gradio_api/reset",
        "/gradio_api/stream/x",
    ]
    edge = rng.choice(["xxx", "", "y" * 300])
    kinds = ["application/json", f"multipart/form-data; boundary={edge}", "multipart/form-data", "text/plain", "\x7f"]
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{number}.png"'
    part = f"{head}\r\n\r\nabc\r\n--{edge}--\r\n"
    bodies = [b"", b"{}", b"[]", b"x", b'{"event_id": 5}', b'{"session_hash": 1, "fn_index": "x"}', part.encode()]
    headers = {"Content-Type": rng.choice(kinds)}
    address = rng.choice(addresses)
    streams = "queue/data" in address or "upload_progress" in address  # answered for as long as the client listens
    method = "POST" if streams else rng.choice(["GET", "POST", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE"])
    return method, address, rng.choice(bodies), headers
