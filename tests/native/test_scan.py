"""The state-space scan: against the formula in NumPy, against SciPy's filter, against the kernel's interface."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experts.native.blocks.state_space import MOST_DECAY, StateSpaceMixer, scan_chunked, scan_kernel, scan_sequential


def inputs(length: int, batch: int = 2, heads: int = 2, width: int = 3, states: int = 4, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, heads, length, width, generator=g, dtype=torch.float64)
    dt = 0.001 + torch.rand(batch, heads, length, generator=g, dtype=torch.float64)
    rate = 0.1 + 3 * torch.rand(heads, generator=g, dtype=torch.float64)
    b = torch.randn(batch, heads, length, states, generator=g, dtype=torch.float64)
    c = torch.randn(batch, heads, length, states, generator=g, dtype=torch.float64)
    return x, dt, rate, b, c


def by_hand(x, dt, rate, b, c) -> np.ndarray:
    """The recurrence, one number after the other."""
    x, dt, rate, b, c = (np.asarray(part) for part in (x, dt, rate, b, c))
    y = np.zeros_like(x)
    for i, h in np.ndindex(x.shape[:2]):
        state = np.zeros((x.shape[-1], b.shape[-1]))
        for t in range(x.shape[2]):
            state = np.exp(-dt[i, h, t] * rate[h]) * state + dt[i, h, t] * np.outer(x[i, h, t], b[i, h, t])
            y[i, h, t] = state @ c[i, h, t]
    return y


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.sampled_from([1, 4, 7, 64]), st.integers(0, 99))
def test_both_scans_are_the_recurrence(length: int, chunk: int, seed: int) -> None:
    parts = inputs(length, seed=seed)
    expected = by_hand(*parts)
    np.testing.assert_allclose(scan_sequential(*parts), expected, atol=1e-10)
    np.testing.assert_allclose(scan_chunked(*parts, chunk=chunk), expected, atol=1e-10)


def test_with_constant_selection_it_is_scipys_recursive_filter() -> None:
    x = torch.randn(1, 1, 200, 1, dtype=torch.float64)
    ones = torch.ones(1, 1, 200, 1, dtype=torch.float64)
    y = scan_chunked(x, 0.5 * ones[..., 0], torch.tensor([0.3], dtype=torch.float64), ones, ones)
    expected = scipy.signal.lfilter([0.5], [1, -np.exp(-0.15)], x.flatten().numpy())
    np.testing.assert_allclose(y.flatten(), expected, atol=1e-10)


def test_gradients_agree() -> None:
    def gradients(scan) -> list[torch.Tensor]:
        parts = [part.clone().requires_grad_() for part in inputs(21)]
        scan(*parts).square().sum().backward()
        return [part.grad for part in parts]  # pyright: ignore[reportReturnType]

    for slow, fast in zip(gradients(scan_sequential), gradients(lambda *p: scan_chunked(*p, chunk=8)), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-8)


def test_extreme_steps_stay_finite_in_value_and_gradient() -> None:
    x, dt, rate, b, c = (part.float() for part in inputs(300))
    parts = [part.requires_grad_() for part in (x, dt * 1e6, rate * 1e6, b, c)]
    y = scan_chunked(*parts)
    (y / y.detach().abs().max()).sum().backward()
    assert all(bool(part.grad.isfinite().all()) for part in parts if part.grad is not None)
    assert bool(y.isfinite().all())


def selective_scan_by_its_documentation(u_BDL, delta_BDL, A_DN, B_BGNL, C_BGNL) -> torch.Tensor:
    """What mamba_ssm's selective_scan_ref documents: h = exp(delta A) h + delta B u, y = C h, B and C per group."""
    batch, channels, length = u_BDL.shape
    per_group = channels // B_BGNL.shape[1]
    B_BDNL, C_BDNL = B_BGNL.repeat_interleave(per_group, 1), C_BGNL.repeat_interleave(per_group, 1)
    h_BDN, outputs = u_BDL.new_zeros(batch, channels, A_DN.shape[1]), []
    for t in range(length):
        kept = torch.exp(delta_BDL[:, :, t, None] * A_DN)
        h_BDN = kept * h_BDN + (delta_BDL[:, :, t] * u_BDL[:, :, t])[..., None] * B_BDNL[..., t]
        outputs.append((h_BDN * C_BDNL[..., t]).sum(-1))
    return torch.stack(outputs, dim=-1)


@pytest.mark.parametrize("fast", [1.0, 100.0])
def test_the_fast_kernel_is_called_so_that_it_gives_the_same(fast: float) -> None:
    x, dt, rate, b, c = (part.float() for part in inputs(30))
    expected = scan_sequential(x, dt, fast * rate, b, c)
    given = scan_kernel(selective_scan_by_its_documentation, x, dt, fast * rate, b, c)
    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4)
    assert float((dt * fast * rate[:, None]).max()) > MOST_DECAY or fast == 1.0


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_paths_through_the_image_are_undone(directions: int) -> None:
    mixer = StateSpaceMixer(16, directions=directions)
    x_BCHW = torch.randn(2, 16, 5, 7)
    assert torch.equal(mixer._roll_up(mixer._unroll(x_BCHW), (5, 7)), x_BCHW)


def test_four_directions_see_the_whole_image_and_one_only_what_came_before() -> None:
    torch.manual_seed(0)
    for directions, before, after in ((1, True, False), (2, True, True), (4, True, True)):
        mixer = StateSpaceMixer(16, directions=directions).eval()
        x_BCHW = torch.randn(1, 16, 8, 8, requires_grad=True)
        mixer(x_BCHW)[0, :, 4, 4].square().sum().backward()
        assert x_BCHW.grad is not None
        assert bool(x_BCHW.grad[0, :, 0, 0].any()) is before
        assert bool(x_BCHW.grad[0, :, 7, 7].any()) is after


def test_each_direction_sees_its_own_past() -> None:
    """Head i scans along path i: a unit at the path's start reaches its end, not the other way round."""
    mixer = StateSpaceMixer(4, heads=4)
    ramp = torch.arange(6.0).view(1, 1, 2, 3).expand(1, 4, 2, 3)
    paths = mixer._unroll(ramp)[0, :, :, 0].tolist()
    assert paths == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5], [5, 2, 4, 1, 3, 0]]


def test_work_grows_with_length_and_not_its_square() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def work(length: int) -> int:
        with FlopCounterMode(display=False) as counter:
            scan_chunked(*inputs(length))
        return counter.get_total_flops()

    assert work(2048) == 4 * work(512)
