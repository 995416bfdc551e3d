"""The published light networks: fetched together from a server, known by their hash, scored as the catalog says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlparse

import pytest

from experts.__main__ import MIRROR, main
from experts.catalog import Catalog, built_in_catalog, load_catalog
from experts.open import open_experts
from imaging import command
from imaging.files import read_rgb
from imaging.metrics import psnr
from imaging.refusal import Refusal
from tests.experts.parts import save_network, small_network
from tests.experts.test_fetch import Server, server  # noqa: F401 (a fixture)

STRONG = ("dctlsa", "craft", "hit-srf")
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHAMPIONSHIP_SR_PRETRAINED", str(tmp_path / "pretrained"))
    monkeypatch.delenv(MIRROR, raising=False)
    return tmp_path / "pretrained"


@pytest.fixture
def weights(shared_data: Path) -> Path:
    folder = shared_data.parent / "real_models" / "weights"
    if not (folder / "DCTLSA_X4.pt").is_file():
        pytest.skip("published weights not present in shared/real_models")
    return folder


def run(*words: object) -> int:
    return command.run(main, [str(word) for word in words])


def test_the_preset_is_in_the_catalog_and_every_address_names_a_commit() -> None:
    catalog = built_in_catalog()
    assert catalog.preset("strong") == STRONG
    for name in STRONG:
        (source,) = catalog.get(name).weights
        assert source.url is not None
        assert re.fullmatch(r"https://raw\.githubusercontent\.com/[^/]+/[^/]+/[0-9a-f]{40}/.+", source.url)
        assert source.sha256 is not None
        assert len(source.sha256) == 64
        assert source.bytes
        assert source.licence != "unknown"
    with pytest.raises(Refusal, match="did you mean 'strong'"):
        catalog.preset("stong")


@pytest.fixture
def two_experts(server: Server, tmp_path: Path) -> Path:  # noqa: F811
    """A user's catalog of two small networks and a preset of both; the server has their files."""
    described = []
    for seed, name in enumerate(("ann", "bob")):
        path = save_network(small_network("EDSR", seed), tmp_path / f"{name}.safetensors")
        server.files[f"/m/{name}.safetensors"] = path.read_bytes()
        source = {"file": path.name, "url": f"https://example.org/m/{name}.safetensors"}
        described.append({"name": name, "weights": [source]})
        path.unlink()
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps({"experts": described, "presets": {"both": ["ann", "bob"]}}))
    return config


def base(server: Server) -> str:  # noqa: F811
    return server.url.removesuffix("/file.bin")


def test_several_names_and_a_preset(
    server: Server,  # noqa: F811
    two_experts: Path,
    pretrained: Path,
    capsys: Capsys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.behaviour.cut_after = [10_000]
    assert run("fetch", "ann", "bob", "--config", two_experts, "--mirror", base(server), "--json") == 0
    assert [one["expert"] for one in json.loads(capsys.readouterr().out)] == ["ann", "bob"]
    assert sorted(path.suffix for path in pretrained.iterdir()) == [".json", ".json", ".safetensors", ".safetensors"]
    monkeypatch.setenv(MIRROR, base(server))
    assert run("fetch", "--preset", "both", "--config", two_experts) == 0
    assert capsys.readouterr().out.count("parameters") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "names no expert"),
        (("--preset", "bth"), "unknown preset"),
        (("ann", "bab"), "did you mean 'bob'"),
    ],
)
def test_what_cannot_be_fetched_is_one_line_before_the_first_byte(
    server: Server,  # noqa: F811
    two_experts: Path,
    capsys: Capsys,
    words: tuple[str, ...],
    said: str,
) -> None:
    assert run("fetch", *words, "--config", two_experts, "--mirror", base(server)) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert server.behaviour.asked == []


def test_a_file_that_is_not_there_is_one_line(server: Server, two_experts: Path, capsys: Capsys) -> None:  # noqa: F811
    server.behaviour.status = [404]
    assert run("fetch", "ann", "--config", two_experts, "--mirror", base(server)) == 2
    assert "404" in capsys.readouterr().err


def serve(server: Server, weights: Path, catalog: Catalog) -> None:  # noqa: F811
    for name in STRONG:
        (source,) = catalog.get(name).weights
        server.files[urlparse(str(source.url)).path] = (weights / source.file).read_bytes()


def test_the_strong_preset_from_a_mirror(
    server: Server,  # noqa: F811
    weights: Path,
    pretrained: Path,
    capsys: Capsys,
) -> None:
    serve(server, weights, built_in_catalog())
    assert run("fetch", "--preset", "strong", "--mirror", base(server), "--json") == 0
    records = json.loads(capsys.readouterr().out)
    assert [(one["expert"], one["architecture"]) for one in records] == [
        ("dctlsa", "DCTLSA"),
        ("craft", "CRAFT"),
        ("hit-srf", "HiT_SRF"),
    ]
    channels = [expert.identity.channels for expert in open_experts(STRONG)]
    assert channels == [55, 48, 60]


def test_import_knows_a_published_file_by_its_hash(
    weights: Path, tmp_path: Path, pretrained: Path, capsys: Capsys
) -> None:
    renamed = tmp_path / "X4.pt"
    renamed.write_bytes((weights / "DCTLSA_X4.pt").read_bytes())
    assert run("import", renamed, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["expert"], record["file"], record["licence"]) == ("dctlsa", "DCTLSA_X4.pt", "Apache-2.0")
    assert run("check", "dctlsa") == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", STRONG)
def test_the_measured_score(weights: Path, shared_data: Path, pretrained: Path, name: str) -> None:
    pretrained.symlink_to(weights)
    (expert,) = open_experts([name])
    scores = []
    for path in sorted((shared_data / "bench" / "Set5" / "LRx4").glob("*.png")):
        hr_BCHW = read_rgb(shared_data / "bench" / "Set5" / "HR" / path.name.replace("x4", ""))
        sr_BCHW = (expert.run(read_rgb(path)).sr_BCHW.clamp(0, 1) * 255).round() / 255
        scores.append(float(psnr(sr_BCHW, hr_BCHW)))
    assert sum(scores) / len(scores) == pytest.approx(load_catalog().get(name).measured["Set5"], abs=0.005)
