"""An epidemic: agents are susceptible or infected, and stay at home or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from envs.drawing import blank_axes, pixels
from envs.swarm.finite import FiniteState, FiniteSwarm
from envs.swarm.spec import require_nonnegative, require_probabilities

GO_OUT, ISOLATE = 0, 1


class SIS(FiniteSwarm):
    """N agents, susceptible (0) or infected (1), that go out (0) or isolate (1) at each step.

    A susceptible agent that goes out is infected with probability `infection` · mu_I, with mu_I the share of the
    infected; one that isolates is safe. An infected agent recovers with probability `recovery`, whatever it does. Each
    infected agent costs the swarm cost_infected / N a step, each that isolates cost_isolated / N. An agent sees its own
    state, wrongly with probability `error`. The start is independent, infected with probability `infected`;
    several such numbers are equally likely, and one of them holds for the whole swarm in an episode.

    `FiniteLimit(world)` has exact values. In the limit of the defaults with a horizon of 6, the best deterministic
    rules let the susceptible isolate for three steps and then go out: -2.5229. If everybody always goes out, the swarm
    earns -3.1764, if the susceptible always isolate -3.5882.
    Raises InputError for fewer than two agents, a horizon below 1, probabilities outside [0, 1] and negative costs.
    """

    def __init__(
        self,
        agents: int = 200,
        horizon: int = 30,
        *,
        infection: float = 0.8,
        recovery: float = 0.3,
        infected: float | Sequence[float] = 0.4,
        error: float = 0.0,
        cost_infected: float = 1.0,
        cost_isolated: float = 0.5,
    ):
        shares = [infected] if isinstance(infected, str) or not isinstance(infected, Sequence) else list(infected)
        require_probabilities(infection=infection, recovery=recovery, error=error)
        for share in shares:
            require_probabilities(infected=share)
        require_nonnegative(cost_infected=cost_infected, cost_isolated=cost_isolated)
        self.infection, self.recovery = infection, recovery
        self.cost_infected, self.cost_isolated = cost_infected, cost_isolated
        sees = [[1 - error, error], [error, 1 - error]]
        super().__init__(agents, horizon, start=[[1 - share, share] for share in shares], sees=sees, actions=2)

    def kernel(self, mu: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 2 2 2"]:
        """The probabilities P(x' | x, u, mu)."""
        caught = self.infection * mu[..., 1]
        safe, ill = torch.zeros_like(caught), torch.full_like(caught, 1 - self.recovery)
        infected = torch.stack([caught, safe, ill, ill], -1).unflatten(-1, (2, 2))
        return torch.stack([1 - infected, infected], -1)

    def payoff(self, mu: Float[Tensor, "*B 2"]) -> Float[Tensor, "*B 2 2"]:
        """Minus the costs of being infected and of isolating."""
        none = torch.zeros_like(mu[..., 0])
        ill, home = none + self.cost_infected, none + self.cost_isolated
        return -torch.stack([none, home, ill, ill + home], -1).unflatten(-1, (2, 2))

    def frame(self, state: FiniteState) -> Any:
        """The agents side by side in a square, the infected in red."""
        agents = state.state.shape[1]
        side = int((agents - 1) ** 0.5) + 1
        axes = blank_axes((-1.0, float(side)), (-float(side), 1.0))
        x, y = [i % side for i in range(agents)], [-(i // side) for i in range(agents)]
        colors = ["tab:red" if ill else "tab:blue" for ill in state.state[0].tolist()]
        axes.scatter(x, y, s=(200 / side) ** 2, c=colors, linewidths=0)
        return pixels(axes)
