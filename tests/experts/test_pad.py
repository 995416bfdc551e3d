"""Padding by mirroring: torch's and NumPy's where they have it, to a multiple and a minimum and no further."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from experts.pad import mirrored_positions, pad_right_bottom, padded_length
from experts.spec import Padding
from tests.experts.parts import image


@given(length=st.integers(2, 30), extra=st.integers(0, 29))
def test_padding_is_torchs_reflection_where_that_is_defined(length: int, extra: int) -> None:
    extra = min(extra, length - 1)
    row = torch.arange(length, dtype=torch.float32).view(1, 1, 1, length)
    theirs = torch.nn.functional.pad(row, (0, extra, 0, 0), mode="reflect")
    assert torch.equal(row[..., mirrored_positions(length, length + extra)], theirs)


@given(length=st.integers(1, 30), extra=st.integers(0, 90))
def test_symmetric_padding_is_numpys(length: int, extra: int) -> None:
    row = np.arange(length)
    assert np.array_equal(
        row[mirrored_positions(length, length + extra, repeat_ends=True).numpy()],
        np.pad(row, (0, extra), mode="symmetric"),
    )


@given(length=st.integers(1, 50), multiple=st.integers(1, 64), minimum=st.integers(1, 64))
def test_padding_reaches_the_multiple_and_the_minimum_and_no_further(length: int, multiple: int, minimum: int) -> None:
    padded = padded_length(length, Padding(multiple=multiple, minimum=minimum))
    assert padded % multiple == 0
    assert padded >= max(length, minimum)
    assert padded - multiple < max(length, minimum)


def test_padding_keeps_the_image_and_leaves_a_fitting_one_alone() -> None:
    x = image(5, 8)
    padded = pad_right_bottom(x, Padding(multiple=8))
    assert padded.shape[-2:] == (8, 8)
    assert torch.equal(padded[..., :5, :8], x)
    assert torch.equal(pad_right_bottom(x, Padding()), x)
