"""docs/try in a real Chromium, with onnxruntime-web from npm: what the page saves is what infer.py writes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import infer
from experts.__main__ import main as experts_command

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "try"
EXPERT = "pretrained/fast.safetensors"
DONE = "() => document.getElementById('status').textContent.includes('done in')"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page as `make try` makes it."""
    pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    made = tmp_path_factory.mktemp("try") / "page"
    shutil.copytree(PAGE, made, ignore=shutil.ignore_patterns("node_modules", "*.onnx"))
    if (PAGE / "node_modules").is_dir():
        (made / "node_modules").symlink_to(PAGE / "node_modules")
    else:
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("no npm on this machine: onnxruntime-web cannot be installed")
        words = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock"]
        done = subprocess.run(words, cwd=made, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot install onnxruntime-web here: {done.stderr.strip()[-200:]}")
    assert experts_command(["export", EXPERT, "--to", "onnx", str(made / "fast.onnx")]) == 0
    return made


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    server = subprocess.Popen([sys.executable, folder / "serve.py", "0"], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield server.stdout.readline().split()[0]
    server.terminate()
    server.wait(10)


@pytest.fixture
def page(address: str, browser: Any) -> Iterator[Any]:
    opened = browser.new_page()
    elsewhere: list[str] = []
    opened.on("request", lambda request: elsewhere.append(request.url))
    opened.goto(address)
    opened.wait_for_function("() => document.getElementById('status').textContent.startsWith('ready')")
    yield opened
    local = (address, f"blob:{address}", "data:", "file:")
    assert [url for url in elsewhere if not url.startswith(local)] == []  # everything stays on the machine
    opened.close()


def photo(height: int, width: int, channels: int = 3) -> Image.Image:
    """Smooth colours with edges in them."""
    y, x = np.mgrid[:height, :width]
    planes = [127 + 90 * np.sin(x / (5 + c)) * np.cos(y / 7) + 37 * ((x + y) // 9 % 2) for c in range(3)]
    if channels == 4:
        planes.append(np.where(x < width // 2, 255, 0))
    return Image.fromarray(np.stack(planes, -1).clip(0, 255).astype(np.uint8))


def saved(page: Any, place: Path) -> tuple[str, np.ndarray]:
    with page.expect_download() as waiting:
        page.click("#results li:first-child .save")
    waiting.value.save_as(place)
    return waiting.value.suggested_filename, np.asarray(Image.open(place)).astype(int)


def test_it_saves_what_infer_writes(page: Any, tmp_path: Path) -> None:
    """A single tile to one grey level of rounding; of several, what infer.py's own tiles may differ by."""
    (tmp_path / "in").mkdir()
    names = {"small one.png": (37, 52), "larger.png": (112, 131)}
    for name, (height, width) in names.items():
        photo(height, width).save(tmp_path / "in" / name)
    words = ["-i", tmp_path / "in", "-o", tmp_path / "out", "--model", "none", "--experts", EXPERT, "--device", "cpu"]
    assert infer.command_line([str(word) for word in words]) == 0
    for (name, (height, width)), apart in zip(names.items(), (1, 2), strict=True):
        page.set_input_files("#file", tmp_path / "in" / name)
        page.wait_for_function(f"() => document.getElementById('status').textContent.startsWith('{name}: done')")
        title, ours = saved(page, tmp_path / "saved.png")
        assert title == f"{Path(name).stem}_x4.png"
        assert ours.shape == (4 * height, 4 * width, 4)
        assert (ours[..., 3] == 255).all()
        written = next((tmp_path / "out").glob(f"{Path(name).stem}*.png"))
        assert np.abs(ours[..., :3] - np.asarray(Image.open(written)).astype(int)).max() <= apart


def test_transparency_is_kept(page: Any, tmp_path: Path) -> None:
    photo(24, 32, channels=4).save(tmp_path / "see_through.png")
    page.set_input_files("#file", tmp_path / "see_through.png")
    page.wait_for_function(DONE)
    _, ours = saved(page, tmp_path / "saved.png")
    assert (ours[:, :48, 3] == 255).all()
    assert (ours[:, 80:, 3] == 0).all()


def test_what_is_no_image_is_named_and_the_next_is_made(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    photo(16, 16).save(tmp_path / "good.png")
    page.set_input_files("#file", [tmp_path / "notes.png", tmp_path / "good.png"])
    page.wait_for_function(DONE)
    assert page.inner_text("#results .error") == "notes.png: is no image that this browser can read"
    assert page.locator("#results canvas").count() == 2


def test_a_run_can_be_cancelled_and_the_page_goes_on(page: Any, tmp_path: Path) -> None:
    photo(600, 600).save(tmp_path / "long.png")
    photo(16, 16).save(tmp_path / "short.png")
    page.set_input_files("#file", tmp_path / "long.png")
    page.click("#cancel")
    assert page.inner_text("#status") == "cancelled"
    page.set_input_files("#file", tmp_path / "short.png")
    page.wait_for_function(DONE)
    assert page.locator("#results li").count() == 1


def test_a_page_without_its_network_says_how_to_get_it(folder: Path, address: str, page: Any) -> None:
    (folder / "fast.onnx").rename(folder / "away.onnx")
    try:
        page.goto(address)
        page.wait_for_selector("#status.error")
        assert "run `make try` in a checkout" in page.inner_text("#status")
    finally:
        (folder / "away.onnx").rename(folder / "fast.onnx")


def test_opened_as_a_file_it_says_what_to_run(folder: Path, page: Any) -> None:
    page.goto((folder / "index.html").as_uri())
    assert "make try" in page.inner_text("#status")  # the browser itself refuses a file's scripts
