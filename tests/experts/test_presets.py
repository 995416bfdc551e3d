"""The published light networks: fetched together from a server, known by their hash, scored as the catalog says."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from urllib.parse import urlparse

import pytest
import torch
from safetensors.torch import save_file

from experts.__main__ import MIRROR, main
from experts.catalog import Catalog, built_in_catalog, load_catalog
from experts.open import fetched_experts, open_experts
from imaging import command
from imaging.files import read_rgb
from imaging.metrics import psnr
from imaging.refusal import Refusal
from tests.experts.loading.test_fetch import Server, server  # noqa: F401 (a fixture)
from tests.experts.parts import save_network, small_network

STRONG = ("dctlsa", "craft", "hit-srf")
LIGHT = ("eaglesr", "sepsrnet")
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
    for name in (*STRONG, *LIGHT):
        spec = catalog.get(name)
        for source in (*spec.weights, *([spec.code] if spec.code else [])):
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


CODE = """
from torch import nn
from torch.nn.functional import interpolate
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 3, 3, padding=1)
    def forward(self, x):
        return interpolate(x + self.body(x), scale_factor=4)
"""


@pytest.fixture
def with_code(server: Server, tmp_path: Path) -> Path:  # noqa: F811
    """A user's catalog of a network whose code is published beside its weights."""
    file = tmp_path / "net.safetensors"
    save_file({"body.weight": torch.zeros(3, 3, 3, 3), "body.bias": torch.zeros(3)}, file)
    server.files["/m/net.safetensors"], server.files["/m/net.py"] = file.read_bytes(), CODE.encode()
    file.unlink()
    code = {"file": "net.py", "name": "Net", "url": "https://example.org/m/net.py", "sha256": sha256(CODE.encode())}
    source = {"file": "net.safetensors", "url": "https://example.org/m/net.safetensors"}
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps({"experts": [{"name": "ours", "code": code, "weights": [source]}]}))
    return config


def test_published_code_may_lie_beside_its_weights(
    server: Server,  # noqa: F811
    with_code: Path,
    pretrained: Path,
    tmp_path: Path,
    capsys: Capsys,
) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    (downloads / "net.safetensors").write_bytes(server.files["/m/net.safetensors"])
    words = (downloads / "net.safetensors", "--config", with_code)
    assert run("check", *words) == 2
    assert "put it beside the weights or into pretrained/" in capsys.readouterr().err
    (downloads / "net.py").write_text(CODE)
    assert run("check", *words) == 0
    capsys.readouterr()
    assert run("import", *words) == 0
    assert f"{pretrained / 'net.safetensors'}: use it by the name ours\n" in capsys.readouterr().out
    files = ["net.py", "net.safetensors", "net.safetensors.json"]
    assert sorted(path.name for path in pretrained.iterdir()) == files
    shutil.rmtree(downloads)
    assert run("check", "ours", "--config", with_code) == 0


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_published_code_comes_with_its_weights_and_is_pinned(
    server: Server,  # noqa: F811
    with_code: Path,
    pretrained: Path,
    capsys: Capsys,
) -> None:
    words = ("ours", "--config", with_code)
    assert run("check", *words) == 2
    assert "run `python -m experts fetch ours`" in capsys.readouterr().err
    assert run("fetch", *words, "--mirror", base(server)) == 0
    assert (pretrained / "net.py").read_text() == CODE
    assert run("check", *words) == 0
    assert f"{sha256(CODE.encode())} Net()" in capsys.readouterr().out
    (pretrained / "net.py").write_text(CODE + "# changed")
    assert run("check", *words) == 2
    assert "the code has changed" in capsys.readouterr().err
    (pretrained / "net.py").unlink()
    assert fetched_experts(["ours", "edsr-s"], load_catalog(with_code)) == ("edsr-s",)
    assert run("check", *words) == 2
    assert "`python -m experts fetch ours` gets it with the weights" in capsys.readouterr().err


def test_other_code_than_the_published_is_not_kept(
    server: Server,  # noqa: F811
    with_code: Path,
    pretrained: Path,
    capsys: Capsys,
) -> None:
    server.files["/m/net.py"] = CODE.replace("3", "4").encode()
    assert run("fetch", "ours", "--config", with_code, "--mirror", base(server)) == 2
    assert "published is" in capsys.readouterr().err
    assert list(pretrained.iterdir()) == []


def test_light_networks_with_code_from_a_mirror(
    server: Server,  # noqa: F811
    weights: Path,
    pretrained: Path,
    capsys: Capsys,
) -> None:
    """Published code that the built-in catalog pins runs without being asked for by name."""
    for name in LIGHT:
        spec = built_in_catalog().get(name)
        assert spec.code is not None
        for source, folder in ((spec.weights[0], weights), (spec.code, weights.parent / "code")):
            server.files[urlparse(str(source.url)).path] = (folder / source.file).read_bytes()
    assert run("fetch", *LIGHT, "--mirror", base(server), "--json") == 0
    records = json.loads(capsys.readouterr().out)
    assert [(one["architecture"], one["parameters"]) for one in records] == [("EagleSR", 352400), ("SepSRNet", 251091)]
    assert [expert.identity.channels for expert in open_experts(LIGHT)] == [64, 48]


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
@pytest.mark.parametrize("name", (*STRONG, *LIGHT))
def test_the_measured_score(weights: Path, shared_data: Path, pretrained: Path, name: str) -> None:
    pretrained.mkdir()
    for path in (*weights.iterdir(), *(weights.parent / "code").iterdir()):
        (pretrained / path.name).symlink_to(path)
    (expert,) = open_experts([name])
    scores = []
    for path in sorted((shared_data / "bench" / "Set5" / "LRx4").glob("*.png")):
        hr_BCHW = read_rgb(shared_data / "bench" / "Set5" / "HR" / path.name.replace("x4", ""))
        sr_BCHW = (expert.run(read_rgb(path)).sr_BCHW.clamp(0, 1) * 255).round() / 255
        scores.append(float(psnr(sr_BCHW, hr_BCHW)))
    assert sum(scores) / len(scores) == pytest.approx(load_catalog().get(name).measured["Set5"], abs=0.005)
