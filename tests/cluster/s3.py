"""A real S3 server (moto's, a process of its own) behind a proxy that breaks what a test tells it to break."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "not-for-anybody-elses-eyes"
BUCKET = "bucket"
_ERRORS = {
    "500": b"<Error><Code>InternalError</Code><Message>by the test</Message></Error>",
    "403": b"<Error><Code>AccessDenied</Code><Message>by the test</Message></Error>",
}


@dataclass(frozen=True)
class Seen:
    """One request."""

    method: str
    path: str
    port: int


@dataclass
class Faults:
    """`of` says what happens to a request: None, or "500", "403", "cut", "flip", "slow"."""

    of: Callable[[Seen], str | None] = lambda _seen: None
    seen: list[Seen] = field(default_factory=list)

    def count(self, method: str, part: str) -> int:
        return sum(one.method == method and part in one.path for one in self.seen)


@dataclass(frozen=True)
class Server:
    """What tests use: the address of a cache in it, the environment that leads there, the faults."""

    endpoint: str
    faults: Faults

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def address(self, name: str) -> str:
        return f"s3://{BUCKET}/{name}"


def once_each(fault: str, method: str, part: str) -> Callable[[Seen], str | None]:
    """Every such request fails the first time."""
    failed: set[str] = set()

    def of(seen: Seen) -> str | None:
        if seen.method != method or part not in seen.path or seen.path in failed:
            return None
        failed.add(seen.path)
        return fault

    return of


def always(fault: str, method: str, part: str) -> Callable[[Seen], str | None]:
    """Every such request fails every time."""
    return lambda seen: fault if seen.method == method and part in seen.path else None


@contextmanager
def s3_server() -> Iterator[Server]:
    """Started, with one empty bucket; gone afterwards."""
    port = _free_port()
    moto = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    faults = Faults()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("Proxy", (_Proxy,), {"port": port, "faults": faults}))
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        _wait_for(port, moto)
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("PUT", f"/{BUCKET}", headers={"Host": f"127.0.0.1:{port}"})
        assert connection.getresponse().status == 200
        yield Server(f"http://127.0.0.1:{proxy.server_address[1]}", faults)
    finally:
        proxy.shutdown()
        moto.kill()
        moto.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 60
    while not _listens(port):
        assert process.poll() is None, "the S3 server did not start"
        assert time.monotonic() < limit, "the S3 server does not answer"
        time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _without_checksums(headers: dict[str, str]) -> dict[str, str]:
    """As of an object that was stored damaged, or by a server that has no checksums: else s3fs's library finds it."""
    return {name: value for name, value in headers.items() if not name.lower().startswith("x-amz-checksum")}


class _Proxy(BaseHTTPRequestHandler):
    port: int
    faults: Faults
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        seen = Seen(self.command, self.path, self.client_address[1])
        self.faults.seen.append(seen)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.faults.of(seen)
        if fault == "slow":
            time.sleep(0.5)
        if fault in ("500", "403"):
            self._answer(int(fault), {}, _ERRORS[fault])
            return
        status, headers, content = self._forwarded(body)
        if fault == "flip":
            content, headers = _flipped(content), _without_checksums(headers)
        self._answer(status, headers, content, cut=fault == "cut")

    def _forwarded(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), content

    def _answer(self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length", str(len(content))) if self.command == "HEAD" else str(len(content))
        for name in headers.keys() - {"Content-Length", "Transfer-Encoding", "Connection"}:
            self.send_header(name, headers[name])
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

    def log_message(self, *_: object) -> None:
        pass
