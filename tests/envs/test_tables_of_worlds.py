"""Tables of small worlds beside plain numpy on games drawn at random."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from envs.core import Discrete, EnvSpec, InputError, Observation
from envs.tabular import Digits, Table, fewest_steps, tabulate
from envs.world import Transition, World

STATES, CHOICES, OVER = 12, 3, 12


class Place(NamedTuple):
    number: Tensor


class Game(World[Place]):
    """A game of two agents with a random table; place 12 ends it."""

    def __init__(self, seed: int = 0, choices: tuple[int, int] = (CHOICES, CHOICES), horizon: int | None = None):
        rng = np.random.default_rng(seed)
        self.next = rng.integers(0, STATES + 1, (STATES, CHOICES * CHOICES))
        self.pay = rng.integers(-2, 4, (STATES, CHOICES * CHOICES)).astype(float)
        self.one_by_one = False
        spaces = tuple(Discrete((count,)) for count in choices)
        self.spec = EnvSpec(("a", "b"), (0, 1), ("team",), (1, 1), spaces, state_size=1, horizon=horizon)

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.zeros(num, 1)

    def initial(self, noise: Tensor) -> Place:
        return Place(torch.zeros(len(noise), dtype=torch.int64))

    def transition(self, state: Place, action: Tensor, noise: None) -> Transition:
        joint = action[:, 0, 0] * CHOICES + action[:, 1, 0]
        then = torch.from_numpy(self.next)[state.number, joint]
        pay = torch.from_numpy(self.pay)[state.number, joint].float()
        over = (then == OVER).unsqueeze(-1).expand(-1, 2)
        if self.one_by_one:
            over = over & torch.tensor([True, False])
        return Transition(Place(then), pay.view(-1, 1, 1).expand(-1, 2, 1), over)

    def observe(self, state: Place) -> Observation:
        seen = state.number.float().view(-1, 1)
        return Observation(seen.unsqueeze(1).expand(-1, 2, -1), seen, torch.ones(len(seen), 2, dtype=torch.bool))

    def digits(self, state: Place) -> Digits:
        return Digits(state.number.unsqueeze(1), (STATES + 1,))

    def table(self) -> Table:
        return tabulate(self, self.initial(torch.zeros(1, 1)), self.digits)


def arrays(table: Table) -> tuple[np.ndarray, np.ndarray]:
    return table.successor.numpy(), table.reward.numpy()


@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_numpy(seed: int) -> None:
    game = Game(seed)
    table = game.table()
    then, pay = arrays(table)
    numbers = table.states.number.numpy()
    assert (pay == game.pay[numbers]).all()
    policy = torch.rand(len(table), 2, CHOICES, generator=torch.Generator().manual_seed(seed)).double()
    policy = policy / policy.sum(-1, keepdim=True)
    joint = table.joint(policy).numpy()
    moves = np.zeros((len(table), len(table) + 1))
    for state, choice in itertools.product(range(len(table)), range(CHOICES**2)):
        moves[state, then[state, choice]] += joint[state, choice]
    earned = (joint * pay).sum(1)
    for discount in (0.0, 0.5, 0.95):
        exact = np.linalg.solve(np.eye(len(table)) - discount * moves[:, :-1], earned)
        np.testing.assert_allclose(table.evaluate(table.joint(policy), discount).numpy(), exact, atol=1e-9)
        best = np.zeros(len(table) + 1)
        for _ in range(2000):
            best[:-1] = (pay + discount * best[then]).max(1)
        np.testing.assert_allclose(table.values(discount).numpy(), best[:-1], atol=1e-9)
    value, most = np.zeros(len(table) + 1), np.zeros(len(table) + 1)
    for _ in range(5):
        value[:-1] = earned + moves @ value
        most[:-1] = (pay + most[then]).max(1)
    np.testing.assert_allclose(table.within(table.joint(policy), 5).numpy(), value[:-1], atol=1e-9)
    np.testing.assert_allclose(table.most(5).numpy(), most[:-1], atol=1e-9)


@pytest.mark.parametrize("agent", [0, 1])
def test_a_best_response_is_the_best_of_all_plans_beside_the_partner(agent: int) -> None:
    table = Game(1).table()
    then, pay = arrays(table)
    policy = torch.rand(len(table), 2, CHOICES, generator=torch.Generator().manual_seed(0)).double()
    policy = policy / policy.sum(-1, keepdim=True)
    value, choices = table.best_response(policy, agent, steps=4)
    best = np.zeros(len(table) + 1)
    partner = policy[:, 1 - agent].numpy()
    for step in range(4):
        of_choice = np.zeros((len(table), CHOICES))
        for own, other in itertools.product(range(CHOICES), range(CHOICES)):
            joint = own * CHOICES + other if agent == 0 else other * CHOICES + own
            of_choice[:, own] += partner[:, other] * (pay[:, joint] + best[then[:, joint]])
        assert (choices[:, step].numpy() == of_choice.argmax(1)).all()
        best[:-1] = of_choice.max(1)
    np.testing.assert_allclose(value.numpy(), best[:-1], atol=1e-9)


def test_the_fewest_steps_to_a_reward() -> None:
    game = Game(2)
    game.pay = np.where(np.arange(STATES)[:, None] == 7, 1.0, 0.0) * np.ones_like(game.pay)
    table = game.table()
    shortest = table.shortest()
    plan = table.plan()
    assert len(plan) == int(shortest[0]) == table.steps_to(1.0)
    found = fewest_steps(game, game.initial(torch.zeros(1, 1)), game.digits, limit=len(plan))
    assert len(found) == len(plan)
    with pytest.raises(InputError, match="within"):
        fewest_steps(game, game.initial(torch.zeros(1, 1)), game.digits, limit=len(plan) - 1)
    assert table.choices_of(5) == (1, 2)


def test_worlds_without_a_table_are_refused() -> None:
    with pytest.raises(InputError, match="equally many"):
        Game(choices=(2, 3)).table()
    with pytest.raises(InputError, match="horizon=None"):
        Game(horizon=3).table()
    game = Game()
    game.one_by_one = True
    with pytest.raises(InputError, match="one by one"):
        game.table()


BAD: dict[str, Any] = {"nan": torch.nan, "negative": -0.5, "large": 5.0}


@pytest.mark.parametrize("case", BAD)
def test_what_are_no_probabilities_is_refused(case: str) -> None:
    table = Game().table()
    policy = torch.full((len(table), 2, CHOICES), 1 / CHOICES)
    policy[0, 1, 0] = BAD[case]
    for use in (
        lambda: table.evaluate(table.joint(policy), 0.9),
        lambda: table.within(table.joint(policy), 3),
        lambda: table.best_response(policy, 0, 3),
    ):
        with pytest.raises(InputError, match="Probabilities are at least 0"):
            use()


def test_other_bad_questions_are_refused() -> None:
    table = Game().table()
    policy = torch.full((len(table), 2, CHOICES), 1 / CHOICES)
    for use in (
        lambda: table.best_response(policy, 2, 3),
        lambda: table.best_response(policy, 0, 0),
        lambda: table.best_response(policy[:1], 0, 3),
        lambda: table.evaluate(table.joint(policy)[:1], 0.9),
        lambda: table.evaluate(table.joint(policy), 1.0),
        lambda: table.within(table.joint(policy), -1),
        lambda: table.steps_to(1e9, limit=20),
    ):
        with pytest.raises(InputError):
            use()
