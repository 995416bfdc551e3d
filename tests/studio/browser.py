"""A visitor with a real browser, and what the documentation's pictures show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import infer
from fusion.inference.model_selection import DEFAULT
from imaging.command import DONE
from tests.cache.parts import command as cache_command
from tests.studio.parts import ROOT, make_run

EMBEDDED = ("edsr-s", "msg", "freqnet", "ssm")
_LARGEST_PICTURE = 300_000  # bytes
_PATIENCE = 240_000  # milliseconds to wait for what takes a few seconds on a quiet machine


class Visitor:
    """A page of a real browser, every request of it noted."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.elsewhere: list[str] = []
        self.errors: list[str] = []
        page.set_default_timeout(_PATIENCE)
        page.on("request", lambda one: self._note(one.url))
        page.on("pageerror", lambda one: self.errors.append(str(one)))
        page.goto(address)
        page.wait_for_selector("#run")

    def _note(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(url)

    def upload(self, *paths: Path) -> None:
        """Drop files and wait until they are there."""
        self.page.set_input_files("#images input[type=file]", [str(path) for path in paths])
        self.page.wait_for_selector(f"#images :text('{paths[-1].stem[:4]}')")

    def upscale(self) -> None:
        """Press the button and wait for the end."""
        self.page.click("#run")
        self.page.wait_for_selector("#status h3:text-matches('Done|Refused|Cancelled')")
        self.page.wait_for_selector("fusion-viewer .viewer[data-ready=yes]")


def line_at(page: Any) -> float:
    """Where the line stands, in per cent, measured in the page."""
    return page.evaluate(
        """() => {
          const root = document.querySelector('fusion-viewer').shadowRoot;
          const [stage, line] = ['.stage', '.split'].map((one) => root.querySelector(one).getBoundingClientRect());
          return 100 * (line.left + line.width / 2 - stage.left) / stage.width;
        }"""
    )


def contrast(ink: str, paper: str) -> float:
    """Of two CSS colours, by the formula of WCAG 2."""

    def light(colour: str) -> float:
        parts = np.array([float(one) for one in re.findall(r"[\d.]+", colour)[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    dark, bright = sorted((light(ink), light(paper)))
    return (bright + 0.05) / (dark + 0.05)


def take(page: Any, path: Path) -> None:
    """The whole page, in no more colours than a light file allows."""
    page.wait_for_timeout(1200)  # pictures fade in
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path, full_page=True)
    for colours in (256, 128, 64, 32):
        if path.stat().st_size <= _LARGEST_PICTURE:
            return
        Image.open(path).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(path, optimize=True)
    assert path.stat().st_size <= _LARGEST_PICTURE


def take_other_tabs(page: Any, folder: Path) -> None:
    """Caches and runs."""
    page.get_by_role("tab", name="Runs").click()
    page.wait_for_selector("#curves svg polyline", state="attached")
    take(page, folder / "studio-runs.png")
    page.get_by_role("tab", name="Caches").click()
    page.wait_for_selector("#items [data-item]")
    page.click("#analyse")
    page.wait_for_selector("#charts svg", state="attached")
    page.locator("#items [data-item]").first.click()
    page.wait_for_selector("#item img")
    take(page, folder / "studio-caches.png")


def sample_images(folder: Path) -> list[Path]:
    """Photographs that scikit-image carries, reduced to LR size."""
    data = pytest.importorskip("skimage.data")
    parts = {"chelsea": data.chelsea()[8:296, 30:422], "astronaut": data.astronaut()[:256, 90:346]}
    folder.mkdir()
    for name, levels in parts.items():
        small = cv2.resize(levels, (levels.shape[1] // 2, levels.shape[0] // 2), interpolation=cv2.INTER_AREA)
        Image.fromarray(small).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in parts]


def sample_model() -> tuple[list[str], str]:
    """What the studio is started with, and the map to show: the shipped model where it fuses, else the plain mean."""
    ensemble = infer.build(DEFAULT, None, device="cpu")
    if len(ensemble.names) > 1:  # a base trusts the same expert everywhere
        return [], "disagreement" if ensemble.identity["fusion"]["verdict"] == "base" else "most trusted expert"
    return ["--model", "none", "--experts", ",".join(EMBEDDED)], "disagreement"


def sample_cache(folder: Path) -> Path:
    """A cache of the shipped experts over parts of those photographs."""
    data = pytest.importorskip("skimage.data")
    (folder / "hr").mkdir()
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(data, name)()[64:256, 96:352]).save(folder / "hr" / f"{name}.png")
    out = folder / "caches" / "samples"
    arguments = ["extract", "--hr", folder / "hr", "--out", out, "--experts", ",".join(EMBEDDED)]
    assert cache_command(*arguments) == DONE
    return folder / "caches"


def sample_runs(folder: Path) -> Path:
    """The runs of this checkout, or without any one that was made up."""
    if any((ROOT / "runs").glob("*/config.yaml")):
        return ROOT / "runs"
    steps = np.arange(60)
    make_run(folder / "made-up", {"loss/total": (0.1 * np.exp(-steps / 15) + 0.02).tolist()})
    return folder
