"""Bands of an image, as they are finished -> one file, written by a thread of its own, whole or not at all.

PNG is streamed; other formats are gathered and written at the end. Axes: C channels, H rows of a band, W.
"""

from __future__ import annotations

import errno
import queue
import threading
from typing import TYPE_CHECKING

import numpy as np

from imaging.files import Metadata, png_rows, write_levels
from imaging.files.metadata import blocks_for
from imaging.refusal import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from imaging.files import Depth

_BANDS_AHEAD = 1  # finished bands that may wait for the disk: each costs memory
_POLL_S = 0.2  # a full queue is retried so often, to see an error of the thread instead of waiting for ever


class _Abandoned(Exception):  # noqa: N818 - not an error: the image was abandoned
    """The image will not be finished."""


class DiskFull(Refusal):
    """No space left: further images would fail as well."""


class ImageWriter:
    """One output file being written: `put` bands, `close`, then `result` waits for the disk; or `abandon` it."""

    def __init__(
        self,
        path: Path,
        *,
        height: int,
        width: int,
        channels: int,
        depth: Depth,
        icc: bytes | None,
        text: Mapping[str, str],
        metadata: Metadata | None = None,
        quality: int | None = None,
    ) -> None:
        self.path, self._height, self._width, self._channels = path, height, width, channels
        self._depth: Depth = depth
        self._icc, self._text, self._metadata, self._quality = icc, text, metadata, quality
        self._bands: queue.Queue[np.ndarray | _Abandoned | None] = queue.Queue(_BANDS_AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, name=f"write {path.name}", daemon=True)
        self._thread.start()

    def put(self, band_CHW: Tensor) -> None:
        """Whole levels (C, h, W), uint8 or int32, below those before."""
        kind = np.uint8 if self._depth == 8 else np.uint16
        self._send(np.ascontiguousarray(band_CHW.permute(1, 2, 0).numpy().astype(kind, copy=False)))

    def close(self) -> None:
        """No more bands come."""
        self._send(None)

    def result(self) -> None:
        """Wait until the file stands; raise what went wrong in the thread."""
        self._thread.join()
        self._check()

    def abandon(self) -> None:
        """Give the image up: nothing of it stays."""
        while self._thread.is_alive():
            try:
                self._bands.put(_Abandoned(), timeout=_POLL_S)
                break
            except queue.Full:
                continue
        self._thread.join()

    def _send(self, band: np.ndarray | None) -> None:
        while True:
            self._check()
            try:
                self._bands.put(band, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def _check(self) -> None:
        if self._error is None:
            return
        if isinstance(self._error, OSError):
            raise _refusal(self.path, self._error) from self._error
        raise self._error

    def _write(self) -> None:
        try:
            if self.path.suffix.lower() == ".png":
                self._stream_png()
            else:
                levels_HWC = np.concatenate(list(self._received()))
                write_levels(self.path, levels_HWC, icc=self._icc, metadata=self._metadata, quality=self._quality)
        except _Abandoned:
            pass
        except BaseException as error:  # raised again in the pipeline's thread, by `_check`
            self._error = error
            self._drain()

    def _stream_png(self) -> None:
        blocks = blocks_for(self.path, self._metadata)
        with png_rows(
            self.path,
            height=self._height,
            width=self._width,
            channels=self._channels,
            depth=self._depth,
            icc=self._icc,
            text=self._text,
            exif=blocks.exif,
            xmp=blocks.xmp,
        ) as write:
            for band_HWC in self._received():
                write(band_HWC)

    def _received(self) -> Iterator[np.ndarray]:
        while (band := self._bands.get()) is not None:
            if isinstance(band, _Abandoned):
                raise band
            yield band

    def _drain(self) -> None:
        """Make room, so that a waiting `put` returns and raises the error."""
        while not self._bands.empty():
            self._bands.get_nowait()


def _refusal(path: Path, error: OSError) -> Refusal:
    reason = f"cannot be written ({error.strerror or error})"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(reason, where=path, cure="free space there, or write elsewhere; finished images are kept")
    return Refusal(reason, where=path, cure="correct its permissions, or write elsewhere")
