"""The studio's page in a real browser, from upload to download."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import infer
from fusion.network import FusionSR
from imaging.command import DONE
from imaging.files import read_rgb
from tests.experts.parts import small_network
from tests.studio.browser import (
    Visitor,
    contrast,
    line_at,
    sample_cache,
    sample_images,
    sample_model,
    sample_runs,
    take,
    take_other_tabs,
)
from tests.studio.parts import save_photo, serving

SCREENSHOTS = os.environ.get("CHAMPIONSHIP_SCREENSHOTS")  # a folder for pictures of the page, e.g. docs/images


def test_from_upload_to_download(address: str, place: Path, browser: Any, tmp_path: Path) -> None:
    context = browser.new_context(viewport={"width": 1400, "height": 1000}, accept_downloads=True)
    visitor = Visitor(context.new_page(), address)
    page, source = visitor.page, place / "in" / "photo.png"
    junk = tmp_path / "junk.png"
    junk.write_bytes(b"no image")
    visitor.upload(source, junk)
    visitor.upscale()
    assert "junk.png: is not an image" in page.inner_text("#status")
    assert "1 of 2 images made" in page.inner_text("#status")

    # The line: by its slider's keys, and by dragging it.
    stage = page.locator("fusion-viewer .stage").bounding_box()
    assert line_at(page) == pytest.approx(50)
    page.focus("fusion-viewer [data-role=split]")
    page.keyboard.press("End")
    assert line_at(page) == 100
    page.fill("fusion-viewer [data-role=split]", "50")
    page.mouse.move(stage["x"] + stage["width"] / 2, stage["y"] + 20)
    page.mouse.down()
    page.mouse.move(stage["x"] + stage["width"] / 4, stage["y"] + 30, steps=4)
    page.mouse.up()
    assert line_at(page) == pytest.approx(25, abs=1)

    # Figures at a clicked pixel: those of the network itself.
    x, y = 100, 45
    page.mouse.click(stage["x"] + (x + 0.5) * stage["width"] / 160, stage["y"] + (y + 0.5) * stage["height"] / 120)
    page.wait_for_selector(f"fusion-viewer .viewer[data-pixel='{x},{y}']")
    page.mouse.move(5, 5)
    page.wait_for_selector(f"fusion-viewer .values small:has-text('mark {x}, {y}')")
    weights = [float(one) for one in page.locator("fusion-viewer .weights em").all_inner_texts()]
    assert weights == pytest.approx(true_weights(place, source)[:, y, x].tolist(), abs=1.1e-3)

    # Maps with their legends, zoom by keys.
    names = page.locator("fusion-viewer [data-role=map] option").all_inner_texts()
    for name in ("most trusted expert", "weight of tiny-a", "difficulty", "disagreement", "added by refine"):
        assert name in names
    for name in ("weight of tiny-a", "difficulty"):
        page.select_option("fusion-viewer [data-role=map]", label=name)
        page.wait_for_function(
            "document.querySelector('fusion-viewer').shadowRoot.querySelector('.scene .map').naturalWidth == 160"
        )
        assert name in page.inner_text("fusion-viewer .legend")
        assert page.locator("fusion-viewer .colour-bar").count() == 1
    page.focus("fusion-viewer .stage")
    page.keyboard.press("1")
    assert page.inner_text("fusion-viewer [data-role=scale]") == "100 %"
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_selector(f"fusion-viewer .viewer[data-pixel='{x + 1},{y}']")

    # The file to keep.
    with page.expect_download() as caught:
        page.click("fusion-viewer .files a >> nth=0")
    assert caught.value.suggested_filename == "photo.png"
    assert Path(caught.value.path()).read_bytes() == commanded(place, source, tmp_path).read_bytes()
    with page.expect_download() as caught:
        page.click("fusion-viewer .files a >> nth=1")
    assert json.loads(Path(caught.value.path()).read_text())["claim"]["input_sha256"]

    # The other tabs.
    page.get_by_role("tab", name="Runs").click()
    assert page.wait_for_selector("#curves svg polyline", state="attached")
    page.get_by_role("tab", name="Caches").click()
    page.wait_for_selector("#items [data-item]")
    page.click("#check")
    page.wait_for_function("document.querySelectorAll('#items td.good').length == 3")
    page.locator("#items [data-item]").first.click()
    page.wait_for_selector("#item img")
    assert visitor.elsewhere == []
    assert visitor.errors == []
    context.close()


def test_cancelling_in_the_page(address: str, browser: Any, tmp_path: Path) -> None:
    context = browser.new_context()
    visitor = Visitor(context.new_page(), address)
    visitor.upload(save_photo(tmp_path / "long.png", 100, 120))
    visitor.page.check("#tta input")
    visitor.page.click("#run")
    visitor.page.wait_for_selector("#status .steps")
    visitor.page.click("#cancel")
    visitor.page.wait_for_selector("#status h3:text('Cancelled')")
    assert "0 of 1 image made" in visitor.page.inner_text("#status")
    assert visitor.page.locator("fusion-viewer").count() == 0
    context.close()


@pytest.mark.parametrize("width", [380, 800])
def test_narrow_windows_need_no_sideways_scrolling(address: str, browser: Any, place: Path, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme="dark")
    visitor = Visitor(context.new_page(), address)
    visitor.upload(place / "in" / "photo.png")
    visitor.upscale()
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = visitor.page.evaluate(
        "[document.querySelector('fusion-viewer'), document.body].map((one, i) => "
        "getComputedStyle(one)[['color', 'backgroundColor'][i]])"
    )
    assert contrast(ink, paper) > 7  # readable in the dark
    context.close()


@pytest.mark.skipif(SCREENSHOTS is None, reason="set CHAMPIONSHIP_SCREENSHOTS=docs/images to make the pictures anew")
def test_pictures_for_the_documentation(browser: Any, tmp_path: Path) -> None:
    """The shipped experts on photographs from scikit-image; each picture light enough for a repository."""
    folder = Path(str(SCREENSHOTS))
    inputs = sample_images(tmp_path / "in")
    model, overlay = sample_model()
    options = ["--caches", sample_cache(tmp_path), "--runs", sample_runs(tmp_path / "runs"), *model]
    with serving(tmp_path / "server", options) as address:
        for name, width, height, scheme in (
            ("", 1440, 900, "light"),
            ("-dark", 1440, 900, "dark"),
            ("-narrow", 400, 880, "dark"),
        ):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            visitor = Visitor(context.new_page(), address)
            page = visitor.page
            visitor.upload(*inputs)
            visitor.upscale()
            page.select_option("fusion-viewer [data-role=map]", label=overlay if scheme == "light" else "disagreement")
            take(page, folder / f"studio{name}.png")
            if not name:
                take_other_tabs(page, folder)
            context.close()


def true_weights(place: Path, source: Path) -> np.ndarray:
    """(experts, H, W) by a plain forward pass."""
    lr_BCHW, images, feats, names = read_rgb(source), [], {}, ("tiny-a", "tiny-b")
    with torch.no_grad():
        for seed, name in enumerate(names):
            network = small_network("EDSR", seed)
            network.conv_after_body.register_forward_hook(lambda _m, _i, out, n=name: feats.update({n: out.clone()}))
            images.append(network(lr_BCHW))
        output = FusionSR.from_pretrained(str(place / "model"))(lr_BCHW, torch.stack(images, 1), feats, names)
    return output.gates_BEHW[0].numpy()


def commanded(place: Path, source: Path, folder: Path) -> Path:
    """The same image by infer.py."""
    model = place / "model"
    experts = ",".join(str(model / f"{name}.safetensors") for name in ("tiny-a", "tiny-b"))
    options = ["-i", source, "-o", folder / "out" / source.name, "-n", model, "--experts", experts, "--device", "cpu"]
    assert infer.command_line([str(word) for word in options]) == DONE
    return folder / "out" / source.name
