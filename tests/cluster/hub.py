"""A server that answers the requests by which huggingface_hub reads and commits one data set: no Hub is installable."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY, TOKEN = "tester/caches", "hf_" + "x" * 34
_API = re.compile(r"/api/datasets/(\w+/\w+)(?:/(\w[\w-]*)(?:/main(?:/(.*))?)?)?")
_RESOLVE = re.compile(rf"/datasets/{REPOSITORY}/resolve/main/(.*)")


@dataclass
class Hub:
    """Its files, what each commit added, and the environment that leads to it."""

    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[list[str]] = field(default_factory=list)
    endpoint: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1"}

    def tree(self, folder: str) -> list[dict[str, Any]] | None:
        """Everything below a folder; None where there is no such."""
        inside = {name: data for name, data in self.files.items() if not folder or name.startswith(f"{folder}/")}
        if folder and not inside:
            return None
        parents = {name.rsplit("/", depth)[0] for name in inside for depth in range(1, name.count("/") + 1)}
        folders = sorted(one for one in parents if len(one) > len(folder))
        return [
            *({"type": "directory", "path": one, "oid": _oid(one.encode()), "size": 0} for one in folders),
            *({"type": "file", "path": one, "oid": _oid(data), "size": len(data)} for one, data in inside.items()),
        ]

    def commit(self, lines: list[dict[str, Any]]) -> None:
        """What the client sends as JSON lines."""
        added = {
            one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"
        }
        self.files |= added
        self.commits.append(list(added))


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Started, its data set empty; gone afterwards."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()


def _oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        if found := _RESOLVE.fullmatch(path):
            self._file(found[1])
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif found := _API.fullmatch(path):
            self._api(found[1], found[2] or "", found[3] or "", body)
        else:
            self._json({"error": "unknown"}, 404)

    def _api(self, repository: str, action: str, path: str, body: bytes) -> None:
        if repository != REPOSITORY:
            self._json({"error": "Repository not found"}, 401, "RepoNotFound")
        elif self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "you may not write here"}, 403)
        elif action == "tree":
            tree = self.hub.tree(path)
            self._json(
                tree if tree is not None else {"error": "no entry"}, 200 if tree is not None else 404, "EntryNotFound"
            )
        elif action == "preupload":
            files = json.loads(body)["files"]
            self._json(
                {"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]}
            )
        elif action == "commit":
            self.hub.commit([json.loads(line) for line in body.splitlines()])
            place = f"{self.hub.endpoint}/datasets/{REPOSITORY}/commit/{'0' * 40}"
            self._json({"success": True, "commitOid": "0" * 40, "commitUrl": place})
        else:
            self._json({"id": REPOSITORY, "sha": "0" * 40, "private": False, "tags": [], "siblings": []})

    def _file(self, name: str) -> None:
        data = self.hub.files.get(name)
        if data is None:
            self._json({"error": "no entry"}, 404, "EntryNotFound")
            return
        status, headers = 200, {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": "0" * 40, "Accept-Ranges": "bytes"}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(part[1]), min(int(part[2] or len(data) - 1), len(data) - 1)
            status, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(data)}"
            data = data[first : last + 1]
        self._answer(status, headers, data)

    def _json(self, document: object, status: int = 200, error: str = "") -> None:
        headers = {"Content-Type": "application/json"}
        if status >= 400 and error:
            headers["X-Error-Code"] = error
        self._answer(status, headers, json.dumps(document).encode())

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = _any

    def log_message(self, *_: object) -> None:
        pass
