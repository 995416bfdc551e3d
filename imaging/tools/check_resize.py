"""Benchmark folders with HR and LRx4 images -> how closely `imaging.resize` reproduces LRx4, in grey levels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from imaging.files import list_images, quantize_u8, read_rgb
from imaging.refusal import Refusal
from imaging.resize import downscale, downscale_8bit
from imaging.scale import SCALE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

METHODS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "downscale_8bit": lambda hr_BCHW: downscale_8bit(hr_BCHW, SCALE),
    # Smooth, hence without the clamp between the passes; and the reason why mirrored edges are not the default.
    "downscale": lambda hr_BCHW: downscale(hr_BCHW, SCALE),
    "downscale_8bit, edge=mirror": lambda hr_BCHW: downscale_8bit(hr_BCHW, SCALE, edge="mirror"),
}
MUST_PASS = ("downscale_8bit",)
REQUIRED = 0.999  # share of pixels that may differ by at most one grey level in every channel


@dataclass(frozen=True)
class Agreement:
    """How many pixels of one folder agree with the reference, the worst channel of each pixel counting."""

    folder: str
    method: str
    images: int
    pixels: int
    exact: float  # share of pixels equal in all channels
    within_one: float
    worst: int  # largest difference of any value, in grey levels

    @property
    def passed(self) -> bool:
        """True when the share that is required agrees to one level, or nothing is required of this method."""
        return self.method not in MUST_PASS or self.within_one >= REQUIRED


def check_folders(root: Path) -> list[Agreement]:
    """Check `root`, or each folder in it, that holds HR/ and LRx4/."""
    folders = [folder for folder in (root, *sorted(root.glob("*/"))) if (folder / "HR").is_dir()]
    if not folders:
        raise Refusal("holds no HR folder", where=root, cure="name a folder with HR/ and LRx4/, or one of such folders")
    return [agreement for folder in folders for agreement in check_folder(folder)]


def check_folder(folder: Path) -> list[Agreement]:
    """Compare each method's downscale of each image in HR/ with its namesake in LRx4/."""
    highs = list_images(folder / "HR")
    references = {path.stem: path for path in list_images(folder / f"LRx{SCALE}")}
    counts = {method: torch.zeros(256, dtype=torch.int64) for method in METHODS}
    for high in tqdm(highs, desc=folder.name, unit="image"):
        reference = references.get(f"{high.stem}x{SCALE}")
        if reference is None:
            raise Refusal(f"has no partner in LRx{SCALE}", where=high, cure="complete the folder")
        for method, histogram in counts.items():
            histogram += _differences(METHODS[method], high, reference)
    return [_agreement(folder.name, method, len(highs), histogram) for method, histogram in counts.items()]


def as_json(agreements: list[Agreement]) -> dict[str, object]:
    """The document that the command prints."""
    rows = [{**asdict(agreement), "passed": agreement.passed} for agreement in agreements]
    return {"factor": SCALE, "required_within_one": REQUIRED, "folders": rows}


def _agreement(folder: str, method: str, images: int, counts: torch.Tensor) -> Agreement:
    total, worst = int(counts.sum()), int(counts.nonzero().max())
    return Agreement(folder, method, images, total, _share(counts, 0), _share(counts, 1), worst)


def _differences(method: Callable[[torch.Tensor], torch.Tensor], high: Path, reference: Path) -> torch.Tensor:
    """Histogram over grey levels of each pixel's largest difference."""
    own_BCHW = quantize_u8(method(read_rgb(high).double())).int()
    reference_BCHW = quantize_u8(read_rgb(reference)).int()
    if own_BCHW.shape != reference_BCHW.shape:
        raise Refusal(f"is not 1/{SCALE} of {high.name}", where=reference, cure="crop HR to a multiple first")
    return torch.bincount((own_BCHW - reference_BCHW).abs().amax(dim=1).flatten(), minlength=256)


def _share(counts: torch.Tensor, at_most: int) -> float:
    return float(counts[: at_most + 1].sum() / counts.sum())
