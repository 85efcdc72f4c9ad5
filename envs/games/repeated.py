"""Games of many steps."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Num
from torch import Tensor

from envs.core import Discrete, EnvSpec, InputError, Observation
from envs.dags import Edges, parents
from envs.world import Transition, World

# Beyond |zeros - ones| = margin a state of the coordination game counts as coordinated.
MARGINS = {2: 1, 3: 1, 5: 2, 10: 3}


class CoordinationGame(World[Float[Tensor, "E N"]]):
    """N agents steer a fully observed state of N bits: bit i becomes a_i, flipped with probability `flip`.

    With z zeros, o ones and a margin l that depends on N (2: 1, 3: 1, 5: 2, 10: 3), the state before the step earns the
    team 3 if z - o > l, 2 if o - z > l, else 1 if o > z, else 0. Each bit starts as 0 with probability 1/N. Agents do
    not see the clock, and each has its own kind, as in the original. horizon=None makes the game endless.
    Source: Chen and Zhang, ICML 2023 (arXiv 2306.01920), and its code. Raises InputError for other numbers of agents,
    for a flip outside [0, 1] and for a horizon below 1.
    """

    shows_clock = False

    def __init__(self, agents: int = 3, flip: float = 0.1, horizon: int | None = 25):
        if agents not in MARGINS:
            raise InputError(f"The coordination game is defined for {sorted(MARGINS)} agents; got agents={agents}.")
        if not 0 <= flip <= 1:
            raise InputError(f"flip is a probability between 0 and 1; got {flip}.")
        if horizon is not None and horizon < 1:
            raise InputError(f"A horizon is at least 1 step, or null for an endless game; got {horizon}.")
        self.spec = EnvSpec(
            agents=tuple(f"agent_{i}" for i in range(agents)),
            kind=tuple(range(agents)),
            channels=("team",),
            observation_sizes=(agents,) * agents,
            actions=(Discrete((2,)),) * agents,
            state_size=agents,
            horizon=horizon,
        )
        self.flip = flip

    @property
    def starts_at_zero(self) -> float:
        """The probability that a bit is 0 at the start."""
        return 1 / len(self.spec.agents)

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N"]:
        """Uniform numbers in [0, 1)."""
        return torch.rand(num, len(self.spec.agents), generator=generator, device=generator.device)

    def initial(self, noise: Float[Tensor, "E N"]) -> Float[Tensor, "E N"]:
        """Each bit is 0 with probability 1/N."""
        return (noise >= self.starts_at_zero).float()

    def noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N"]:
        """Uniform numbers in [0, 1), one a bit; a bit flips where its number is below `flip`."""
        return torch.rand(num, len(self.spec.agents), generator=generator, device=generator.device)

    def transition(
        self, state: Float[Tensor, "E N"], action: Num[Tensor, "E N 1"], noise: Float[Tensor, "E N"]
    ) -> Transition:
        """The old state is rewarded, the actions become the new one."""
        flipped = (action.squeeze(-1) == 1) ^ (noise < self.flip)
        reward = self.team_reward(state.sum(-1)).view(-1, 1, 1)
        return Transition(flipped.to(state), reward.expand(-1, state.shape[1], 1))

    def team_reward(self, ones: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Reward of a state with so many ones."""
        agents = len(self.spec.agents)
        lead, margin = agents - 2 * ones, MARGINS[agents]
        return 3.0 * (lead > margin) + 2.0 * (lead < -margin) + 1.0 * ((lead < 0) & (lead >= -margin))

    def observe(self, state: Float[Tensor, "E N"]) -> Observation:
        """Everybody sees all bits, as +1 or -1."""
        bits = 2 * state - 1
        agent = bits.unsqueeze(1).expand(-1, state.shape[1], -1)
        return Observation(agent, bits, torch.ones_like(state, dtype=torch.bool))

    def expected_reward(self, ones: int) -> float:
        """Expected reward of the state that follows a joint action with so many ones.

        r̄(k) = Σ_o P(Bin(k, 1-flip) + Bin(N-k, flip) = o) · r(o).
        """
        zeros = len(self.spec.agents) - ones
        kept, turned = _binomial(ones, 1 - self.flip), _binomial(zeros, self.flip)
        rewards = self._rewards()
        return sum(p * q * rewards[i + j] for i, p in enumerate(kept) for j, q in enumerate(turned))

    def optimal_value(self, graph: Edges, discount: float = 1.0) -> float:
        """E r(s_0) + Σ_{0<t<horizon} discount^t · max_k r̄(k), under every graph.

        The next state depends on the action alone, so repeating one best joint action (all zeros) is optimal, and that
        is a product of policies. An endless game gives E r(s_0) + discount/(1-discount) · max_k r̄(k). Raises InputError
        for a discount outside [0, 1], or of 1 where the game is endless.
        """
        agents, horizon = len(self.spec.agents), self.spec.horizon
        parents(graph, agents)
        if not 0 <= discount <= 1 or (horizon is None and discount == 1):
            raise InputError(
                f"A discount lies between 0 and 1, and below 1 where the game is endless; got {discount} with "
                f"horizon={horizon}. Pass optimal_value(graph, discount=0.95), or give the game a horizon."
            )
        start = sum(p * r for p, r in zip(_binomial(agents, 1 - self.starts_at_zero), self._rewards(), strict=True))
        later = discount / (1 - discount) if horizon is None else sum(discount**t for t in range(1, horizon))
        return start + later * max(self.expected_reward(ones) for ones in range(agents + 1))

    def _rewards(self) -> list[float]:
        return self.team_reward(torch.arange(len(self.spec.agents) + 1.0)).tolist()


def _binomial(count: int, probability: float) -> list[float]:
    """P(Bin(count, probability) = i) for i = 0, …, count."""
    p, q = probability, 1 - probability
    return [math.comb(count, i) * p**i * q ** (count - i) for i in range(count + 1)]
