"""Swarms whose agents have finitely many states, observations and actions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
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


class FiniteState(NamedTuple):
    """Each agent's state and what it observes of it."""

    state: Int[Tensor, "E N"]
    seen: Int[Tensor, "E N"]


class FiniteNoise(NamedTuple):
    """Uniform numbers in [0, 1): for each agent's state and what is seen of it, and for where the swarm starts."""

    own: Float[Tensor, "E N 2"]
    common: Float[Tensor, " E"]


class FiniteSwarm(World[FiniteState]):
    """N agents with X states, Y observations and U actions that meet only through mu, the shares of the X states.

    x_0 ~ `start` [X], y ~ `sees`[x] [X,Y], u by a rule, x' ~ `kernel`(mu)[x, u]; a step from x earns the mean of
    `payoff`(mu)[x, u] over the agents. A start [S,X] holds several, of which each episode has one for the whole swarm,
    all equally likely. Agents see y as one of Y, one-hot, and never the clock; the critic sees mu and the clock.
    Subclasses define kernel and payoff, differentiable in mu and in the number type of mu. `FiniteLimit` is the same
    swarm with infinitely many agents.
    Raises InputError for fewer than two agents and for tables that are no probabilities.
    """

    shows_clock = False

    def __init__(
        self,
        agents: int,
        horizon: int,
        *,
        start: Sequence[float] | Sequence[Sequence[float]],
        sees: Sequence[Sequence[float]],
        actions: int,
    ):
        starts, self.sees = _probabilities(start, "start"), _probabilities(sees, "sees")
        if starts.dim() > 2 or self.sees.dim() != 2 or len(self.sees) != starts.shape[-1]:
            raise InputError(
                f"start must be [X] or [S,X], and sees [X,Y]; got {list(starts.shape)} and {list(self.sees.shape)}."
            )
        self.starts = starts.view(-1, starts.shape[-1])
        if actions < 1:
            raise InputError(f"Agents need at least one action; got actions={actions}.")
        self.states, self.observations, self.actions = *self.sees.shape, actions
        self.spec = swarm_spec(agents, self.observations, Discrete((actions,)), self.states, horizon)
        self._starts, self._sees = (Constants(_thresholds(table).float()) for table in (self.starts, self.sees))

    @abstractmethod
    def kernel(self, mu: Float[Tensor, "*B X"]) -> Float[Tensor, "*B X U X"]:
        """The probabilities P(x' | x, u, mu)."""

    @abstractmethod
    def payoff(self, mu: Float[Tensor, "*B X"]) -> Float[Tensor, "*B X U"]:
        """Reward that an agent in x that does u adds to the swarm's mean."""

    def initial_noise(self, num: int, generator: torch.Generator) -> FiniteNoise:
        """One number a swarm, two an agent."""
        own = self.noise(num, generator)
        return FiniteNoise(own, torch.rand(num, generator=generator, device=generator.device))

    def initial(self, noise: FiniteNoise) -> FiniteState:
        """Independent draws from one of the starts, the same for all agents of a swarm."""
        own, starts = noise.own, self._starts.on(noise.own.device)
        start = starts[(noise.common * len(starts)).long().clamp(max=len(starts) - 1)]
        return self._seen(_draw(start.unsqueeze(1), own[..., 0]), own)

    def noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N 2"]:
        """Uniform numbers in [0, 1): for states and for what is seen of them."""
        return torch.rand(num, len(self.spec.agents), 2, generator=generator, device=generator.device)

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


def _thresholds(probabilities: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K1"]:
    """Where, in [0, 1), one outcome ends and the next begins; the last takes what rounding leaves."""
    return probabilities.cumsum(-1)[..., :-1]


def _draw(thresholds: Float[Tensor, "*B K1"], uniform: Float[Tensor, "E N"]) -> Int[Tensor, "E N"]:
    """The outcomes that uniform numbers fall on."""
    return (uniform.unsqueeze(-1) >= thresholds).sum(-1)


def _probabilities(table: Sequence[float] | Sequence[Sequence[float]], name: str) -> Tensor:
    try:
        shares = torch.as_tensor(table, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be a full table of probabilities; got {table}.") from error
    empty = shares.dim() == 0 or shares.numel() == 0
    if empty or bool((shares < 0).any()) or not torch.allclose(shares.sum(-1), shares.new_ones(())):
        raise InputError(f"{name} must hold probabilities that sum to 1 along its last axis; got {table}.")
    return shares
