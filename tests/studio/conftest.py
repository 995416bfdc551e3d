"""The real studio, served once for all tests that ask it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cache.parts import make_cache
from tests.studio.parts import make_run, model_settings, need_gradio, save_photo, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="package")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model, image, cache and run of that studio, and a secret beside them; no test changes them."""
    folder = tmp_path_factory.mktemp("page")
    save_photo(folder / "in" / "photo.png", 30, 40)
    make_cache(folder / "caches")
    make_run(folder / "runs" / "first", {"loss/total": [3.0, 2.0, 1.5], "val/model/psnr_y": [27.0, 28.0]})
    (folder / "secret.txt").write_text("not to be read")
    return folder


@pytest.fixture(scope="package")
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
