"""Finite swarms of infinitely many agents: exact values, and the best of deterministic rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError
from envs.swarm.finite import FiniteSwarm

# The most rule sequences that brute force compares.
MOST_SEQUENCES = 2**20
# The most deterministic rules that are compared at each point of a grid.
MOST_ON_GRID = 256


class Course(NamedTuple):
    """Course of a swarm of infinitely many agents: mu at t = 0 … H, the rules at t = 0 … H-1, and its return."""

    mu: Float[Tensor, "T1 X"]
    rules: Float[Tensor, "T Y U"]
    value: float


class FiniteLimit:
    """A finite swarm with infinitely many agents: mu_{t+1} = T(mu_t, rule_t), exact and without chance.

    A rule [Y,U] holds the probabilities of actions by observation, and all agents follow it. As nothing is random,
    rules chosen by looking at mu and the same rules written down in advance have the same value. Computed in float64;
    sums of rewards are undiscounted unless `discount` says otherwise. Where a world has several starts, `start` says
    which one, by number; it is a limit for each of them. Raises InputError for a discount outside [0, 1] and a start
    that is not there.
    """

    def __init__(self, world: FiniteSwarm, discount: float = 1.0, start: int | None = None):
        if not 0 <= discount <= 1:
            raise InputError(f"discount must be between 0 and 1; got {discount}.")
        count = len(world.starts)
        if (start is None and count > 1) or not 0 <= (start or 0) < count:
            raise InputError(f"start must be one of the world's {count} starts, 0 to {count - 1}; got {start}.")
        assert world.spec.horizon is not None
        self.world, self.horizon, self.discount = world, world.spec.horizon, discount
        self.start = world.starts[start or 0]

    def step(
        self, mu: Float[Tensor, "*B X"], rule: Float[Tensor, "*B Y U"]
    ) -> tuple[Float[Tensor, "*B X"], Float[Tensor, "*B"]]:
        """T(mu, rule), and the reward of the step."""
        joint = mu.unsqueeze(-1) * (self.world.sees.to(mu) @ rule)  # the shares of state and action, [*,X,U]
        ahead = torch.einsum("...xu,...xuz->...z", joint, self.world.kernel(mu))
        return ahead, (joint * self.world.payoff(mu)).sum((-1, -2))

    def flow(self, rules: Float[Tensor, "*B T Y U"]) -> Float[Tensor, "*B T1 X"]:
        """mu at t = 0 … T under a sequence of rules, from the swarm's start."""
        mu = self._start(rules)
        flow = [mu]
        for rule in rules.unbind(-3):
            mu, _ = self.step(mu, rule)
            flow.append(mu)
        return torch.stack(flow, -2)

    def value(self, rules: Float[Tensor, "*B T Y U"]) -> Float[Tensor, "*B"]:
        """The exact return of sequences of H rules, differentiable. Raises InputError for another length."""
        if rules.shape[-3] != self.horizon:
            raise InputError(f"Expected a rule for each of {self.horizon} steps; got {rules.shape[-3]}.")
        mu, total = self._start(rules), rules.new_zeros(rules.shape[:-3])
        for t, rule in enumerate(rules.unbind(-3)):
            mu, reward = self.step(mu, rule)
            total = total + self.discount**t * reward
        return total

    def follow(self, policy: Callable[[int, Float[Tensor, " X"]], Float[Tensor, "Y U"]]) -> Course:
        """Closed loop: at each step the rule is `policy(t, mu)`."""
        mu, total = self.start, torch.zeros((), dtype=torch.float64)
        seen, rules = [mu], []
        for t in range(self.horizon):
            rules.append(policy(t, mu))
            mu, reward = self.step(mu, rules[-1])
            total = total + self.discount**t * reward
            seen.append(mu)
        return Course(torch.stack(seen), torch.stack(rules), total.item())

    def deterministic_rules(self) -> Float[Tensor, "R Y U"]:
        """All U^Y rules without chance."""
        y, u = self.world.observations, self.world.actions
        choices = torch.arange(u**y).unsqueeze(-1) // u ** torch.arange(y) % u
        return F.one_hot(choices, u).double()

    @property
    def countable(self) -> bool:
        """True if the sequences of deterministic rules are few enough for brute force."""
        return self._rules**self.horizon <= MOST_SEQUENCES

    def all_values(self) -> Float[Tensor, " sequences"]:
        """The returns of all sequences of deterministic rules; the last rule counts fastest.

        Raises InputError where they are more than 2^20.
        """
        if not self.countable:
            raise InputError(
                f"Brute force compares up to {MOST_SEQUENCES} rule sequences; here are {self._rules}^{self.horizon}. "
                "Take a shorter horizon, or on_grid()."
            )
        rules, count = self.deterministic_rules(), self._rules
        mu, total = self.start.unsqueeze(0), torch.zeros(1, dtype=torch.float64)
        for t in range(self.horizon):
            every = rules.repeat(len(mu), 1, 1)
            mu, reward = self.step(mu.repeat_interleave(count, 0), every)
            total = total.repeat_interleave(count) + self.discount**t * reward
        return total

    def brute_force(self) -> Course:
        """The best of all sequences of deterministic rules; rules with chance may do better still.

        Raises InputError where they are more than 2^20.
        """
        values = self.all_values()
        best = int(values.argmax())
        digits = [best // self._rules**t % self._rules for t in reversed(range(self.horizon))]
        chosen = self.deterministic_rules()[digits]
        return Course(self.flow(chosen), chosen, float(values[best]))

    def best(self) -> Course | None:
        """The best of deterministic rules, by brute force or else on a grid; None where neither is in reach.

        What the grid finds is followed exactly, so that its value is reached, though perhaps not the very best.
        """
        if self.countable:
            return self.brute_force()
        if self.world.states != 2 or self._rules > MOST_ON_GRID:
            return None
        return self.follow(self.on_grid())

    def on_grid(self, points: int = 1001) -> GridPolicy:
        """Value iteration over deterministic rules on a grid of mu, between whose points values are linear.

        Raises InputError for more than two states, and fewer than two points.
        """
        if self.world.states != 2 or points < 2:
            raise InputError(
                f"The grid is for swarms of 2 states and has at least 2 points; got {self.world.states} states, "
                f"{points} points."
            )
        grid = torch.linspace(0, 1, points, dtype=torch.float64)
        policy = GridPolicy(self, [torch.zeros_like(grid)])
        for _ in range(self.horizon):
            value = policy.options(0, torch.stack([1 - grid, grid], -1)).amax(-1)
            policy = GridPolicy(self, [value, *policy.values])
        return policy

    @property
    def _rules(self) -> int:
        return self.world.actions**self.world.observations

    def _start(self, rules: Float[Tensor, "*B T Y U"]) -> Float[Tensor, "*B X"]:
        return self.start.to(rules).expand(*rules.shape[:-3], -1)


class GridPolicy:
    """The closed loop that value iteration found: at step t the deterministic rule that is best from mu on.

    values[t] are the returns from step t on, by the share of the second state on an equidistant grid.
    """

    def __init__(self, limit: FiniteLimit, values: Sequence[Float[Tensor, " points"]]):
        self.limit, self.values = limit, values
        self._rules = limit.deterministic_rules()

    def __call__(self, t: int, mu: Float[Tensor, " X"]) -> Float[Tensor, "Y U"]:
        """The rule for step t."""
        return self._rules[self.options(t + 1, mu).argmax(-1)]

    @property
    def value(self) -> float:
        """The best return from the swarm's start."""
        return float(self._at(0, self.limit.start[1]))

    def options(self, ahead: int, mu: Float[Tensor, "*B X"]) -> Float[Tensor, "*B R"]:
        """Value of each deterministic rule at mu, with values[ahead] afterwards."""
        rules = self._rules.expand(*mu.shape[:-1], -1, -1, -1)
        after, reward = self.limit.step(mu.unsqueeze(-2).expand(*rules.shape[:-2], -1), rules)
        return reward + self.limit.discount * self._at(ahead, after[..., 1])

    def _at(self, t: int, share: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        values = self.values[t]
        place = share.clamp(0, 1) * (len(values) - 1)
        below = place.long().clamp(max=len(values) - 2)
        return torch.lerp(values[below], values[below + 1], place - below)
