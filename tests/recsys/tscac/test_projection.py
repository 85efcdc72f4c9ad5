"""What policies are tied to, and that projecting on the closed-form optimum reaches it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_offline import TablePolicy

from envs.core import InputError, Streams
from marl.learning.offline_actor_critic import Estimated, LoggedActorCritic, LoggedLearnerConfig
from marl.learning.offline_batch import chooser_spec, observed, transitions
from marl.models.action_critic import ActionCritic
from marl.models.layers import NetworkConfig
from marl.models.policies import IndependentPolicy, PolicyConfig
from recsys.problems.base import PROBLEMS
from recsys.problems.constrained import ConstrainedProblem
from recsys.tscac.closed_form import product, tied, tied_objective
from recsys.tscac.projection import Product, Projected, Uniform
from recsys.tscac.tables import fixed_point

STATES, ACTIONS = 4, 5


def policies_of(count: int, seed: int = 0) -> IndependentPolicy:
    """So many policies side by side that differ visibly."""
    spec = chooser_spec(STATES, ACTIONS, ("watch",))
    policy = IndependentPolicy(spec, PolicyConfig(network=NetworkConfig(hidden=(8,))), Streams(range(count)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    return policy


def test_a_product_weighs_the_policies_of_each_rows_own_seed() -> None:
    shares, seeds, rows = torch.tensor([0.2, 0.8]), 3, 4
    policies = policies_of(2 * seeds)
    seen = torch.randn(seeds * rows, STATES, generator=torch.Generator().manual_seed(1))
    found = Product(policies, shares, seeds)(observed(seen))
    for row in range(seeds * rows):
        everywhere, _ = policies(observed(seen[row].expand(2 * seeds, -1)), None)
        own = everywhere.log_probs()[2 * (row // rows) : 2 * (row // rows) + 2, 0]
        torch.testing.assert_close(found[row, 0], product(own, shares).detach())
    assert not found.requires_grad


def test_shares_that_do_not_sum_to_1_are_refused() -> None:
    for shares in ([0.5, 0.6], [1.5, -0.5]):
        with pytest.raises(InputError, match="sum to 1"):
            Product(policies_of(2), torch.tensor(shares))
    with pytest.raises(InputError, match="Λ is above 0"):
        Projected(Uniform(ACTIONS), torch.tensor([0.1, 0.0]))


def test_each_policy_of_a_stack_is_projected_with_its_own_temperature() -> None:
    temperature, rows = torch.tensor([0.1, 2.0]), 3
    q = torch.randn(2 * rows, 1, ACTIONS, generator=torch.Generator().manual_seed(0))
    seen = torch.randn(2 * rows, STATES, generator=torch.Generator().manual_seed(1))
    base = Product(policies_of(2), torch.tensor([0.5, 0.5]))
    found = Projected(base, temperature).optimum(observed(seen), q)
    anchors = base(observed(seen))
    for row in range(2 * rows):
        wanted = tied(anchors[row], q[row], float(temperature[row // rows])).log_probs.exp()
        torch.testing.assert_close(found[row], wanted)


def test_what_is_tied_to_nothing_is_soft_among_what_is_legal() -> None:
    q = torch.tensor([[[1.0, 3.0, 2.0]]])
    legal = torch.tensor([[True, False, True]])
    obs = observed(torch.ones(1, 1), legal)
    found = Projected(Uniform(3), torch.tensor([0.5])).optimum(obs, q)[0, 0]
    torch.testing.assert_close(found, torch.tensor([1 / (1 + np.e**2), 0.0, 1 / (1 + np.e**-2)], dtype=torch.float32))


def test_the_gradient_is_that_of_the_divergence_from_the_optimum() -> None:
    logits = torch.randn(STATES, ACTIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = torch.randn(STATES, 1, ACTIONS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    policy = TablePolicy(logits.numpy())
    obs = observed(torch.eye(STATES, dtype=torch.float64))
    batch = transitions(
        torch.eye(STATES), torch.zeros(STATES, dtype=torch.int64), torch.ones(STATES), torch.ones(STATES, 1)
    )
    projected = Projected(Uniform(ACTIONS), torch.tensor([0.7]))
    nothing = torch.zeros(STATES, 1, dtype=torch.float64)
    distribution, _ = policy(obs, None)
    gain = projected(batch, Estimated(distribution.log_probs(), nothing, q, nothing, nothing)).sum()
    (slope,) = torch.autograd.grad(gain, policy.logits)
    optimum = projected.optimum(obs, q)[:, 0]
    again = policy.logits.detach().clone().requires_grad_()
    divergence = torch.nn.functional.kl_div(again.log_softmax(-1), optimum, reduction="sum")
    (wanted,) = torch.autograd.grad(divergence, again)
    torch.testing.assert_close(slope, -wanted, atol=1e-6, rtol=1e-6)


class Known(ActionCritic):
    """A critic that says what is known, whatever it learns."""

    def __init__(self, q: torch.Tensor, *arguments: Any):
        super().__init__(*arguments)
        self.register_buffer("known", q)

    def judged(self, obs: Any, action: Any, weights: Any) -> Any:
        return super().judged(obs, action, weights)._replace(weighed=obs.agent @ self.known)


def test_with_exact_values_a_network_becomes_the_fixed_point_in_every_state() -> None:
    problem = ConstrainedProblem.read(PROBLEMS / "cmdp.json")
    process, temperature = problem.process, torch.tensor([0.2], dtype=torch.float64)
    anchors, _ = process.soft_optimal(torch.eye(problem.signals, dtype=torch.float64)[1:], 0.02)
    base = product(anchors.log(), torch.tensor([0.5, 0.5], dtype=torch.float64))
    exact = fixed_point(process, base.unsqueeze(0), temperature)
    advantage = process.advantage(exact)[0][0, ..., 0]
    states, actions = advantage.shape
    spec = chooser_spec(states, actions, ("main",))
    policy = IndependentPolicy(spec, PolicyConfig(network=NetworkConfig(hidden=(64,))), Streams([0]))
    critic = Known(advantage.float(), spec, NetworkConfig(hidden=(4,)), Streams([1]))
    tie = Projected(lambda obs: obs.agent @ base.float(), temperature.float())
    updates = 1_500
    config = LoggedLearnerConfig(learning_rate=0.02, learning_rate_end=1e-4)
    learner = LoggedActorCritic(policy, critic, config, objective=tie, updates=updates)
    seen = torch.eye(states)
    log = transitions(seen, torch.zeros(states, dtype=torch.int64), torch.ones(states), torch.zeros(states, 1))
    for _ in range(updates):
        learner.update(log)
    found = policy(observed(seen), None)[0].log_probs().detach().exp()[:, 0].double()
    assert float((found - exact[0]).abs().sum(-1).max()) / 2 < 0.005
    # The objective at the optimum is Λ log Z of every state.
    best = tied(base, advantage, 0.2)
    reached = tied_objective(best.log_probs, base, advantage, 0.2)
    torch.testing.assert_close(reached, 0.2 * best.log_partition, atol=1e-9, rtol=0)


def test_a_log_one_by_one_is_what_counts_are_drawn_from() -> None:
    problem = ConstrainedProblem.read(PROBLEMS / "cmdp.json")
    count = 200_000
    rows = problem.sample(count, np.random.default_rng(0))
    states, actions = problem.process.reward.shape[:2]
    tried, following, earned = np.zeros((states, actions)), np.zeros((states, actions, states)), 0.0
    np.add.at(tried, (rows.state, rows.action), 1)
    np.add.at(following, (rows.state, rows.action, rows.following), 1)
    chance = (problem.process.visits(problem.uniform()) * (1 - problem.process.discount)).numpy()[:, None] / actions
    z = (tried - count * chance) / np.sqrt(count * chance)
    assert np.abs(z).max() < 4.5
    expected = tried[..., None] * problem.process.transition.numpy()
    z = (following - expected) / np.sqrt(np.maximum(expected, 1))
    assert np.abs(z).max() < 6
    assert set(np.unique(rows.reward)) == {0.0, 1.0}
    earned = np.zeros((states, actions, problem.signals))
    np.add.at(earned, (rows.state, rows.action), rows.reward)
    mean = problem.process.reward.numpy()
    z = (earned - tried[..., None] * mean) / np.sqrt(np.maximum(tried[..., None] * mean * (1 - mean), 1))
    assert np.abs(z).max() < 5
