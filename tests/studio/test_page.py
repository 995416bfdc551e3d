"""The studio as it is served: what it refuses to answer, and the page in a real browser, from upload to download."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

import infer
from fusion.__main__ import main
from fusion.network import FusionSR
from fusion.studio import serve
from imaging.command import DONE
from imaging.files import read_rgb
from imaging.refusal import Refusal
from tests.cache.parts import make_cache
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
from tests.studio.parts import ROOT, make_run, model_settings, save_photo, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

SCREENSHOTS = os.environ.get("CHAMPIONSHIP_SCREENSHOTS")  # a folder for pictures of the page, e.g. docs/images


def need_gradio() -> None:
    """Skip what cannot run without the extra."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the extra 'studio' is not installed (gradio)")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, image, cache and run of this module, and a secret beside them."""
    folder = tmp_path_factory.mktemp("page")
    save_photo(folder / "in" / "photo.png", 30, 40)
    make_cache(folder / "caches")
    make_run(folder / "runs" / "first", {"loss/total": [3.0, 2.0, 1.5], "val/model/psnr_y": [27.0, 28.0]})
    (folder / "secret.txt").write_text("not to be read")
    return folder


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """The real command, listening."""
    need_gradio()
    options = model_settings(place / "model")
    assert options.experts is not None
    chosen = ["--model", options.model, "--experts", ",".join(options.experts), "--device", "cpu", "--max-mb", "1"]
    with serving(place / "server", [*chosen, "--caches", place / "caches", "--runs", place / "runs"]) as found:
        yield found
    calls = place / "server" / "calls"
    assert calls.with_name("calls-recorded").exists()
    assert not calls.exists(), f"the server asked for other machines: {calls.read_text()}"


def ask(address: str, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, Any, bytes]:
    """One request, its path sent as it is."""
    client = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    try:
        client.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = client.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        client.close()


def test_refused_with_a_cure_where_gradio_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda _name: None)
    with pytest.raises(Refusal, match=r"gradio is not installed; pip install 'championship-sr\[studio\]'"):
        main(["serve"])


def test_a_taken_port_is_refused_before_anything_is_loaded(address: str) -> None:
    with pytest.raises(Refusal, match="cannot listen.*choose another --port"):
        main(["serve", "--port", str(urlsplit(address).port), "--model", "/nowhere"])


def test_incomplete_options_are_refused() -> None:
    need_gradio()
    with pytest.raises(Refusal, match="needs a base model"):
        main(["serve", "--refine", "tsdsr"])
    for budget in ("--budget-model", "--budget-head"):  # both spellings, as in infer.py
        with pytest.raises(Refusal, match="no such folder"):
            main(["serve", budget, "budget.json", "--caches", "/nowhere/at/all"])


def test_foreign_requests_are_refused(address: str) -> None:
    own = urlsplit(address).netloc
    assert ask(address, "/")[0] == 200
    assert ask(address, "/", Host="evil.example")[0] == 403  # a name that was made to point at this machine
    assert ask(address, "/", Host=own.replace("127.0.0.1", "localhost"))[0] == 200
    assert ask(address, "/gradio_api/queue/join", "POST", b"{}", Origin="http://evil.example")[0] == 403
    assert ask(address, "/config", Origin=address)[0] == 200
    assert ask(address, "/gradio_api/file=http://127.0.0.1:1/x")[0] == 403
    assert ask(address, "/gradio_api/proxy=https://evil.example/x")[0] == 403


def test_nothing_is_sent_and_nothing_fetched(address: str) -> None:
    status, headers, body = ask(address, "/config")
    config = json.loads(body)
    assert status == 200
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False
    assert config["stylesheets"] == []  # web fonts would be among these
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    page = ask(address, "/")[2].decode()
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](https?:)?//", page)
    assert loaded == []


def test_no_file_outside_is_served(address: str, place: Path) -> None:
    secret = place / "secret.txt"
    up = "../" * 12
    names = [str(secret), f"{up}{secret}", f"file://{secret}", str(ROOT / "README.md"), "README.md", "/etc/passwd"]
    names += [str(next((place / "caches").rglob("*.h5"))), str(place / "runs" / "first" / "config.yaml")]
    for name in names:
        for route in (
            "/gradio_api/file=",
            "/file=",
            "/gradio_api/file/",
            "/studio/static/",
            "/static/",
            "/assets/",
            "/",
        ):
            for spelled in (name, name.replace("/", "%2f"), name.replace(".", "%2e")):
                status, _, body = ask(address, f"{route}{spelled}")
                assert status in (307, 400, 403, 404, 405) or b"<gradio-app" in body, (route, spelled, status)
                assert b"not to be read" not in body
                assert b"root:" not in body
    for tail in ("", "/picture/0", "/file/0", "/pixel?x=0&y=0", "/map/-1", "/file/../0"):
        assert ask(address, f"/studio/results/..%2f..{tail}")[0] == 404
        assert ask(address, f"/studio/results/nothing{tail}")[0] == 404


def call(address: str, element: str, event: str, data: list[Any], *, status: int = 200) -> str:
    """What a forged request for a page's event answers: the whole stream of it."""
    config = json.loads(ask(address, "/config")[2])
    (number,) = [one["id"] for one in config["components"] if one["props"].get("elem_id") == element]
    (function,) = [one["id"] for one in config["dependencies"] if [number, event] in one["targets"]]
    session = f"forged-{element}-{len(str(data))}"
    body = json.dumps({"data": data, "fn_index": function, "session_hash": session}).encode()
    found, _, answer = ask(address, "/gradio_api/queue/join", "POST", body, Content_Type="application/json")
    assert found == status, answer
    if status != 200:
        return answer.decode()
    return ask(address, f"/gradio_api/queue/data?session_hash={session}")[2].decode()


def test_forged_requests_read_nothing_outside(address: str, place: Path) -> None:
    """Files that were not uploaded, caches and runs that are not below the chosen folders."""
    controls = [["tiny-a", "tiny-b"], "fp32", False, "none", 0.5, 0.02, False, 1, "wavelet", None]
    for path in (place / "in" / "photo.png", place / "caches" / "hr" / "a.png", f"{address}/studio/static/page.css"):
        forged = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        answer = call(address, "run", "click", [[forged], *controls])
        assert "process_completed" in answer
        assert "fusion-viewer" not in answer
        assert '"success":false' in answer.replace(" ", "")
        # The same where no file is expected at all.
        assert "none that it can have" in call(address, "check", "click", ["cache", forged, 1], status=400)
    for name in ("../secret", str(place / "caches" / "cache"), "/etc"):
        assert "image/png" not in call(address, "check", "click", [name, "", 1])
        assert "polyline" not in call(address, "reload", "click", [[name], 0.5])
    assert "Checked" in call(address, "check", "click", ["cache", "", 1])  # the same request, honest
    assert "polyline" in call(address, "reload", "click", [["first"], 0.5])


def test_uploads_are_bounded(address: str) -> None:
    edge = "xxx"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="big.png"\r\n\r\n'.encode()
    body = head + bytes(1_200_000) + f"\r\n--{edge}--\r\n".encode()
    kind = f"multipart/form-data; boundary={edge}"
    assert ask(address, "/gradio_api/upload", "POST", body, Content_Type=kind)[0] == 413


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
