"""The wheel, built from the sdist and installed into an empty environment away from the checkout, does the main job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import championship_sr
from imaging.paths import IN_CHECKOUT, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not IN_CHECKOUT, reason="only a checkout builds the wheel")]
VERSION = championship_sr.__version__


def run(command: list[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Away from the checkout, with nothing of this process's Python paths."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "CHAMPIONSHIP", "XDG"))}
    return subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**kept, "HOME": str(folder), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def shipped(folder: str) -> set[str]:
    """The files of a folder that are part of the project: those that git has, or all where there is no git."""
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return {line.removeprefix(f"{folder}/") for line in listed.stdout.splitlines()}
    files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT / folder).as_posix() for path in files}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(sdist, wheel), made from a copy, since building leaves folders behind."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "__pycache__", ".*_cache", "*.egg-info", "build", "runs", "caches", "demo", "scratch", "shared"
    )
    shutil.copytree(ROOT, folder / "checkout", ignore=ignored)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "checkout"]
    done = run(command, folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (sdist,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment with the wheel and, by a path file, this environment's dependencies.

    A path file adds their folder without running the hooks in it, so an editable install does not come along.
    """
    home = tmp_path_factory.mktemp("env")
    done = run([sys.executable, "-m", "venv", home], home.parent)
    assert done.returncode == 0, done.stderr
    places = {name: Path(path) for name, path in sysconfig.get_paths(vars={"base": str(home)}).items()}
    scripts, site = places["scripts"], places["purelib"]
    done = run([scripts / "python", "-m", "pip", "install", "--no-deps", "--no-index", built[1]], home.parent)
    assert done.returncode == 0, done.stderr
    dependencies = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    return scripts


def test_wheel_and_sdist_hold_weights_configs_and_pages(built: tuple[Path, Path]) -> None:
    sdist, wheel = built
    assert VERSION in wheel.name
    assert VERSION in sdist.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for folder in ("pretrained", "configs"):
        start = f"championship_sr/{folder}/"
        assert {name.removeprefix(start) for name in names if name.startswith(start)} == shipped(folder)
    for room in ("championship_sr", "imaging", "experts", "cache_tools", "fusion"):
        assert f"{room}/py.typed" in names
    data = {path.relative_to(ROOT).as_posix() for room in ("experts", "fusion") for path in (ROOT / room).rglob("*.*")}
    pages = {name for name in data if name.endswith((".html", ".css", ".js", ".yaml"))}
    assert pages
    assert pages <= names
    assert {"infer.py", "train.py"} <= names
    assert not {name for name in names if name.split("/")[0] in ("benchmarks", "tests", "docs")}
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"pretrained/{name}" for name in shipped("pretrained")} <= inside
    assert {"Makefile", "constraints.txt", "tests/package/test_wheel.py", "benchmarks/__init__.py"} <= inside


def test_csr_upscale_and_the_public_api_give_what_the_checkout_gives(installed: Path, tmp_path: Path) -> None:
    levels_HWC = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(levels_HWC).save(tmp_path / "small.png")
    expected_HWC = championship_sr.upscale(levels_HWC, device="cpu")
    done = run([installed / "csr", "upscale", "-i", "small.png", "-o", "out", "--device", "cpu"], tmp_path)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "small.png")), expected_HWC)
    code = (
        "import championship_sr, imaging, sys; assert 'torch' not in sys.modules; print(imaging.__file__);"
        "print(championship_sr.__version__); championship_sr.upscale('small.png', device='cpu').save('again.png')"
    )
    done = run([installed / "python", "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    file, version = done.stdout.split()
    assert Path(file).is_relative_to(installed.parent)
    assert version == VERSION
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again.png")), expected_HWC)


def test_commands_of_the_installed_package(installed: Path, tmp_path: Path) -> None:
    done = run([installed / "csr", "--version"], tmp_path)
    assert done.stdout == f"championship-sr {VERSION}\n"
    done = run([installed / "csr", "train", "--config", "configs/fusion_x4.yaml", "--print-config"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "task: fusion" in done.stdout
    done = run([installed / "csr", "experts", "list"], tmp_path)
    assert "here     edsr-s" in done.stdout, done.stderr
    code = (
        "from importlib import import_module as load; from imaging.command import run; print(*("
        "run(load(f'{room}.__main__').main, words) for room, *words in"
        " (('fusion', 'bench'), ('experts', 'bench-native'), ('cache_tools', 'bench', '--out', 'b'))))"
    )
    done = run([installed / "python", "-c", code], tmp_path)
    assert done.stdout == "2 2 2\n"
    assert [line.count("in a checkout of the repository") for line in done.stderr.splitlines()] == [1, 1, 1]


def test_imported_weights_go_to_the_users_folder(installed: Path, tmp_path: Path) -> None:
    mine, weights = tmp_path / "mine.safetensors", ROOT / "pretrained" / "edsr_s.safetensors"
    shutil.copyfile(weights, mine)
    users = {"XDG_DATA_HOME": str(tmp_path / "data")}
    done = run([installed / "csr", "experts", "import", mine], tmp_path, **users)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "championship-sr" / "pretrained" / mine.name).is_file()
    done = run([installed / "csr", "experts", "check", "edsr-s"], tmp_path, **users)  # which the package carries
    assert done.returncode == 0, done.stderr
