"""Tiles: spans cover, weights sum to 1, tiled equals whole, no seams, and memory runs out gracefully."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import correlate

from fusion.inference.ensemble import EIGHTFOLD, Place, run_tile
from fusion.inference.oom_retry import OutOfMemoryRetry
from fusion.inference.tiles import assemble, whole
from imaging.device import is_out_of_memory
from imaging.refusal import Refusal
from imaging.tiling import RAMP, FeatheredSpan, plan_feathered_spans, smallest_feathered_tile
from tests.experts.parts import image, small_network
from tests.inference.parts import enlarge, ensemble_of

PLACE = Place("test", 0, 0, 0, 0)


@settings(max_examples=300, deadline=None)
@given(
    length=st.integers(1, 900),
    tile=st.integers(0, 300),
    margin=st.integers(0, 40),
    multiple=st.sampled_from([1, 8, 16, 64]),
)
def test_spans_cover_with_context_and_weights_sum_to_one(length: int, tile: int, margin: int, multiple: int) -> None:
    spans = plan_feathered_spans(length, tile, margin, multiple)
    total = np.zeros(4 * length)
    for span in spans:
        assert 0 <= span.start <= span.low <= span.rise_end <= span.fall_start <= span.high <= span.stop <= length
        assert span.start % multiple == 0
        assert span.start == 0 or span.low - span.start >= margin
        assert span.stop == length or span.stop - span.high >= margin
        weights = span.weights(4).numpy()
        assert (weights >= 0).all()
        total[4 * span.low : 4 * span.high] += weights
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert all(one.high <= next_but_one.low for one, next_but_one in zip(spans, spans[2:], strict=False))
    if tile and len(spans) > 1:
        longest = max(-(-tile // multiple) * multiple, smallest_feathered_tile(margin, multiple)) + multiple
        assert max(span.stop - span.start for span in spans) < longest


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 130), width=st.integers(1, 130), tile=st.integers(40, 80), radius=st.integers(0, 4))
def test_tiled_filter_equals_scipy_on_the_whole_image(height: int, width: int, tile: int, radius: int) -> None:
    """An operator that sees `radius` pixels, in tiles with that margin, against SciPy's on the whole image."""
    rng = np.random.default_rng(height * 131 + width)
    lr_HW, kernel = rng.random((height, width)), rng.normal(size=(2 * radius + 1, 2 * radius + 1))
    large = np.repeat(np.repeat(lr_HW, 4, 0), 4, 1)
    reference = correlate(lr_HW, kernel, mode="constant").repeat(4, 0).repeat(4, 1)
    assert reference.shape == large.shape
    weight = torch.from_numpy(kernel)[None, None]

    def ask(row: FeatheredSpan, column: FeatheredSpan) -> torch.Tensor:
        part = torch.from_numpy(lr_HW[row.start : row.stop, column.start : column.stop])[None, None]
        return enlarge(F.conv2d(part, weight, padding=radius))[0]

    rows, columns = (plan_feathered_spans(side, tile, radius, 1) for side in (height, width))
    np.testing.assert_allclose(whole(rows, columns, ask)[0].numpy(), reference, atol=1e-5)


def test_bands_come_in_order_and_are_finished_once() -> None:
    rows, columns = plan_feathered_spans(150, 50, 4), plan_feathered_spans(90, 50, 4)
    position = torch.arange(4 * 150).float()[:, None] * 1000 + torch.arange(4 * 90)
    bands = list(
        assemble(
            rows,
            columns,
            lambda row, column: position[None, 4 * row.start : 4 * row.stop, 4 * column.start : 4 * column.stop],
            lambda part_KHW: part_KHW.round().to(torch.int32),
        )
    )
    assert len(bands) == len(rows) > 2
    assert (torch.cat(bands, dim=-2)[0] - position.round()).abs().max() <= 1


def tiled_and_whole(
    architecture: str, size: tuple[int, int], margin: int, multiple: int, tile: int
) -> tuple[torch.Tensor, torch.Tensor, list[FeatheredSpan]]:
    """A small real network over a smooth image in tiles and at once, and the spans of the columns."""
    network = small_network(architecture)
    lr_BCHW = F.interpolate(image(12, 20), size=size, mode="bicubic").clamp(0, 1)
    rows, columns = (plan_feathered_spans(side, tile, margin, multiple) for side in size)

    def ask(row: FeatheredSpan, column: FeatheredSpan) -> torch.Tensor:
        return network(lr_BCHW[..., row.start : row.stop, column.start : column.stop])[0]

    with torch.no_grad():
        return whole(rows, columns, ask), network(lr_BCHW)[0], columns


def test_convolutions_in_tiles_equal_the_whole_within_one_grey_level() -> None:
    tiled, reference, columns = tiled_and_whole("EDSR", (130, 160), margin=16, multiple=1, tile=96)
    assert len(columns) > 1
    assert (tiled - reference).abs().max() * 255 < 1


@pytest.mark.parametrize("architecture", ["HAT", "DRCT"])
def test_window_attention_in_tiles_shows_no_seam(architecture: str) -> None:
    """One grey level for small networks; and across seams the image steps no more than elsewhere."""
    tiled, reference, columns = tiled_and_whole(architecture, (32, 160), margin=16, multiple=16, tile=112)
    assert len(columns) > 1
    assert (tiled - reference).abs().max() * 255 < 1
    seams = [slice(4 * span.low - 4, 4 * (span.low + RAMP) + 4) for span in columns[1:]]
    steps_W = tiled.diff(dim=-1).abs().mean((0, 1)) - reference.diff(dim=-1).abs().mean((0, 1))
    assert max(float(steps_W[seam].max()) for seam in seams) * 255 < 0.1


class Limited:
    """An expert that runs out of memory above a size, with the very exception that torch raises."""

    def __init__(self, error: Exception, largest: int) -> None:
        self.error, self.largest, self.sides = error, largest, list[int]()

    def __call__(self, lr_BCHW: torch.Tensor, _place: Place) -> torch.Tensor:
        side = max(lr_BCHW.shape[-2:])
        self.sides.append(side)
        if side > self.largest:
            raise self.error
        return enlarge(lr_BCHW)[0]


def cpu_error() -> RuntimeError:
    """What torch's own CPU allocator says."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.float64)
    return caught.value


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), None])
def test_out_of_memory_goes_on_with_smaller_tiles(error: Exception | None) -> None:
    ask = Limited(error or cpu_error(), largest=100)
    retry = OutOfMemoryRetry(ask, margin=8, multiple=8)
    lr_BCHW = image(300, 260)
    result = retry.run(lr_BCHW, PLACE)
    torch.testing.assert_close(result, enlarge(lr_BCHW)[0])
    assert retry.limit is not None
    assert retry.limit <= 100
    assert len(retry.events) == 2  # 300 -> 150 -> 75, each said once
    assert "out of memory at tiles of 300" in retry.events[0]
    ask.sides.clear()
    retry.run(lr_BCHW, PLACE)
    assert max(ask.sides) <= 100  # what was learned is kept
    assert len(retry.events) == 2


def test_memory_for_nothing_is_refused() -> None:
    retry = OutOfMemoryRetry(Limited(torch.OutOfMemoryError("CUDA out of memory"), largest=10), margin=4, multiple=1)
    with pytest.raises(Refusal, match="out of memory even in tiles of"):
        retry.run(image(200, 200), PLACE)


def test_other_errors_are_not_taken_for_memory() -> None:
    retry = OutOfMemoryRetry(Limited(RuntimeError("shapes cannot be multiplied"), largest=10), margin=4, multiple=1)
    with pytest.raises(RuntimeError, match="multiplied"):
        retry.run(image(200, 200), PLACE)
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_eightfold_is_the_mean_over_flips_and_rotations() -> None:
    network = small_network("EDSR")
    ensemble = ensemble_of(one=network)
    lr_BCHW = image(12, 17)
    expected = np.zeros((3, 48, 68))
    for mirrored in (False, True):
        for quarter in range(4):
            turned = np.rot90(lr_BCHW[0].numpy()[..., ::-1] if mirrored else lr_BCHW[0].numpy(), quarter, (1, 2))
            with torch.no_grad():
                answer = network(torch.from_numpy(turned.copy())[None])[0].numpy()
            back = np.rot90(answer, -quarter, (1, 2))
            expected += (back[..., ::-1] if mirrored else back) / 8
    mean = run_tile(ensemble, lr_BCHW, PLACE, turns=EIGHTFOLD)
    np.testing.assert_allclose(mean.numpy(), expected, atol=1e-5)


def test_not_a_number_is_refused() -> None:
    ensemble = ensemble_of(bad=lambda lr_BCHW: enlarge(lr_BCHW) * float("nan"))
    with pytest.raises(Refusal, match="NaN"):
        run_tile(ensemble, image(8, 8), PLACE)
