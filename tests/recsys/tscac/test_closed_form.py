"""The closed form of stage two: no policy beats it, and its projection has the gradient of a KL divergence."""

from __future__ import annotations

import math

import pytest
import torch

from recsys.tscac.closed_form import product, tied, tied_objective

STATES, ACTIONS = 7, 5


def setting(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three anchors' log-probabilities, shares, and an advantage, of float64."""
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.randn(3, STATES, ACTIONS, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    shares = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    return anchors, shares, torch.randn(STATES, ACTIONS, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.03, 0.3, 3.0])
def test_its_objective_is_the_log_partition_and_no_other_policy_has_more(temperature: float) -> None:
    anchors, shares, advantage = setting(0)
    base = product(anchors, shares)
    best = tied(base, advantage, temperature)
    assert torch.allclose(best.log_probs.exp().sum(-1), torch.ones(STATES, dtype=torch.float64), atol=1e-12)
    reached = tied_objective(best.log_probs, base, advantage, temperature)
    assert float((reached - temperature * best.log_partition).abs().max()) < 1e-9
    generator = torch.Generator().manual_seed(1)
    others = torch.randn(10_000, STATES, ACTIONS, generator=generator, dtype=torch.float64).mul(3).log_softmax(-1)
    near = (best.log_probs + 0.01 * others).log_softmax(-1)
    for policies in (others, near):
        worse = tied_objective(policies, base.expand_as(policies), advantage.expand_as(policies), temperature)
        assert bool((worse <= reached + 1e-12).all())


def test_the_objective_is_the_advantage_less_the_divergences_from_each_anchor() -> None:
    anchors, shares, advantage = setting(2)
    policy = torch.randn(STATES, ACTIONS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    log_probs = policy.log_softmax(-1)
    chance = log_probs.exp()
    divergences = [(chance * (log_probs - anchor)).sum(-1) for anchor in anchors]
    by_hand = (chance * advantage).sum(-1) - 0.7 * sum(w * kl for w, kl in zip(shares, divergences, strict=True))
    assert torch.allclose(tied_objective(log_probs, product(anchors, shares), advantage, 0.7), by_hand)


def test_a_state_value_in_the_advantage_changes_nothing() -> None:
    anchors, shares, advantage = setting(4)
    base = product(anchors, shares)
    shifted = tied(base, advantage + torch.arange(STATES, dtype=torch.float64).unsqueeze(1), 0.2)
    assert torch.allclose(shifted.log_probs, tied(base, advantage, 0.2).log_probs)


def test_the_limits_are_the_product_and_the_greedy_policy() -> None:
    anchors, shares, advantage = setting(5)
    base = product(anchors, shares)
    assert torch.allclose(tied(base, advantage, 1e9).log_probs, base.log_softmax(-1), atol=1e-8)
    greedy = tied(base, advantage, 1e-3).log_probs.exp()
    assert torch.equal(greedy.argmax(-1), advantage.argmax(-1))
    assert float(greedy.max(-1).values.min()) > 0.999


def test_projecting_on_it_has_the_gradient_of_the_divergence() -> None:
    anchors, shares, advantage = setting(6)
    target = tied(product(anchors, shares), advantage, 0.3).log_probs
    logits = torch.randn(STATES, ACTIONS, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    logits.requires_grad_()
    log_probs = logits.log_softmax(-1)
    projection = -(target.exp() * log_probs).sum(-1).mean()
    divergence = (target.exp() * (target - log_probs)).sum(-1).mean()
    ours, theirs = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (projection, divergence))
    assert float((ours - theirs).abs().max()) < 1e-12


def test_an_action_that_an_anchor_excludes_stays_excluded_unless_its_share_is_0() -> None:
    anchors = torch.tensor([[[0.5, 0.5, 0.0]], [[0.2, 0.2, 0.6]]], dtype=torch.float64).log()
    advantage = torch.zeros(1, 3, dtype=torch.float64)
    half = tied(product(anchors, torch.tensor([0.5, 0.5], dtype=torch.float64)), advantage, 1.0).log_probs
    assert half[0, 2] == -math.inf
    assert half[0, :2].exp().tolist() == pytest.approx([0.5, 0.5])
    second = tied(product(anchors, torch.tensor([0.0, 1.0], dtype=torch.float64)), advantage, 1.0).log_probs
    assert second.exp()[0].tolist() == pytest.approx([0.2, 0.2, 0.6])
    assert torch.isfinite(tied_objective(half, product(anchors, torch.full((2,), 0.5).double()), advantage, 1.0)).all()


def test_every_policy_of_a_stack_has_a_temperature_of_its_own() -> None:
    anchors, shares, advantage = setting(8)
    base = product(anchors, shares).expand(2, -1, -1)
    both = tied(base, advantage.expand(2, -1, -1), torch.tensor([0.1, 2.0], dtype=torch.float64).view(2, 1, 1))
    for place, temperature in enumerate((0.1, 2.0)):
        assert torch.allclose(both.log_probs[place], tied(base[0], advantage, temperature).log_probs)
