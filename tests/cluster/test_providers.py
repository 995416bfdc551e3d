"""hf:// through huggingface_hub's own client, and every other address: done, or refused in one line."""

from __future__ import annotations

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
ADDRESS = f"hf://datasets/{REPOSITORY}"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_server() as hub:
        yield hub


def run(folder: Path, environment: dict[str, str], *words: object) -> tuple[int, str, str]:
    """In a process of its own: the Hub's client reads where the Hub is when it is imported."""
    own = {
        "CHAMPIONSHIP_SR_LOCAL_CACHE": str(folder / "copies"),
        "HF_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_cache_goes_to_the_hub_with_a_card_and_comes_back(hub: Hub, tmp_path: Path) -> None:
    local = make_cache(tmp_path, [(32 + 4 * number, 40) for number in range(3)])
    code, out, err = run(tmp_path, hub.environment, "cache_tools", "push", local, ADDRESS)
    assert (code, out.strip()) == (0, f"pushed to {ADDRESS}: 3 items copied, 0 existed"), err[-2000:]
    sent = {name.rpartition("/")[2]: data for name, data in hub.files.items() if name.startswith("items/")}
    assert sent == item_bytes_of(local)
    assert sorted(len(names) for names in hub.commits if names[0].startswith("items/")) == [3]  # one commit of all
    _, head, card = hub.files["README.md"].decode().split("---\n", 2)
    assert "super-resolution" in yaml.safe_load(head)["tags"]
    assert f"pull {ADDRESS} cache/" in card
    before = len(sent), dict(hub.files)
    code, out, _ = run(tmp_path, hub.environment, "cache_tools", "push", local, ADDRESS)
    assert (code, out.strip()) == (0, f"pushed to {ADDRESS}: 0 items copied, 3 existed")
    assert before[1].keys() == hub.files.keys()
    code, out, err = run(tmp_path, hub.environment, "cache_tools", "verify", ADDRESS, "--full")
    assert (code, out.strip()) == (0, "3 items checked (full), 0 bad"), err[-2000:]
    assert run(tmp_path, hub.environment, "cache_tools", "pull", ADDRESS, tmp_path / "back")[0] == 0
    assert item_bytes_of(tmp_path / "back") == item_bytes_of(local)
    assert all(TOKEN.encode() not in data for data in hub.files.values())


def test_what_the_hub_refuses_is_one_line(hub: Hub, tmp_path: Path) -> None:
    local = make_cache(tmp_path, [(32, 40)])
    for environment, address, says in (
        (hub.environment | {"HF_TOKEN": "hf_" + "y" * 34}, ADDRESS, "access is denied"),
        (hub.environment, "hf://datasets/tester/other", "there is no such place"),
        (hub.environment, "hf://datasets/a b/c", "is no place for a cache"),
        (hub.environment | {"HF_ENDPOINT": "http://127.0.0.1:1"}, ADDRESS, "failed 4 times"),
    ):
        code, _, err = run(tmp_path, environment, "cache_tools", "push", local, address)
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
