"""Muon beside AdamW: which weights it takes, its steps against an SVD, memory formats, exact resume."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fusion.training.loop.optimizers import MuonAndAdamW, is_matrix, new_optimizer
from fusion.training.settings import OptimizerSettings
from imaging.refusal import Refusal

SETTINGS = OptimizerSettings(name="muon", lr=1e-2, weight_decay=0.0)


def network(seed: int = 0) -> nn.Sequential:
    """A wide convolution, a narrow one, a grouped one, a linear map of the channels."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 40, 3, padding=1),
        nn.Conv2d(40, 48, 3, padding=1),
        nn.Conv2d(48, 48, 7, groups=48),
        nn.Conv2d(48, 4, 1),
    )


def take(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """One step on a random batch."""
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    net(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def test_only_matrices_worth_the_name_go_to_muon() -> None:
    assert [is_matrix(layer.weight) for layer in network()] == [False, True, False, False]
    assert is_matrix(torch.empty(64, 64)) and not is_matrix(torch.empty(64)) and not is_matrix(torch.empty(64, 1))


def test_a_step_is_along_the_orthogonal_part_of_the_gradient() -> None:
    net = network()
    weight = net[1].weight
    before = weight.detach().clone()
    optimizer = new_optimizer(net.parameters(), SETTINGS)
    net(torch.randn(2, 3, 12, 12)).square().mean().backward()
    assert weight.grad is not None
    left, strength, right = torch.linalg.svd(weight.grad.flatten(1).double(), full_matrices=False)
    optimizer.step()
    step = (before - weight.detach()).flatten(1).double() / (SETTINGS.lr * 0.2 * (40 * 9) ** 0.5)
    in_svd = left.T @ step @ right.T
    strong = strength > 0.05 * strength[0]  # five rounds of the iteration lift no weaker ones all the way
    assert int(strong.sum()) > 8
    diagonal = in_svd.diagonal()
    assert float(diagonal[strong].min()) > 0.6 and float(diagonal.max()) < 1.3
    off = in_svd - torch.diag(diagonal)
    assert float(off.abs().max()) < 0.1  # bfloat16's rounding, no more


def test_the_memory_format_changes_nothing() -> None:
    plain, last = network(), network().to(memory_format=torch.channels_last)
    for net in (plain, last):
        optimizer = new_optimizer(net.parameters(), SETTINGS)
        for seed in range(3):
            take(net, optimizer, seed)
    start = network()
    for one, other, first in zip(plain.parameters(), last.parameters(), start.parameters(), strict=True):
        moved = (one - first).abs().max()
        assert moved > 0
        assert (one - other).abs().max() < 0.1 * moved


def test_gradients_of_another_memory_format_than_the_weights_are_read_right() -> None:
    nets = [network().to(memory_format=torch.channels_last) for _ in range(2)]
    for net, layout in zip(nets, (torch.channels_last, torch.contiguous_format), strict=True):
        optimizer = new_optimizer(net.parameters(), SETTINGS)
        net[1].weight.grad = torch.randn(48, 40, 3, 3, generator=torch.Generator().manual_seed(5)).contiguous(
            memory_format=layout
        )
        optimizer.step()
    assert torch.equal(nets[0][1].weight, nets[1][1].weight)


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    whole = network()
    optimizer = new_optimizer(whole.parameters(), SETTINGS)
    for seed in range(2):
        take(whole, optimizer, seed)
    resumed, state = copy.deepcopy(whole), copy.deepcopy(optimizer.state_dict())
    for seed in range(2, 5):
        take(whole, optimizer, seed)
    second = new_optimizer(resumed.parameters(), SETTINGS)
    second.load_state_dict(state)
    for seed in range(2, 5):
        take(resumed, second, seed)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_network_without_matrices_is_refused() -> None:
    with pytest.raises(Refusal, match="optimizer.name.*muon needs matrices"):
        new_optimizer(nn.Conv2d(3, 4, 3).parameters(), SETTINGS)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_both_take_one_learning_rate_for_all(name: str) -> None:
    net = network()
    optimizer = new_optimizer(net.parameters(), SETTINGS.model_copy(update={"name": name}))
    before = copy.deepcopy(net)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    take(net, optimizer, 0)
    for one, other in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(one, other)
    assert isinstance(optimizer, MuonAndAdamW) == (name == "muon")


def test_a_network_without_parameters_is_refused() -> None:
    with pytest.raises(Refusal, match="no parameters to train"):
        new_optimizer([], OptimizerSettings())
