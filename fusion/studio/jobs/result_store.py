"""Finished images under names that cannot be guessed; the oldest are thrown away. No name is ever a path."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusion.studio.jobs.result_view import ResultView


class ResultStore:
    """`megapixels` of output bound the disk space that the studio takes: about 40 bytes each with four experts."""

    def __init__(self, megapixels: float = 100.0) -> None:
        self._pixels = megapixels * 1e6
        self._kept: OrderedDict[str, ResultView] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, shown: ResultView) -> str:
        """Keep it; the name to ask for it by."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[name] = shown
            while len(self._kept) > 1 and sum(_pixels(one) for one in self._kept.values()) > self._pixels:
                _, oldest = self._kept.popitem(last=False)
                shutil.rmtree(oldest.folder, ignore_errors=True)
        return name

    def get(self, name: str) -> ResultView | None:
        """None: never there, or thrown away since."""
        with self._lock:
            return self._kept.get(name)


def _pixels(shown: ResultView) -> int:
    height, width = shown.size
    return height * width
