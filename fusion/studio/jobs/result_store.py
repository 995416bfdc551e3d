"""Finished images -> names that cannot be guessed, by which the page asks for them; the oldest are deleted."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion.studio.jobs.result_view import ResultView


class ResultStore:
    """`megapixels` of output bound the disk space: about 40 bytes a pixel with four experts. No name is a path."""

    def __init__(self, megapixels: float = 100.0) -> None:
        self._max_pixels = megapixels * 1e6
        self._results: OrderedDict[str, ResultView] = OrderedDict()
        self._lock = threading.Lock()  # the worker adds while the page's threads read

    def add(self, result: ResultView) -> str:
        """Keep it; the name to ask for it by."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._results[name] = result
            # The newest stays even when it alone is too large: its visitor is about to look at it.
            while len(self._results) > 1 and sum(map(_pixels, self._results.values())) > self._max_pixels:
                _, oldest = self._results.popitem(last=False)
                shutil.rmtree(oldest.folder, ignore_errors=True)
        return name

    def get(self, name: str) -> ResultView | None:
        """None: never there, or deleted since."""
        with self._lock:
            return self._results.get(name)


def _pixels(result: ResultView) -> int:
    height, width = result.size
    return height * width
