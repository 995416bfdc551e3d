"""The cost table: every case is a network that exists, and what is counted agrees with counting by hand."""

from __future__ import annotations

import pytest
import torch

from experts.native.base import NativeNetwork
from experts.native.bench import CASES, KINDS, Case, as_json, as_markdown, bench, measure
from imaging.refusal import Refusal


def test_every_case_can_be_built_and_no_two_are_the_same() -> None:
    for case in CASES:
        with torch.device("meta"):
            network = KINDS[case.network](**case.settings)
        assert case.deployed <= isinstance(network, NativeNetwork)
    assert len({(case.network, case.form) for case in CASES}) == len(CASES)


def test_what_is_counted() -> None:
    case = Case("window attention", "one layer", {"channels": 16}, channels=16)
    result = measure(case, 64, threads=torch.get_num_threads(), repeats=1)
    # Four 16x16 projections per pixel, and twice 64 pixels of a window times 16 channels.
    assert result.giga_multiply_adds == pytest.approx(64 * 64 * (4 * 16 * 16 + 2 * 64 * 16) / 1e9, abs=0.0006)
    assert result.parameters == 4 * (16 * 16 + 16) + 15 * 15
    assert result.seconds > 0
    table = as_markdown([result], threads=1, repeats=1)
    assert "| window attention | one layer | 64 | 1,313 |" in table
    assert as_json([result], threads=1, repeats=1)["results"][0]["parameters"] == 1313


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(Refusal, match="nothing"):
        bench([64], threads=1, repeats=1, only="nothing")
