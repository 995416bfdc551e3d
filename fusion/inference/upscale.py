"""One image's levels -> tiles -> finished rows into an image writer; memory does not grow with the image's height.

Axes: B batch (1), C channels, K layers (the image's three, then maps), H and W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from fusion.inference.ensemble import Place
from fusion.inference.tiles import assemble
from imaging.files import grey_plane, quantize_u8, quantize_u16
from imaging.malloc import give_back_memory
from imaging.refusal import Refusal
from imaging.resize import resize_bands
from imaging.scale import SCALE
from imaging.tiling import plan_feathered_spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Tensor

    from fusion.inference.image_writer import ImageWriter
    from fusion.inference.jobs import ImageJob
    from fusion.inference.oom_retry import OutOfMemoryRetry
    from fusion.inference.source import Source
    from imaging.files import Depth
    from imaging.tiling import FeatheredSpan


_ROWS = 256  # of a refined image that are rounded to levels at a time: a band, not a second whole image


class ImageCollector(Protocol):
    """Receives the layers of one image while it is made, in the order of these methods."""

    def add(self, band_KHW: Tensor, /) -> None:
        """The next rows: float, not clamped, the image's three layers first."""
        ...

    def add_refined(self, image_CHW: Tensor, guard: dict[str, float], /) -> None:
        """Only where a refiner runs: the whole refined image, float and not clamped, and the guard's measures."""
        ...

    def finish(self, seen: dict[str, Any], plan: dict[str, Any] | None, /) -> None:
        """After the last row: tiles, seconds and events of this image, and its budget plan where there is one."""
        ...


class Collector(Protocol):
    """What the pipeline calls for each image when layers are wanted beside the file: the report, the studio."""

    def start(self, job: ImageJob, source: Source, manifest: dict[str, Any], /) -> ImageCollector:
        """Before the first tile of an image; a Refusal fails this image only."""
        ...


@dataclass(frozen=True)
class Grid:
    """The tiles of one image."""

    rows: tuple[FeatheredSpan, ...]
    columns: tuple[FeatheredSpan, ...]

    @classmethod
    def of(cls, height: int, width: int, tile: int, margin: int, multiple: int) -> Grid:
        """Plan; a `tile` of 0 is the whole image."""
        rows, columns = (plan_feathered_spans(side, tile, margin, multiple) for side in (height, width))
        return cls(tuple(rows), tuple(columns))

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)


def channels_of(source: Source) -> int:
    """Channels of the output file: as the input's."""
    return (1 if source.grey else 3) + (source.alpha_HW is not None)


def upscale(
    source: Source,
    item: str,
    grid: Grid,
    retry: OutOfMemoryRetry,
    writer: ImageWriter,
    device: torch.device,
    *,
    depth: Depth,
    collector: ImageCollector | None = None,
    rework: Callable[[Tensor], Tensor] | None = None,
    size: tuple[int, int] | None = None,
    scale: int = SCALE,
    tick: Callable[[], object],
) -> None:
    """Run every tile and hand finished rows on; `tick` is called after each tile.

    `rework` makes the whole image (3, sH, sW), float and not clamped, into another before any of it is written: then,
    and only then, is the image held whole. `size` is the (height, width) to write, where it is not `scale` times the
    input.
    """

    def run_tile(row: FeatheredSpan, column: FeatheredSpan) -> Tensor:
        lr_BCHW = source.window(row.start, row.stop, column.start, column.stop).to(device)
        place = Place(item, row.start, column.start, source.height, source.width)
        layers_KHW = retry.run(lr_BCHW, place).cpu()
        tick()
        return layers_KHW

    def finish(part_KHW: Tensor) -> Tensor:
        # Where floats are still needed they stay; else levels are all that is kept.
        is_final = collector is None and rework is None and size is None
        return to_levels(part_KHW, depth, grey=source.grey) if is_final else part_KHW

    bands = assemble(grid.rows, grid.columns, run_tile, finish, scale)
    if collector is not None:
        bands = _collected(bands, collector)
    if rework is not None:
        bands = _reworked(bands, rework)
    levels = _to_file(bands, source, depth, scale) if size is None else _resized(bands, source, depth, size, scale)
    height = scale * source.height if size is None else size[0]
    done = 0
    for band_KHW in levels:
        writer.put(band_KHW)
        done += band_KHW.shape[-2]
        if done < height:
            give_back_memory()  # bands of wide images fragment the heap that the tiles reuse
    if done != height:  # never a file with rows of nothing in it, also under `python -O`
        what = f"{done} of its {height} rows were made"
        raise Refusal(what, where=item, cure="choose another tile size with -t, and report it")
    writer.close()


def _to_file(bands: Iterable[Tensor], source: Source, depth: Depth, scale: int) -> Iterator[Tensor]:
    """Levels as they are written, the transparency below the colours."""
    done = 0
    for band_KHW in bands:
        if band_KHW.is_floating_point():
            band_KHW = to_levels(band_KHW, depth, grey=source.grey)
        if source.alpha_HW is not None:
            alpha_1HW = _quantized(source.alpha_rows(done, band_KHW.shape[-2], scale)[None], depth)
            band_KHW = torch.cat([band_KHW, alpha_1HW])
        done += band_KHW.shape[-2]
        yield band_KHW


def _resized(
    bands: Iterable[Tensor], source: Source, depth: Depth, size: tuple[int, int], scale: int
) -> Iterator[Tensor]:
    """The same at another size. Clamped before, as the image at the experts' scale would be; rounded once, after."""

    def planes() -> Iterator[Tensor]:
        done = 0
        for band_KHW in bands:
            alpha = [] if source.alpha_HW is None else [source.alpha_rows(done, band_KHW.shape[-2], scale)[None]]
            done += band_KHW.shape[-2]
            yield torch.cat([band_KHW[:3], *alpha]).clamp(0, 1)

    whole = (scale * source.height, scale * source.width)
    for band_KHW in resize_bands(planes(), whole, size):
        colours = to_levels(band_KHW[:3], depth, grey=source.grey)
        yield torch.cat([colours, *(_quantized(plane[None], depth) for plane in band_KHW[3:])])


def _collected(bands: Iterable[Tensor], collector: ImageCollector) -> Iterator[Tensor]:
    for band_KHW in bands:
        collector.add(band_KHW)
        yield band_KHW[:3]


def _reworked(bands: Iterable[Tensor], rework: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    # Clones, or a band's other layers would stay in memory with it.
    yield from rework(torch.cat([band_KHW[:3].clone() for band_KHW in bands], dim=-2)).split(_ROWS, dim=-2)


def to_levels(rgb_CHW: Tensor, depth: Depth, *, grey: bool) -> Tensor:
    """Clamped and rounded, once: uint8, or int32 holding 16 bits; one channel for grey files."""
    return _quantized(grey_plane(rgb_CHW) if grey else rgb_CHW, depth)


def _quantized(x: Tensor, depth: Depth) -> Tensor:
    return quantize_u8(x) if depth == 8 else quantize_u16(x)
