"""How a network is run on an image in [0, 1]: plainly, or as its architecture needs; without torch's meshgrid warning.

Legend: B batch, C channels, H and W height and width of the low-resolution image.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Generator

NetworkCall = Callable[[nn.Module, Tensor], Tensor]


def call_plainly(network: nn.Module, lr_BCHW: Tensor) -> Tensor:
    """The network's own forward."""
    return network(lr_BCHW)


def call_in_255(network: nn.Module, lr_BCHW: Tensor) -> Tensor:
    """For networks that were trained on values from 0 to 255."""
    return network(lr_BCHW * 255) / 255


class _WithoutMeshgridWarning:
    """The filter of warnings belongs to the process: the first of several threads changes it, the last puts it back."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                message = "torch.meshgrid: in an upcoming release"
                warnings.filterwarnings("ignore", message=message, category=UserWarning)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


_SHARED = _WithoutMeshgridWarning()


@contextmanager
def without_meshgrid_warning() -> Generator[None]:
    """torch asks for `indexing=`; published networks (CRAFT, SwinIR) call meshgrid without, and their results stay."""
    with _SHARED:
        yield
