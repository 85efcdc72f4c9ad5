"""A game with a constraint on every agent."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Num
from torch import Tensor

from envs.core import InputError, Observation
from envs.dags import Edges, parents
from envs.games.one_shot import Hidden, OneShot, one_shot_spec, see
from envs.world import Transition


class BudgetGame(OneShot):
    """Two agents earn 1 if they act alike, and each must play 1 in a given share of episodes, no more and no less.

    Channel "alike" is the team's reward; channel "ones" is each agent's own, 1 - share if it plays 1, else -share,
    whose mean must be 0. Raises InputError for a share outside [0, 1].
    """

    def __init__(self, share: float = 0.5):
        if not 0 <= share <= 1:
            raise InputError(f"share is a share of episodes between 0 and 1; got {share}.")
        self.share = share
        spec = one_shot_spec((0, 1), (2, 2), contexts=1, state_size=1)
        self.spec = replace(spec, channels=("alike", "ones"))

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E 0"]:
        """Nothing is random."""
        return torch.empty(num, 0, device=generator.device)

    def initial(self, noise: Float[Tensor, "E 0"]) -> Hidden:
        """A constant."""
        return noise.new_ones(len(noise), 1)

    def transition(self, state: Hidden, action: Num[Tensor, "E 2 1"], noise: None) -> Transition:
        """The team's reward, and each agent's deviation from its budget."""
        alike = super().transition(state, action, noise).reward
        return Transition(state, torch.cat([alike, action.to(alike) - self.share], -1))

    def team_reward(self, state: Hidden, action: Num[Tensor, "E 2"]) -> Float[Tensor, " E"]:
        """1 if both act alike."""
        return (action[:, 0] == action[:, 1]).to(state)

    def observe(self, state: Hidden) -> Observation:
        """Nothing, (1, 0), for everybody."""
        return see(state, state, state.new_zeros(len(state), 2))

    def deviation(self, reward: Float[Tensor, "E 2 2"]) -> Float[Tensor, " 2"]:
        """The constraint: by how much each agent's share of ones exceeds its budget; a policy must make this 0."""
        return reward[..., 1].mean(0)

    def optimal_value(self, graph: Edges) -> float:
        """The best probability to act alike within the budget: 1 with an edge, else share² + (1 - share)².

        With an edge one agent draws and the other copies. Without one the constraint leaves a single policy.
        """
        return 1.0 if any(parents(graph, 2).values()) else self.share**2 + (1 - self.share) ** 2
