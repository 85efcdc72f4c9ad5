"""Swarms whose agents have finitely many states, observations and actions: N agents, and the exact limit of many."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor

from envs.constants import Constants
from envs.core import Discrete, InputError, Observation
from envs.swarm.features import frequencies
from envs.swarm.spec import swarm_spec
from envs.world import Transition, World

# The most rule sequences that brute force compares.
MOST_SEQUENCES = 2**20


class FiniteState(NamedTuple):
    """Each agent's state and what it observes of it."""

    state: Int[Tensor, "E N"]
    seen: Int[Tensor, "E N"]


class FiniteSwarm(World[FiniteState]):
    """N agents with X states, Y observations and U actions that meet only through mu, the shares of the X states.

    x_0 ~ `start` [X], y ~ `sees`[x] [X,Y], u by a rule, x' ~ `kernel`(mu)[x, u]; a step from x earns the mean of
    `payoff`(mu)[x, u] over the agents. Agents see y as one of Y, one-hot, and never the clock; the critic sees mu and
    the clock. Subclasses define kernel and payoff, differentiable in mu and in the number type of mu. `FiniteLimit`
    is the same swarm with infinitely many agents.
    Raises InputError for fewer than two agents and for tables that are no probabilities.
    """

    shows_clock = False

    def __init__(
        self, agents: int, horizon: int, *, start: Sequence[float], sees: Sequence[Sequence[float]], actions: int
    ):
        self.start = _probabilities(start, "start")
        self.sees = _probabilities(sees, "sees")
        if self.start.dim() != 1 or self.sees.dim() != 2 or len(self.sees) != len(self.start):
            raise InputError(
                f"start must be [X] and sees [X,Y]; got {list(self.start.shape)} and {list(self.sees.shape)}."
            )
        if actions < 1:
            raise InputError(f"Agents need at least one action; got actions={actions}.")
        self.states, self.observations, self.actions = *self.sees.shape, actions
        self.spec = swarm_spec(agents, self.observations, Discrete((actions,)), self.states, horizon)
        self._start, self._sees = (Constants(_thresholds(table).float()) for table in (self.start, self.sees))

    @abstractmethod
    def kernel(self, mu: Float[Tensor, "*B X"]) -> Float[Tensor, "*B X U X"]:
        """The probabilities P(x' | x, u, mu)."""

    @abstractmethod
    def payoff(self, mu: Float[Tensor, "*B X"]) -> Float[Tensor, "*B X U"]:
        """What an agent in x that does u earns for the swarm's mean."""

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N 2"]:
        """Uniform numbers in [0, 1): for states and for what is seen of them."""
        return torch.rand(num, len(self.spec.agents), 2, generator=generator, device=generator.device)

    def initial(self, noise: Float[Tensor, "E N 2"]) -> FiniteState:
        """Independent draws from `start`."""
        return self._seen(_draw(self._start.on(noise.device), noise[..., 0]), noise)

    def noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N 2"]:
        """Uniform numbers in [0, 1): for states and for what is seen of them."""
        return self.initial_noise(num, generator)

    def transition(self, state: FiniteState, action: Num[Tensor, "E N 1"], noise: Float[Tensor, "E N 2"]) -> Transition:
        """Everybody earns the mean payoff, and moves by the shares of states before the step."""
        mu, action = self.mean_field(state), action.squeeze(-1)
        case = state.state * self.actions + action
        reward = self.payoff(mu).flatten(1).gather(1, case).mean(1)
        row = torch.arange(len(mu), device=mu.device).unsqueeze(-1)
        moved = _draw(_thresholds(self.kernel(mu)).flatten(1, 2)[row, case], noise[..., 0])
        return Transition(self._seen(moved, noise), reward.view(-1, 1, 1).expand(*action.shape, 1))

    def observe(self, state: FiniteState) -> Observation:
        """Agents see y, the critic mu."""
        alive = torch.ones_like(state.seen, dtype=torch.bool)
        return Observation(F.one_hot(state.seen, self.observations).float(), self.mean_field(state), alive)

    def mean_field(self, state: FiniteState) -> Float[Tensor, "E X"]:
        """mu, the share of agents in each state."""
        return frequencies(state.state, self.states)

    def _seen(self, state: Int[Tensor, "E N"], noise: Float[Tensor, "E N 2"]) -> FiniteState:
        return FiniteState(state, _draw(self._sees.on(state.device)[state], noise[..., 1]))


class Course(NamedTuple):
    """How a swarm of infinitely many agents fares: mu at t = 0 … H, the rules at t = 0 … H-1, and its return."""

    mu: Float[Tensor, "T1 X"]
    rules: Float[Tensor, "T Y U"]
    value: float


class FiniteLimit:
    """A finite swarm with infinitely many agents: mu_{t+1} = T(mu_t, rule_t), exact and without chance.

    A rule [Y,U] holds the probabilities of actions by observation, and all agents follow it. As nothing is random,
    rules chosen by looking at mu and the same rules written down in advance have the same value. Computed in float64;
    sums of rewards are undiscounted unless `discount` says otherwise. Raises InputError for a discount outside [0, 1].
    """

    def __init__(self, world: FiniteSwarm, discount: float = 1.0):
        if not 0 <= discount <= 1:
            raise InputError(f"discount must be between 0 and 1; got {discount}.")
        assert world.spec.horizon is not None
        self.world, self.horizon, self.discount = world, world.spec.horizon, discount

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
        found = [mu]
        for rule in rules.unbind(-3):
            mu, _ = self.step(mu, rule)
            found.append(mu)
        return torch.stack(found, -2)

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
        mu, total = self.world.start, torch.zeros((), dtype=torch.float64)
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

    def brute_force(self) -> Course:
        """The best of all sequences of deterministic rules; rules with chance may do better still.

        Raises InputError where they are more than 2^20.
        """
        rules = self.deterministic_rules()
        count = len(rules)
        if count**self.horizon > MOST_SEQUENCES:
            raise InputError(
                f"Brute force compares up to {MOST_SEQUENCES} rule sequences; here are {count}^{self.horizon}. Take a "
                "shorter horizon, or on_grid()."
            )
        mu, total = self.world.start.unsqueeze(0), torch.zeros(1, dtype=torch.float64)
        for t in range(self.horizon):
            every = rules.repeat(len(mu), 1, 1)
            mu, reward = self.step(mu.repeat_interleave(count, 0), every)
            total = total.repeat_interleave(count) + self.discount**t * reward
        best = int(total.argmax())
        digits = [best // count**t % count for t in reversed(range(self.horizon))]
        chosen = rules[digits]
        return Course(self.flow(chosen), chosen, float(total[best]))

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

    def _start(self, rules: Float[Tensor, "*B T Y U"]) -> Float[Tensor, "*B X"]:
        return self.world.start.to(rules).expand(*rules.shape[:-3], -1)


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
        return float(self._at(0, self.limit.world.start[1]))

    def options(self, ahead: int, mu: Float[Tensor, "*B X"]) -> Float[Tensor, "*B R"]:
        """What each deterministic rule earns at mu, with values[ahead] afterwards."""
        rules = self._rules.expand(*mu.shape[:-1], -1, -1, -1)
        after, reward = self.limit.step(mu.unsqueeze(-2).expand(*rules.shape[:-2], -1), rules)
        return reward + self.limit.discount * self._at(ahead, after[..., 1])

    def _at(self, t: int, share: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        values = self.values[t]
        place = share.clamp(0, 1) * (len(values) - 1)
        below = place.long().clamp(max=len(values) - 2)
        return torch.lerp(values[below], values[below + 1], place - below)


def _thresholds(probabilities: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K1"]:
    """Where, in [0, 1), one outcome ends and the next begins; the last takes what rounding leaves."""
    return probabilities.cumsum(-1)[..., :-1]


def _draw(thresholds: Float[Tensor, "*B K1"], uniform: Float[Tensor, "E N"]) -> Int[Tensor, "E N"]:
    """The outcomes that uniform numbers fall on."""
    return (uniform.unsqueeze(-1) >= thresholds).sum(-1)


def _probabilities(table: Sequence[float] | Sequence[Sequence[float]], name: str) -> Tensor:
    try:
        found = torch.as_tensor(table, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be a full table of probabilities; got {table}.") from error
    sums_to_one = found.dim() > 0 and found.numel() > 0 and torch.allclose(found.sum(-1), found.new_ones(()))
    if not sums_to_one or bool((found < 0).any()):
        raise InputError(f"{name} must hold probabilities that sum to 1 along its last axis; got {table}.")
    return found
