"""The report: one file, complete, with the right figures; seen by a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from fusion.inference.command import Request, carry_out
from fusion.inference.options import Options, OutputSize
from fusion.inference.report.page import _level_weights, _map, _scale
from imaging.command import DONE, run
from tests.conftest import BROWSER
from tests.inference.parts import enlarge, ensemble_of, photo, pixels


def brighter(lr_BCHW: torch.Tensor) -> torch.Tensor:
    return enlarge(lr_BCHW) + 0.02


def shifted(lr_BCHW: torch.Tensor) -> torch.Tensor:
    return enlarge(lr_BCHW.roll(1, -1))


@pytest.fixture
def report(tmp_path: Path) -> Path:
    """Two images through two experts, with true images."""
    for name, size in (("<first>", (50, 64)), ("second", (33, 40))):
        for folder, levels in (("lr", photo(*size)), ("hr", photo(4 * size[0], 4 * size[1], seed=1))):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(levels).save(tmp_path / folder / f"{name}.png")
    ensemble = ensemble_of(brighter=brighter, shifted=shifted)
    request = Request(
        tmp_path / "lr", tmp_path / "out", Options(tile=40), report=True, hr=tmp_path / "hr", submission=True
    )
    assert carry_out(request, ensemble) == DONE
    return tmp_path / "out" / "report.html"


class Reader(HTMLParser):
    """Collects what a page refers to and says; complains about tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open, self.addresses, self.text = list[str](), list[str](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("img", "input", "meta", "br"):
            self.open.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_is_whole_and_stands_alone(report: Path) -> None:
    reader = Reader()
    reader.feed(report.read_text())
    assert reader.open == []
    assert reader.addresses
    assert all(address.startswith("data:image/jpeg;base64,") for address in reader.addresses)
    assert "http" not in report.read_text()
    for word in (
        "<first>",
        "second",
        "the same everywhere: brighter 0.500, shifted 0.500",
        "disagreement",
        "weights_sha256",
        "tiles",
    ):
        assert word in reader.text
    assert "{{" not in reader.text
    assert "gate/" not in reader.text  # words in place of the maps


def test_scores_are_those_of_scikit_image(report: Path) -> None:
    """Y-PSNR of the fused file against the true one, by scikit-image on BT.601 luma."""
    folder = report.parent.parent

    def luma(path: Path) -> np.ndarray:
        rgb = pixels(path).astype(float)
        return (rgb @ np.array([65.481, 128.553, 24.966]) / 255 + 16)[4:-4, 4:-4]

    expected = peak_signal_noise_ratio(
        luma(folder / "hr" / "second.png"), luma(report.parent / "second.png"), data_range=255
    )
    section = report.read_text().split("<h2>second")[1]
    found = re.search(r"<th>fused</th><td>([0-9.]+) dB", section)
    assert found is not None
    assert float(found.group(1)) == pytest.approx(expected, abs=0.002)


def test_a_true_image_of_another_size_is_that_images_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, size in (("lr", 20), ("hr", 81)):
        (tmp_path / folder).mkdir()
        Image.fromarray(photo(size, size)).save(tmp_path / folder / "one.png")
    request = Request(tmp_path / "lr", tmp_path / "out", Options(), report=True, hr=tmp_path / "hr", as_json=True)
    assert carry_out(request, ensemble_of()) == 1
    assert "is 81x81, the output 80x80" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.png"))


def browse(report: Path, profile: Path, *words: str) -> str:
    """One headless run of the browser on the page."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        "--window-size=1200,1400", *words, report.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_in_a_real_browser(report: Path, tmp_path: Path) -> None:
    if BROWSER is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    dom = browse(report, tmp_path / "profile", "--dump-dom")
    assert dom.count('data-ready="yes"') == 2  # the script ran, once for each slider
    assert "--cut: 50%" in dom
    picture = tmp_path / "page.png"
    browse(report, tmp_path / "profile", f"--screenshot={picture}")
    seen = pixels(picture)[..., :3].astype(float)
    assert seen.shape[:2] == (1400, 1200)
    assert seen.std() > 20  # a page with pictures on it, not a blank or an error
    # The slider's dividing line: white from top to bottom of the first picture, 200 pixels high.
    white_W = (seen.min(-1) > 250).sum(axis=0)
    assert ((white_W >= 190) & (white_W < 700)).any()


def test_failures_are_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "lr").mkdir()
    Image.fromarray(photo(20, 20)).save(tmp_path / "lr" / "good.png")
    (tmp_path / "lr" / "bad.png").write_bytes(b"")
    request = Request(tmp_path / "lr", tmp_path / "out", Options(), report=True)
    assert run(lambda _words: carry_out(request, ensemble_of()), []) == 1
    assert "zero bytes" in (tmp_path / "out" / "report.html").read_text()


def test_large_images_are_reduced_by_averaging(tmp_path: Path) -> None:
    levels = photo(30, 700)
    Image.fromarray(levels).save(tmp_path / "wide.png")
    request = Request(tmp_path / "wide.png", tmp_path / "out", Options(tile=48), report=True)
    assert carry_out(request, ensemble_of()) == DONE
    sizes = re.findall(r"aspect-ratio:(\d+)/(\d+)", (tmp_path / "out" / "report.html").read_text())
    assert sizes == [("934", "40")]  # 2800x120 by 3


def test_an_image_of_an_earlier_run_is_in_the_report_with_its_record_and_scores(report: Path) -> None:
    """Interrupted after one image, gone on with --skip-existing: the report is of the whole folder."""
    place = report.parent.parent
    options = Options(tile=40, skip_existing=True)
    request = Request(place / "lr", place / "out", options, report=True, hr=place / "hr", submission=True)
    ensemble = ensemble_of(brighter=brighter, shifted=shifted)
    before = report.read_text()
    (place / "out" / "<first>.png").unlink()
    assert carry_out(request, ensemble) == DONE
    after = report.read_text()
    assert after.count("<section id=") == 2 and after.count("made by an earlier run") == 1
    assert after.index("&lt;first&gt;") < after.index(">second <")
    for record in (place / "out").glob("*.png.json"):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"seconds": 7.0}))
    assert carry_out(request, ensemble) == DONE
    whole = report.read_text()
    assert whole.count("<section id=") == whole.count("made by an earlier run") == 2
    assert "0 written, 2 skipped" in whole and "shifted (of" not in whole
    for name in ("<first>", "second"):
        truth, made = (pixels(place / folder / f"{name}.png") for folder in ("hr", "out"))
        luma = [(image @ [65.481, 128.553, 24.966] / 255 + 16)[4:-4, 4:-4] for image in (truth, made)]
        score = f"{peak_signal_noise_ratio(*luma, data_range=255):.3f} dB"
        assert score in before and score in whole
    assert whole.count("input_sha256") == 2, "the stored claims"
    with zipfile.ZipFile(place / "out" / "submission.zip") as packed:
        assert "runtime per image [s] : 7.00" in packed.read("readme.txt").decode()


def test_an_earlier_image_of_another_size_is_shown_without_scores(report: Path) -> None:
    """Of what was compared with the true image only a reduced copy was written."""
    place = report.parent.parent
    options = Options(tile=40, skip_existing=True, size=OutputSize(outscale=2))
    request = Request(place / "lr", place / "two", options, report=True, hr=place / "hr")
    ensemble = ensemble_of(brighter=brighter, shifted=shifted)
    assert carry_out(request, ensemble) == carry_out(request, ensemble) == DONE
    page = (place / "two" / "report.html").read_text()
    assert page.count("made by an earlier run") == 2 and "80&times;66" in page and " dB" not in page


def test_a_flat_map_is_not_coloured_over_its_full_range() -> None:
    flat, gate = np.linspace(0.948, 1.0, 12).reshape(3, 4), np.linspace(-0.2, 0.9, 12).reshape(3, 4)
    maps = {"difficulty": flat, "gate/a": gate, "gate/b": 1 - gate, "disagreement": flat / 1000}
    assert _scale("difficulty", maps) == (0, 1)
    assert _scale("gate/a", maps) == _scale("gate/b", maps) == (-0.2, 1.2)
    assert _scale("disagreement", maps) == (0, 0.05)
    assert _level_weights(maps) == ""
    even = {"gate/a": np.full((3, 4), 0.3), "gate/b": np.full((3, 4), 0.7), "disagreement": flat}
    assert "the same everywhere: a 0.300, b 0.700." in _level_weights(even)
    assert _level_weights({"disagreement": flat}) == ""
    assert "0.948 to 1.000, colours 0 to 1" in _map("difficulty", flat, _scale("difficulty", maps))
