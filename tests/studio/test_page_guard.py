"""The studio as it is served: what it refuses to answer, to read and to send."""

from __future__ import annotations

import http.client
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fusion.__main__ import main
from fusion.studio import serve
from imaging.refusal import Refusal
from tests.studio.parts import ROOT, need_gradio


def ask(address: str, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, Any, bytes]:
    """One request, its path sent as it is."""
    client = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        client.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = client.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        client.close()


def test_refused_with_a_cure_where_gradio_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda _name: None)
    with pytest.raises(Refusal, match=r"gradio is not installed; pip install 'championship-sr\[studio\]'"):
        main(["serve"])


def test_a_taken_port_is_refused_before_anything_is_loaded(address: str) -> None:
    with pytest.raises(Refusal, match="cannot listen.*choose another --port"):
        main(["serve", "--port", str(urlsplit(address).port), "--model", "/nowhere"])


def test_incomplete_options_are_refused() -> None:
    need_gradio()
    with pytest.raises(Refusal, match="needs a base model"):
        main(["serve", "--refine", "tsdsr"])
    for budget in ("--budget-model", "--budget-head"):  # both spellings, as in infer.py
        with pytest.raises(Refusal, match="no such folder"):
            main(["serve", budget, "budget.json", "--caches", "/nowhere/at/all"])


def test_foreign_requests_are_refused(address: str) -> None:
    own = urlsplit(address).netloc
    assert ask(address, "/")[0] == 200
    assert ask(address, "/", Host="evil.example")[0] == 403  # a name that was made to point at this machine
    assert ask(address, "/", Host=own.replace("127.0.0.1", "localhost"))[0] == 200
    assert ask(address, "/gradio_api/queue/join", "POST", b"{}", Origin="http://evil.example")[0] == 403
    assert ask(address, "/config", Origin=address)[0] == 200
    assert ask(address, "/gradio_api/file=http://127.0.0.1:1/x")[0] == 403
    assert ask(address, "/gradio_api/proxy=https://evil.example/x")[0] == 403


def test_nothing_is_sent_and_nothing_fetched(address: str) -> None:
    status, headers, body = ask(address, "/config")
    config = json.loads(body)
    assert status == 200
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False
    assert config["stylesheets"] == []  # web fonts would be among these
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    page = ask(address, "/")[2].decode()
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](https?:)?//", page)
    assert loaded == []


def test_no_file_outside_is_served(address: str, place: Path) -> None:
    secret = place / "secret.txt"
    up = "../" * 12
    names = [str(secret), f"{up}{secret}", f"file://{secret}", str(ROOT / "README.md"), "README.md", "/etc/passwd"]
    names += [str(next((place / "caches").rglob("*.h5"))), str(place / "runs" / "first" / "config.yaml")]
    for name in names:
        for route in (
            "/gradio_api/file=",
            "/file=",
            "/gradio_api/file/",
            "/studio/static/",
            "/static/",
            "/assets/",
            "/",
        ):
            for spelled in (name, name.replace("/", "%2f"), name.replace(".", "%2e")):
                status, _, body = ask(address, f"{route}{spelled}")
                assert status in (307, 400, 403, 404, 405) or b"<gradio-app" in body, (route, spelled, status)
                assert b"not to be read" not in body
                assert b"root:" not in body
    for tail in ("", "/picture/0", "/file/0", "/pixel?x=0&y=0", "/map/-1", "/file/../0"):
        assert ask(address, f"/studio/results/..%2f..{tail}")[0] == 404
        assert ask(address, f"/studio/results/nothing{tail}")[0] == 404


def call(address: str, element: str, event: str, data: list[Any], *, status: int = 200) -> str:
    """What a forged request for a page's event answers: the whole stream of it."""
    config = json.loads(ask(address, "/config")[2])
    (number,) = [one["id"] for one in config["components"] if one["props"].get("elem_id") == element]
    (function,) = [one["id"] for one in config["dependencies"] if [number, event] in one["targets"]]
    session = f"forged-{element}-{len(str(data))}"
    body = json.dumps({"data": data, "fn_index": function, "session_hash": session}).encode()
    found, _, answer = ask(address, "/gradio_api/queue/join", "POST", body, Content_Type="application/json")
    assert found == status, answer
    if status != 200:
        return answer.decode()
    return ask(address, f"/gradio_api/queue/data?session_hash={session}")[2].decode()


def test_forged_requests_read_nothing_outside(address: str, place: Path) -> None:
    """Files that were not uploaded, caches and runs that are not below the chosen folders."""
    controls = [["tiny-a", "tiny-b"], "fp32", False, "none", 0.5, 0.02, False, 1, "wavelet", None]
    for path in (place / "in" / "photo.png", place / "caches" / "hr" / "a.png", f"{address}/studio/static/page.css"):
        forged = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        answer = call(address, "run", "click", [[forged], *controls])
        assert "process_completed" in answer
        assert "fusion-viewer" not in answer
        assert '"success":false' in answer.replace(" ", "")
        # The same where no file is expected at all.
        assert "none that it can have" in call(address, "check", "click", ["cache", forged, 1], status=400)
    for name in ("../secret", str(place / "caches" / "cache"), "/etc"):
        assert "image/png" not in call(address, "check", "click", [name, "", 1])
        assert "polyline" not in call(address, "reload", "click", [[name], 0.5])
    assert "Checked" in call(address, "check", "click", ["cache", "", 1])  # the same request, honest
    assert "polyline" in call(address, "reload", "click", [["first"], 0.5])


def test_uploads_are_bounded(address: str) -> None:
    edge = "xxx"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="big.png"\r\n\r\n'.encode()
    body = head + bytes(1_200_000) + f"\r\n--{edge}--\r\n".encode()
    kind = f"multipart/form-data; boundary={edge}"
    assert ask(address, "/gradio_api/upload", "POST", body, Content_Type=kind)[0] == 413
