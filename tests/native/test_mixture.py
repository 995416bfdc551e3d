"""Mixtures of experts within a network, by hand: who runs on which token, gradients, balance, frozen routing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experts.native.blocks.mixture import Mixture, PixelMixture, balance
from experts.native.blocks.window_mixture import WindowMixture
from tests.native.parts import features


class Times(nn.Module):
    """Multiplies by a factor and counts the tokens it is given."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.seen = nn.Parameter(torch.tensor(factor)), 0

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.seen += len(tokens)
        return tokens * self.factor


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_a_mixture_runs_only_the_chosen_experts_on_each_token(top_k: int) -> None:
    experts = [Times(factor) for factor in (1.0, 10.0, 100.0)]
    mixture = Mixture(experts, top_k=top_k).eval()
    tokens, logits = torch.rand(50, 4), torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    mixed, _ = mixture(tokens, logits)
    factors, share = np.array([1.0, 10.0, 100.0]), logits.softmax(-1).numpy()
    for row in range(50):
        best = np.argsort(-share[row])[:top_k]
        weight = share[row, best] / (share[row, best].sum() if top_k > 1 else 1)
        np.testing.assert_allclose(mixed[row].detach(), tokens[row] * (weight @ factors[best]), rtol=1e-4)
    assert sum(expert.seen for expert in experts) == 50 * top_k


def test_all_chosen_is_the_dense_mixture() -> None:
    tokens, logits = torch.rand(20, 4), torch.randn(20, 3)
    experts = [Times(factor) for factor in (1.0, 10.0, 100.0)]
    sparse, _ = Mixture(experts, top_k=3)(tokens, logits)
    dense, _ = Mixture(experts, top_k=1, routing="dense")(tokens, logits)
    torch.testing.assert_close(sparse, dense)


def test_an_idle_expert_still_has_a_gradient_in_training_and_no_work_in_eval() -> None:
    experts = [Times(1.0), Times(2.0)]
    mixture = Mixture(experts, top_k=1)
    tokens, logits = torch.rand(6, 4), torch.tensor([[5.0, -5.0]]).repeat(6, 1)
    mixed, _ = mixture(tokens, logits)
    mixed.sum().backward()
    assert experts[1].factor.grad == 0
    assert experts[0].factor.grad != 0
    experts[1].seen = 0
    torch.testing.assert_close(mixture.eval()(tokens, logits)[0], mixed)
    assert experts[1].seen == 0


def test_balance_is_one_when_even_and_rises_with_collapse() -> None:
    even = torch.full((8, 4), 0.25)
    assert float(balance(even, torch.eye(4).repeat(2, 1))) == pytest.approx(1.0)
    lone = torch.tensor([[0.97, 0.01, 0.01, 0.01]]).repeat(8, 1)
    assert float(balance(lone, F.one_hot(torch.zeros(8, dtype=torch.long), 4))) == pytest.approx(3.88)


def test_minimising_the_balance_spreads_the_tokens() -> None:
    torch.manual_seed(0)
    mixture = PixelMixture(16, experts=4, top_k=1)
    assert mixture.router is not None
    with torch.no_grad():
        mixture.router.bias.copy_(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    optimizer = torch.optim.Adam(mixture.router.parameters(), lr=0.05)
    x_BCHW, course = features(12, 12), []
    for _ in range(60):
        _, uneven = mixture(x_BCHW)
        assert uneven is not None
        course.append(float(uneven.detach()))
        optimizer.zero_grad()
        uneven.backward()
        optimizer.step()
    assert course[0] > 1.5
    assert course[-1] < 1.1


@pytest.mark.parametrize("make", [PixelMixture, lambda c, **k: WindowMixture(c, window=4, kernel=3, **k)])
def test_frozen_routing_leaves_the_router_alone(make) -> None:
    mixture = make(16, freeze_routing=True)
    assert [name for name, p in mixture.named_parameters() if not p.requires_grad] == ["router.weight", "router.bias"]


def test_a_routed_window_depends_on_itself_only() -> None:
    torch.manual_seed(0)
    mixture = WindowMixture(16, window=4, kernel=3).eval()
    x_BCHW = features(8, 8)
    changed = x_BCHW.clone()
    changed[..., 4:, 4:] += 1
    assert torch.equal(mixture(changed)[0][..., :4, :], mixture(x_BCHW)[0][..., :4, :])
