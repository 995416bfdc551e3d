"""hf:// through huggingface_hub's own client, and every other address: done, or refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from cache_tools.storage.providers import denied, errors_of, is_denied, provider_of
from tests.cache.parts import command, item_bytes_of, make_cache
from tests.cluster.hub import REPOSITORY, TOKEN, hub_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cluster.hub import Hub

    Capture = pytest.CaptureFixture[str]

ROOT = Path(__file__).parents[2]
ADDRESS, OTHER = f"hf://datasets/{REPOSITORY}", "tester/other"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as hub:
        yield hub


# The commands' answers, one after another in one process: start-up takes longer than they do.
_COMMANDS = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from cache_tools.__main__ import main
from imaging.command import run
answers = []
for words in json.loads(sys.argv[1]):
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = run(main, words)
    answers.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(answers))
"""


def run(folder: Path, environment: dict[str, str], *commands: tuple[object, ...]) -> list[tuple[int, str, str]]:
    """In a process of its own: the Hub's client reads where the Hub is when it is imported."""
    own = {
        "CHAMPIONSHIP_SR_LOCAL_CACHE": str(folder / "copies"),
        "HF_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }
    words = json.dumps([[str(word) for word in one] for one in commands])
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS, words],
        cwd=ROOT,
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return [(code, out, err) for code, out, err in json.loads(done.stdout)]


def test_a_cache_goes_to_the_hub_with_a_card_and_comes_back(hub: Hub, tmp_path: Path) -> None:
    local = make_cache(tmp_path, [(32 + 4 * number, 40) for number in range(3)])
    push = "push", local, ADDRESS
    ((code, out, err),) = run(tmp_path, hub.environment, push)
    assert (code, out.strip()) == (0, f"pushed to {ADDRESS}: 3 items copied, 0 existed"), err[-2000:]
    sent = {name.rpartition("/")[2]: data for name, data in hub.files.items() if name.startswith("items/")}
    assert sent == item_bytes_of(local)
    assert sorted(len(names) for names in hub.commits if names[0].startswith("items/")) == [3]  # one commit of all
    _, head, card = hub.files["README.md"].decode().split("---\n", 2)
    assert "super-resolution" in yaml.safe_load(head)["tags"]
    assert f"pull {ADDRESS} cache/" in card
    before = set(hub.files)
    further = push, ("verify", ADDRESS, "--full"), ("pull", ADDRESS, tmp_path / "back")
    again, verified, pulled = run(tmp_path, hub.environment, *further)
    assert (again[0], again[1].strip()) == (0, f"pushed to {ADDRESS}: 0 items copied, 3 existed")
    assert set(hub.files) == before
    assert (verified[0], verified[1].strip()) == (0, "3 items checked (full), 0 bad"), verified[2][-2000:]
    assert pulled[0] == 0
    assert item_bytes_of(tmp_path / "back") == item_bytes_of(local)
    assert all(TOKEN.encode() not in data for data in hub.files.values())


def test_what_the_hub_refuses_is_one_line(hub: Hub, tmp_path: Path) -> None:
    local = make_cache(tmp_path, [(32, 40)])
    wrong, off = {"HF_TOKEN": "hf_" + "y" * 34}, {"HF_ENDPOINT": "http://127.0.0.1:1"}
    for environment, expected in (
        (wrong, {ADDRESS: "access is denied"}),
        (
            {},
            {"hf://datasets/tester/other": "there is no such place", "hf://datasets/a b/c": "is no place for a cache"},
        ),
        (off, {ADDRESS: "failed 4 times"}),
    ):
        answers = run(tmp_path, hub.environment | environment, *(("push", local, address) for address in expected))
        for (address, says), (code, _, err) in zip(expected.items(), answers, strict=True):
            assert code == 2, err[-2000:]
            last = err.strip().splitlines()[-1]
            assert last.startswith(f"refused: {address}"), last
            assert says in last
            assert "Traceback" not in err
    assert not hub.files


@pytest.mark.parametrize("address", ["ftp://host/cache", "foo://bucket/cache", "http://host/cache"])
def test_addresses_of_no_storage_are_refused(address: str, tmp_path: Path, capsys: Capture) -> None:
    for words in (("info", address), ("pull", address, tmp_path / "here")):
        assert command(*words) == 2
        assert "is no storage that is known" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("package", "address", "extra"), [("gcsfs", "gs://bucket/cache", "gcs"), ("adlfs", "az://container/cache", "azure")]
)
def test_a_missing_package_is_named(package: str, address: str, extra: str, capsys: Capture) -> None:
    try:
        __import__(package)
    except ImportError:
        assert command("info", address) == 2
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.endswith(f"pip install 'championship-sr[{extra}]'")
    else:
        pytest.skip(f"{package} is installed here")


def test_adlfs_without_an_account_is_a_denied_access(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    pytest.importorskip("adlfs", reason="needs the extra 'azure'")
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    assert command("info", "az://container/cache") == 2
    assert "access is denied" in capsys.readouterr().err.strip().splitlines()[-1]


def test_denied_is_told_from_failing() -> None:
    assert is_denied(PermissionError("no"))
    assert is_denied(OSError("Forbidden: gs://bucket"))  # as gcsfs says it
    assert not is_denied(OSError("connection reset"))
    assert "credentials" in denied("gs://bucket", PermissionError("no")).cure
    assert all(issubclass(kind, Exception) for kind in errors_of(provider_of("hf://datasets/a/b")))


def test_the_two_sides_of_a_copy_are_told_apart(tmp_path: Path, capsys: Capture) -> None:
    for words in (("push", "s3://b/c", "s3://b/d"), ("pull", "s3://b/c", "s3://b/d")):
        assert command(*words) == 2
        assert "is an address; name a folder of this machine" in capsys.readouterr().err
    assert command("push", tmp_path, tmp_path / "other") == 2
    assert "is a folder; name s3://" in capsys.readouterr().err
