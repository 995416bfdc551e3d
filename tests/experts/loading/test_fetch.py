"""Fetching from a real HTTP server that cuts connections, lies about hashes, ignores ranges, and changes its files."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from experts.loading import fetch as fetching
from experts.spec import ExpertSpec, WeightsSource
from imaging.refusal import Refusal

CONTENT = bytes(range(256)) * 2000


@dataclass
class Behaviour:
    """What the server does; tests change it."""

    content: bytes = CONTENT
    cut_after: list[int] = field(default_factory=list)  # one number per coming answer: bytes before the cut
    ranges: bool = True
    status: list[int] = field(default_factory=list)  # one number per coming answer
    asked: list[str | None] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    """A loopback server with one file, or with one for each path in `files`."""

    files: dict[str, bytes]

    behaviour: Behaviour

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(BaseHTTPRequestHandler):
    """Answers GET, with ranges, as the server's behaviour says."""

    server: Server

    def do_GET(self) -> None:
        behaviour = self.server.behaviour
        content = self.server.files.get(self.path, behaviour.content)
        wanted = self.headers.get("Range")
        behaviour.asked.append(wanted)
        if behaviour.status:
            self.send_error(behaviour.status.pop(0))
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if wanted and behaviour.ranges and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", tag)
        self.end_headers()
        if behaviour.cut_after:
            self.wfile.write(body[: behaviour.cut_after.pop(0)])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.behaviour = Behaviour()
        running.files = {}
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def spec(server: Server, **source: object) -> ExpertSpec:
    fields = {"file": "file.bin", "url": server.url, **source}
    return ExpertSpec(name="x", weights=(WeightsSource.model_validate(fields),))


def fetch(server: Server, folder: Path, **source: object) -> Path:
    return fetching.fetch(spec(server, **source), folder, pause=0)[0]


def test_a_file_arrives_whole_verified_and_alone(server: Server, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    path = fetch(server, tmp_path / "w", sha256=sha256, bytes=len(CONTENT))
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_cut_connections_are_taken_up_where_they_broke(server: Server, tmp_path: Path) -> None:
    server.behaviour.cut_after = [100_000, 150_000]
    path = fetch(server, tmp_path, sha256=hashlib.sha256(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT
    assert server.behaviour.asked == [None, "bytes=100000-", "bytes=250000-"]


def test_a_later_run_goes_on_where_an_earlier_gave_up(server: Server, tmp_path: Path) -> None:
    server.behaviour.cut_after = [50_000, 10, 10, 10, 10]
    with pytest.raises(Refusal, match="goes on where it stopped"):
        fetch(server, tmp_path)
    assert not (tmp_path / "file.bin").exists()
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.behaviour.asked[-1] == "bytes=50040-"


def test_a_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.behaviour.ranges = False
    server.behaviour.cut_after = [100_000]
    assert fetch(server, tmp_path).read_bytes() == CONTENT


def test_a_file_that_changed_in_between_is_not_patched_together(server: Server, tmp_path: Path) -> None:
    server.behaviour.cut_after = [100_000, 0, 0, 0, 0]
    with pytest.raises(Refusal):
        fetch(server, tmp_path)
    server.behaviour.content = CONTENT[::-1]
    assert fetch(server, tmp_path).read_bytes() == CONTENT[::-1]


def test_a_leftover_longer_than_the_file_starts_over(server: Server, tmp_path: Path) -> None:
    server.behaviour.cut_after = [100_000, 0, 0, 0, 0]
    with pytest.raises(Refusal):
        fetch(server, tmp_path)
    with (tmp_path / ".file.bin.part").open("ab") as stream:
        stream.write(bytes(len(CONTENT)))
    assert fetch(server, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("known", [{"sha256": "0" * 64}, {"sha256_prefix": "deadbeef"}, {"bytes": 5}])
def test_a_wrong_file_is_removed_and_never_gets_its_name(server: Server, tmp_path: Path, known: dict) -> None:
    with pytest.raises(Refusal, match="it was removed"):
        fetch(server, tmp_path, **known)
    assert list(tmp_path.iterdir()) == []


def test_trouble_that_passes_is_waited_out_and_trouble_that_stays_is_named(server: Server, tmp_path: Path) -> None:
    server.behaviour.status = [503, 429]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    server.behaviour.status = [404]
    with pytest.raises(Refusal, match="404"):
        fetch(server, tmp_path / "other")


def test_a_file_name_that_leads_out_of_the_folder_is_refused(server: Server, tmp_path: Path) -> None:
    for name in ("../file.bin", "/file.bin", "a/../../file.bin"):
        with pytest.raises(Refusal, match="leads out|absolute"):
            fetch(server, tmp_path / "w", file=name)
    assert server.behaviour.asked == []


def test_no_address_no_other_scheme_no_server(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no address"):
        fetch(server, tmp_path, url=None)
    with pytest.raises(Refusal, match="not an http address"):
        fetch(server, tmp_path, url=(tmp_path / "a").as_uri())
    with pytest.raises(Refusal, match="5 tries"):
        fetch(server, tmp_path, url="http://127.0.0.1:1/file.bin")


def test_a_mirror_is_another_base_for_the_same_path(server: Server, tmp_path: Path) -> None:
    source = {"file": "file.bin", "url": "https://example.org/file.bin", "sha256": hashlib.sha256(CONTENT).hexdigest()}
    one = ExpertSpec(name="x", weights=(WeightsSource.model_validate(source),))
    mirror = server.url.removesuffix("file.bin")
    path, _ = fetching.fetch(one, tmp_path, mirror=mirror, pause=0)
    assert path.read_bytes() == CONTENT
    assert fetching.mirrored("https://h/a/b.pth", "http://m:8/deep/") == "http://m:8/deep/a/b.pth"
    assert fetching.mirrored("https://h/a/b.pth", None) == "https://h/a/b.pth"


def test_a_verified_file_is_not_fetched_again_and_a_damaged_one_is(server: Server, tmp_path: Path) -> None:
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    path = fetch(server, tmp_path, sha256=sha256)
    fetch(server, tmp_path, sha256=sha256)
    assert len(server.behaviour.asked) == 1
    path.write_bytes(CONTENT[:-1])
    assert fetch(server, tmp_path, sha256=sha256).read_bytes() == CONTENT
