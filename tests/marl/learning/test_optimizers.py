"""Adam and clipping against torch's own, policy by policy."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from envs.core import InputError
from marl.learning.optimizers import EPSILON, ClippedAdam, Stacked

SHAPES = [(4, 3, 2), (2, 5), (2, 1, 7)]  # of two policies; the first has two copies each


def parameters(policies: int = 2) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [nn.Parameter(x[: len(x) * policies // 2].clone()) for x in whole]


def descend(optimizer: ClippedAdam, mine: list[nn.Parameter], steps: int, scale: float = 1.0) -> None:
    """Gradients that differ at every step: the first policy's are those of its parameters alone."""
    for step in range(steps):
        optimizer.descend(sum(((p * (step + 1)).sin().square().sum() for p in mine), torch.zeros(())).mul(scale))


@pytest.mark.parametrize("largest", [1e9, 0.5])
def test_one_policy_steps_as_torch_s_adam_with_torch_s_clipping_of_each_group(largest: float) -> None:
    mine, theirs = parameters(1), parameters(1)
    ours = ClippedAdam(Stacked(mine[:2], 1), Stacked(mine[2:], 1), learning_rate=0.01, max_grad_norm=largest)
    adam = torch.optim.Adam(theirs, lr=0.01, eps=EPSILON)
    for step in range(30):
        mine_loss, their_loss = (
            sum(((p * (step + 1)).sin().square().sum() for p in both), torch.zeros(())) for both in (mine, theirs)
        )
        their_loss.backward()
        for group in (theirs[:2], theirs[2:]):
            nn.utils.clip_grad_norm_(group, largest)
        ours.descend(mine_loss)
        adam.step()
        adam.zero_grad()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=0)


def test_each_policy_steps_as_if_alone() -> None:
    together, alone = parameters(2), parameters(1)
    descend(ClippedAdam(Stacked(together, 2), learning_rate=0.1, max_grad_norm=0.5), together, 20)
    descend(ClippedAdam(Stacked(alone, 1), learning_rate=0.1, max_grad_norm=0.5), alone, 20)
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[: len(one)], one, atol=1e-5, rtol=0)


def test_a_short_gradient_is_left_alone_beside_a_long_one() -> None:
    mine = parameters(2)
    optimizer = ClippedAdam(Stacked(mine, 2), learning_rate=0.1, max_grad_norm=0.5)
    slopes = [torch.tensor([0.01, 10.0]).repeat_interleave(len(p) // 2).view(-1, *[1] * (p.dim() - 1)) for p in mine]
    optimizer.descend(sum(((p * slope).sum() for p, slope in zip(mine, slopes)), torch.zeros(())))
    means = [value for name, value in optimizer.state_dict().items() if name.endswith("mean")]
    first, second = (10 * torch.cat([m.chunk(2)[i].flatten() for m in means]) for i in range(2))
    torch.testing.assert_close(first, torch.full_like(first, 0.01))
    assert float(second.norm()) == pytest.approx(0.5, abs=1e-5)


def test_it_continues_bit_for_bit_from_its_state() -> None:
    mine = parameters()
    optimizer = ClippedAdam(Stacked(mine, 2), learning_rate=0.1, max_grad_norm=0.5)
    descend(optimizer, mine, 3)
    saved, values = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in mine]
    again = [nn.Parameter(v) for v in values]
    other = ClippedAdam(Stacked(again, 2), learning_rate=0.1, max_grad_norm=0.5)
    other.load_state_dict(saved)
    descend(optimizer, mine, 3)
    descend(other, again, 3)
    for one, two in zip(mine, again, strict=True):
        assert torch.equal(one, two)


def test_two_optimizers_of_the_same_parameters_step_in_turn() -> None:
    mine, theirs = parameters(), parameters()
    ours = [ClippedAdam(Stacked(mine, 2), learning_rate=rate, max_grad_norm=1e9) for rate in (0.1, 0.01)]
    adams = [torch.optim.Adam(theirs, lr=rate, eps=EPSILON) for rate in (0.1, 0.01)]
    for step in range(6):
        descend(ours[step % 2], mine, 1)
        adams[step % 2].zero_grad()
        sum((p.sin().square().sum() for p in theirs), torch.zeros(())).backward()
        adams[step % 2].step()
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_frozen_parameters_stay() -> None:
    mine = parameters()
    mine[1].requires_grad_(False)
    before = mine[1].detach().clone()
    descend(ClippedAdam(Stacked(mine, 2), learning_rate=0.1, max_grad_norm=0.5), [mine[0], mine[2]], 2)
    assert torch.equal(mine[1], before)


def test_a_step_without_a_gradient_says_what_to_call() -> None:
    mine = parameters(1)
    optimizer = ClippedAdam(Stacked(mine, 1), learning_rate=0.1, max_grad_norm=0.5)
    with pytest.raises(InputError, match=r"optimizer\.descend\(loss\)"):
        optimizer.step()
