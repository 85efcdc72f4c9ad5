"""The theory of ReAd on tabular games, exactly: decomposition, closed form, improvement, and where the paper slips."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from envs.core import InputError
from envs.kitchen import Kitchen
from envs.tabular import Table
from planners.read.advantages import (
    advantages,
    filtered,
    prefix_value,
    reweighed,
    reweighed_in_order,
)

DISCOUNT = 0.9


def random_game(agents: int, choices: int = 3, states: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities of where joint choices lead [S,J,S], and what they earn [S,J]."""
    g = torch.Generator().manual_seed(seed)
    joint = choices**agents
    move = torch.rand(states, joint, states, generator=g, dtype=torch.float64) ** 4
    return move / move.sum(-1, keepdim=True), torch.randn(states, joint, generator=g, dtype=torch.float64)


def random_policy(agents: int, choices: int = 3, states: int = 12, seed: int = 1) -> Tensor:
    """Probabilities of dependent joint choices, [S,A,…,A], some of them 0."""
    g = torch.Generator().manual_seed(seed)
    odds = torch.rand(states, choices**agents, generator=g, dtype=torch.float64) ** 3
    odds = odds * (torch.rand(odds.shape, generator=g) < 0.8)
    odds[:, 0] += 0.01
    return (odds / odds.sum(-1, keepdim=True)).unflatten(-1, (choices,) * agents)


def value_of(policy: Tensor, move: Tensor, reward: Tensor) -> Tensor:
    """V of a joint policy, by solving its equations."""
    flat = policy.flatten(1)
    chain = torch.einsum("sj,sjt->st", flat, move)
    return torch.linalg.solve(torch.eye(len(chain), dtype=chain.dtype) - DISCOUNT * chain, (flat * reward).sum(1))


def q_of(policy: Tensor, move: Tensor, reward: Tensor) -> Tensor:
    """Q of a joint policy, [S,A,…,A]."""
    q = reward + DISCOUNT * move @ value_of(policy, move, reward)
    return q.view(policy.shape)


@pytest.mark.parametrize("agents", [2, 3])
def test_advantages_add_up_to_that_of_the_joint_choice_in_every_order(agents: int) -> None:
    policy = random_policy(agents)
    q = q_of(policy, *random_game(agents))
    whole = q - prefix_value(q, policy, agents, [])
    for order in itertools.permutations(range(agents)):
        total = sum(advantages(q, policy, agents, order))
        assert float((total - whole).abs().max()) < 1e-10


def test_a_prefix_is_worth_what_the_others_choices_make_of_it_on_average() -> None:
    policy = random_policy(2)
    q = q_of(policy, *random_game(2))
    by_hand = sum(policy[4, 1, b] * q[4, 1, b] for b in range(3)) / policy[4, 1].sum()
    assert float(prefix_value(q, policy, 2, [0])[4, 1, 0]) == pytest.approx(float(by_hand), abs=1e-12)
    assert prefix_value(q, policy, 2, [1]).shape == (12, 1, 3)
    assert torch.equal(prefix_value(q, policy, 2, [1, 0]), q)


def test_what_the_policy_never_chooses_is_followed_by_uniform_choices() -> None:
    policy = random_policy(2)
    policy[3, 2] = 0
    q = q_of(policy, *random_game(2))
    assert float(prefix_value(q, policy, 2, [0])[3, 2, 0]) == pytest.approx(float(q[3, 2].mean()))


def test_the_closed_form_is_the_optimum_of_advantage_less_divergence() -> None:
    policy, temperature = random_policy(2).flatten(1), 0.3
    advantage = torch.randn(policy.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found = reweighed(policy, advantage, temperature)
    for mu, gain, closed in zip(policy[:4].numpy(), advantage[:4].numpy(), found[:4].numpy(), strict=True):
        possible = mu > 0

        def loss(logits: np.ndarray, mu=mu[possible], gain=gain[possible]) -> float:  # type: ignore[no-untyped-def]
            odds = np.exp(logits - logits.max())
            odds /= odds.sum()
            return float((odds * (temperature * np.log(odds / mu) - gain)).sum())

        best = minimize(loss, np.log(mu[possible]), method="BFGS", options={"gtol": 1e-9})
        numeric = np.exp(best.x - best.x.max())
        np.testing.assert_allclose(closed[possible], numeric / numeric.sum(), atol=1e-6)
        assert (closed[~possible] == 0).all()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_reweighing_in_order_is_the_closed_form_of_joint_choices_with_what_follows_in_sight(
    order: tuple[int, ...],
) -> None:
    policy, temperature = random_policy(3), 0.2
    q = q_of(policy, *random_game(3))
    advantage = (q - prefix_value(q, policy, 3, [])).flatten(1)
    joint = reweighed(policy.flatten(1), advantage, temperature).view(policy.shape)
    exact = reweighed_in_order(policy, q, temperature, 3, order)
    assert float((exact - joint).abs().max()) < 1e-10


def test_the_published_product_is_another_policy() -> None:
    policy, temperature = random_policy(2), 0.2
    q = q_of(policy, *random_game(2))
    exact = reweighed_in_order(policy, q, temperature, 2, (0, 1))
    published = reweighed_in_order(policy, q, temperature, 2, (0, 1), look_ahead=False)
    assert torch.allclose(published.flatten(1).sum(1), torch.ones(12, dtype=torch.float64))
    distance = (exact - published).abs().flatten(1).sum(1) / 2
    assert float(distance.max()) > 0.05


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.5, 10.0])
@pytest.mark.parametrize("seed", range(5))
def test_whoever_passes_only_true_advantages_is_nowhere_worse(seed: int, threshold: float) -> None:
    game, policy = random_game(2, seed=seed), random_policy(2, seed=seed + 50)
    value, q = value_of(policy, *game), q_of(policy, *game)
    joint = filtered(policy.flatten(1), (q - value.view(-1, 1, 1)).flatten(1), threshold).view(policy.shape)
    first, second = advantages(q, policy, 2, (0, 1))
    own = filtered(policy.sum(2), first.squeeze(-1), threshold)
    then = filtered(policy / policy.sum(2, keepdim=True).clamp(min=1e-300), second, threshold)
    for better in (joint, own.unsqueeze(-1) * then):
        assert torch.allclose(better.flatten(1).sum(1), torch.ones(12, dtype=torch.float64))
        assert float((value_of(better, *game) - value).min()) > -1e-10
        assert float((value_of(better, *game) - value).max()) > 1e-3


def test_nothing_that_passes_leaves_the_best_of_what_is_ever_chosen() -> None:
    policy = torch.tensor([[0.5, 0.5, 0.0]])
    kept = filtered(policy, torch.tensor([[-2.0, -1.0, 3.0]]))
    assert kept.tolist() == [[0.0, 1.0, 0.0]]


def wait_errors(table: Table, discount: float) -> tuple[Tensor, Tensor]:
    """Advantages [S,J] of uniform play by V, and those by the identity Q(s, wait) = γ V(s)."""
    uniform = torch.full_like(table.reward, 1 / table.reward.shape[1])
    value = table.evaluate(uniform, discount)
    q = table.reward + discount * torch.cat([value, value.new_zeros(1)])[table.successor]
    everybody_stays = 4 * table.choices + 4
    return q - value.unsqueeze(1), q - q[:, everybody_stays : everybody_stays + 1] / discount


def cooks_now(kitchen: Kitchen, code: int) -> bool:
    """True for a pot that is on."""
    pot = kitchen.codes.in_pot(code)
    return pot is not None and pot[1] is not None


def test_waiting_is_no_stand_in_for_the_value_while_soup_cooks() -> None:
    kitchen = Kitchen("cramped_room_small", recipe={"cook_time": 5}, horizon=None, soups=1, counter_items=0)
    table = kitchen.table()
    right, by_waiting = wait_errors(table, 0.97)
    cooks = torch.tensor([cooks_now(kitchen, int(code)) for code in table.states.things[:, 0]])
    still = table.successor[:, 28] == torch.arange(len(table))
    error = (right - by_waiting).abs()
    assert float(error[still].max()) < 1e-9
    assert float(error[~still & cooks].max()) > 1e-3
    # Always in one direction: whoever waits for the soup is thought better off, so that good choices are refused.
    assert float((by_waiting - right).max()) < 1e-9


@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda: advantages(torch.zeros(2, 2), torch.full((2, 2), 0.25), 2, [0, 0]), r"agents 0 to 1 once"),
        (lambda: reweighed(torch.ones(1), torch.zeros(1), 0.0), r"temperature above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(act, told: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=told):
        act()


def test_what_is_as_good_as_the_threshold_does_not_pass() -> None:
    alike, gain = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 1.0])
    assert filtered(alike, gain, 0.25).tolist() == [0, 1]
    assert filtered(alike, gain, 0.2).tolist() == [0.5, 0.5]
