"""Decision rules: what they say, how steep they are, and which configs fit no swarm."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from small_swarm import Drift
from torch import Tensor
from worlds import Walk

from envs.core import Continuous, Decision, Discrete, EnvSpec, InputError, Observation, Streams
from marl.algorithms.mean_field.rules import MANY_AGENTS, KernelRule, Rule, RuleConfig, TableRule, build_rule
from marl.models.distributions import IndependentCategorical, IndependentGaussian

STEERING = Continuous((-1.0, -math.inf), (3.0, math.inf))  # one bounded component, half-range 2, and a free one


def swarm(features: int = 2, action: Continuous | Discrete = STEERING, agents: int = 3) -> EnvSpec:
    names = tuple(f"agent_{i}" for i in range(agents))
    return EnvSpec(names, (0,) * agents, ("team",), (features,) * agents, (action,) * agents, 1)


def rule(features: int = 2, action: Continuous | Discrete = STEERING, **config: Any) -> Rule:
    return build_rule(swarm(features, action), RuleConfig(**config), 0.5, torch.device("cpu"))


def draw(family: Rule, rows: int, features: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random rules and observations in and around the range of the control points."""
    generator = torch.Generator().manual_seed(seed)
    xi = 2 * torch.randn(rows, family.size, generator=generator)
    return xi, 1.5 * torch.randn(rows, 5, features, generator=generator)


def test_kernel_rules_average_the_control_points_as_the_equation_says() -> None:
    family = rule(low=(-1.0, 0.0), high=(1.0, 4.0), points=3, bandwidth=(0.4, 1.5))
    xi, y = draw(family, 4)
    found = family.parameters_at(xi, y)
    raw = xi.view(4, 9, 4)
    sigma = torch.tensor([2 * 0.5, 0.5])
    mean = torch.stack([1 + 2 * raw[..., 0].tanh(), raw[..., 1]], -1)
    std = sigma * torch.log1p((math.e - 1) * (raw[..., 2:] / 0.5).exp())
    at_points = torch.cat([mean, std], -1)
    points = torch.cartesian_prod(torch.tensor([-1.0, 0, 1]), torch.tensor([0.0, 2, 4]))
    kernel = (-((y.unsqueeze(2) - points) / torch.tensor([0.4, 1.5])).square().sum(-1) / 2).exp()
    wanted = torch.einsum("bnm,bmq->bnq", kernel / kernel.sum(-1, keepdim=True), at_points)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    distribution = family.apply(xi, y)
    assert isinstance(distribution, IndependentGaussian)
    torch.testing.assert_close(distribution.mode().action, wanted[..., :2], atol=1e-4, rtol=1e-4)
    many = torch.stack([distribution.sample(Streams([seed])).action for seed in range(4000)])
    torch.testing.assert_close(many.std(0), wanted[..., 2:], atol=0, rtol=0.1)


def test_a_kernel_rule_far_from_all_control_points_follows_the_nearest() -> None:
    family = rule(features=1, points=4, low=100.0, high=101.0, bandwidth=0.1)
    xi, _ = draw(family, 1)
    far = family.parameters_at(xi, torch.tensor([[[-1e4], [1e4]]]))
    near = family.parameters_at(xi, torch.tensor([[[100.0], [101.0]]]))
    assert bool(far.isfinite().all())
    torch.testing.assert_close(far, near, atol=0.05, rtol=0)


def test_table_rules_look_up_the_nearest_control_point() -> None:
    family = rule(kind="table", points=3, low=(-1.0, 0.0), high=(1.0, 4.0))
    assert isinstance(family, TableRule)
    y = torch.tensor([[[-9.0, 9.0], [-0.6, 0.9], [-0.4, 1.1], [0.6, 2.9], [math.nan, 0.0]]])
    assert family.bins(y).tolist() == [[2, 0, 4, 7, 0]]
    xi, _ = draw(family, 2)
    table = family.actions.of(xi.view(2, 9, 4))
    assert torch.equal(family.parameters_at(xi, y.expand(2, -1, -1))[:, 3], table[:, 7])


def test_neural_rules_are_the_network_whose_weights_they_hold() -> None:
    family = rule(kind="neural", hidden=(3,), low=-2.0, high=4.0)
    xi, y = draw(family, 2)
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 4))
    assert family.size == sum(p.numel() for p in network.parameters())
    first, bias, last, offset = xi[1].split((6, 3, 12, 4))
    weights = (first.view(2, 3).T, bias, last.view(3, 4).T, offset)
    for parameter, weight in zip(network.parameters(), weights, strict=True):
        parameter.data = weight
    with torch.no_grad():
        wanted = family.actions.of(network((y[1] - 1) / 3))
    torch.testing.assert_close(family.parameters_at(xi, y)[1], wanted, atol=1e-5, rtol=1e-5)
    start = family.start(Streams([5, 6]))
    assert torch.equal(start[1], family.start(Streams([6]))[0]), "a policy starts alone as among others"
    assert not torch.equal(start[0], start[1])


@pytest.mark.parametrize("kind", ["kernel", "table", "neural"])
def test_rules_for_finite_choices_give_logits_of_legal_choices(kind: str) -> None:
    family = rule(action=Discrete((3, 2)), kind=kind, points=3)
    xi, y = draw(family, 2)
    legal = torch.ones(2, 5, 5, dtype=torch.bool)
    legal[..., 1] = False
    distribution = family.apply(xi, y, legal)
    assert isinstance(distribution, IndependentCategorical)
    probability = distribution.log_probs().exp()
    assert bool((probability[..., 1] == 0).all())
    logits = family.parameters_at(xi, y)
    torch.testing.assert_close(probability[..., 3:], logits[..., 3:].softmax(-1))
    assert distribution.log_prob(Decision(torch.zeros(2, 5, 2, dtype=torch.int64))).shape == (2, 5)


@pytest.mark.parametrize("action", [STEERING, Discrete((3,))], ids=["reals", "choices"])
@pytest.mark.parametrize(
    "config",
    [
        {"points": 2, "bandwidth": 0.5},
        {"points": 4, "low": (-1.0, 0.0), "high": (1.0, 4.0), "bandwidth": (0.3, 2.0)},
        {"kind": "neural", "hidden": (4, 3), "low": (-1.0, 0.0), "high": (1.0, 4.0)},
    ],
    ids=["two points", "kernel", "neural"],
)
def test_no_rule_is_steeper_than_its_certificate(config: dict[str, Any], action: Continuous | Discrete) -> None:
    family = rule(action=action, **config)
    xi, y = draw(family, 100)

    def steepness(one: Tensor, at: Tensor) -> Tensor:
        jacobian = torch.func.jacrev(lambda y: family.parameters_at(one[None], y[None, None])[0, 0])(at)
        return torch.linalg.matrix_norm(jacobian, 2)

    found = torch.func.vmap(torch.func.vmap(steepness, (None, 0)))(xi, y)
    bound = family.lipschitz(xi).unsqueeze(-1)
    assert bound.shape == (100, 1)
    assert bool((found <= bound * (1 + 1e-4)).all())


def test_the_certificate_is_exact_halfway_between_two_control_points() -> None:
    """And a table has none, unless it says the same everywhere."""
    family = rule(features=1, points=2, bandwidth=0.6)
    xi, _ = draw(family, 1)
    jacobian = torch.func.jacrev(lambda y: family.parameters_at(xi, y.view(1, 1, 1))[0, 0])(torch.zeros(1))
    torch.testing.assert_close(torch.linalg.matrix_norm(jacobian, 2), family.lipschitz(xi)[0], rtol=1e-4, atol=0)
    table = rule(features=1, kind="table", points=2)
    both = torch.stack([torch.ones(table.size), torch.arange(table.size) / 8.0])
    assert table.lipschitz(both).tolist() == [0.0, math.inf]


def test_a_rule_starts_in_the_middle_of_the_range_with_the_initial_deviation() -> None:
    for kind in ("kernel", "table"):
        family = rule(kind=kind)
        found = family.parameters_at(family.start(Streams([0]))[0], torch.randn(1, 4, 2))
        torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 1.0, 0.5]).expand(1, 4, -1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bandwidth": 0.0}, "bandwidth must be positive"),
        ({"bandwidth": 1e-30}, r"bandwidth must be positive, at least 0\.001 of the distance of two control points"),
        ({"bandwidth": (0.1, 1e-4)}, r"control points .*; got \(0\.1, 0\.0001\)"),
        ({"bandwidth": (0.1, -1.0)}, "bandwidth must be positive"),
        ({"low": (0.0,) * 3}, "low must be one number, or one for each of the 2 features"),
        ({"high": -1.0}, "low must be below"),
        ({"points": 40}, "1600, more than 1024"),
    ],
)
def test_a_rule_that_does_not_fit_what_agents_see_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rule(**config)


def test_a_rule_for_agents_who_differ_or_see_nothing_is_refused() -> None:
    config, device = RuleConfig(), torch.device("cpu")
    with pytest.raises(InputError, match="different kinds"):
        build_rule(Walk().spec, config, 0.5, device)
    alike = dataclasses.replace(Walk().spec, kind=(0, 0))
    with pytest.raises(InputError, match="different actions"):
        build_rule(alike, config, 0.5, device)
    with pytest.raises(InputError, match="see nothing"):
        build_rule(swarm(0), config, 0.5, device)


def test_rules_do_not_grow_with_the_swarm() -> None:
    sizes = {build_rule(Drift(n).spec, RuleConfig(), 0.1, torch.device("cpu")).size for n in (2, 2000)}
    assert sizes == {14}
    family = rule(features=1)
    assert isinstance(family, KernelRule)
    xi, _ = draw(family, 1)
    y = torch.randn(1, 100_000, 1)
    torch.testing.assert_close(family.parameters_at(xi, y)[:, :7], family.parameters_at(xi, y[:, :7]))


@pytest.mark.parametrize("config", [{}, {"points": 12}, {"bandwidth": 0.5}, {"low": -2.0, "high": 3.0}, {"points": 1}])
def test_rules_of_huge_swarms_are_interpolated_within_1e5(config: dict[str, Any]) -> None:
    """Also far beyond the control points, and in xi as in y a gradient is passed on."""
    family, many = rule(features=1, **config), MANY_AGENTS + 1
    assert isinstance(family, KernelRule)
    xi, _ = draw(family, 2)
    xi = (xi / xi.abs().max()).requires_grad_()
    y = torch.linspace(-8, 8, 2 * many).view(2, many, 1)
    y[0, :2, 0] = torch.tensor([-1e6, 1e6])
    found = family.parameters_at(xi, y)
    exact = family.weights(y) @ family.actions.of(xi.unflatten(-1, (-1, 4)))
    assert float((found - exact).detach().abs().max()) < 1e-5 * float(exact.detach().abs().max())
    assert found.shape == (2, many, 4)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(3)) / many
    (here,), (there,) = (torch.autograd.grad((p * weight).sum(), xi) for p in (found, exact))
    torch.testing.assert_close(here, there, atol=1e-5, rtol=1e-4)


def test_a_huge_swarm_s_nan_is_not_hidden_and_narrow_kernels_are_exact() -> None:
    family = rule(features=1)
    xi, _ = draw(family, 1)
    y = torch.zeros(1, MANY_AGENTS + 1, 1)
    y[0, 5] = math.nan
    assert family.parameters_at(xi, y).isnan().any(-1).nonzero().tolist() == [[0, 5]]
    narrow = rule(features=1, bandwidth=0.01)
    assert isinstance(narrow, KernelRule)
    assert narrow._table is None


@pytest.mark.parametrize("action", [STEERING, Discrete((3,))], ids=["reals", "choices"])
def test_what_is_drawn_without_probabilities_is_what_is_drawn_with_them(action: Continuous | Discrete) -> None:
    family = rule(action=action)
    xi, y = draw(family, 3)
    obs = Observation(y, torch.zeros(3, 1), torch.ones(3, 5, dtype=torch.bool))
    drawn, wanted = family.draw(xi, obs, Streams([4])), family.apply(xi, y).sample(Streams([4])).action
    torch.testing.assert_close(drawn, wanted)
