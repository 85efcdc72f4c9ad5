"""Worlds that test a learner: what they are worth is plain, so whoever misses it has a mistake."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from envs.core import Discrete, EnvSpec, InputError, Observation
from envs.games.one_shot import see
from envs.world import Transition, World


class Constant(World[Float[Tensor, "E 1"]]):
    """Reward 1 at every step, whatever is done: V = 1/(1-γ), or (1-γ^h)/(1-γ) with a horizon of h steps.

    A diagnostic: a horizon terminates, a time limit truncates and must leave the first value in place.
    """

    def __init__(self, agents: int = 1, horizon: int | None = None):
        if agents < 1:
            raise InputError(f"A world needs at least one agent; got agents={agents}.")
        self.spec = EnvSpec(
            agents=tuple(f"agent_{i}" for i in range(agents)),
            kind=(0,) * agents,
            channels=("one",),
            observation_sizes=(2,) * agents,
            actions=(Discrete((2,)),) * agents,
            state_size=1,
            horizon=horizon,
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E 0"]:
        """Nothing is random."""
        return torch.empty(num, 0, device=generator.device)

    def initial(self, noise: Float[Tensor, "E 0"]) -> Float[Tensor, "E 1"]:
        """A constant."""
        return noise.new_ones(len(noise), 1)

    def transition(self, state: Float[Tensor, "E 1"], action: Num[Tensor, "E N 1"], noise: None) -> Transition:
        """Nothing changes."""
        return Transition(state, state.unsqueeze(1).expand(-1, action.shape[1], -1))

    def observe(self, state: Float[Tensor, "E 1"]) -> Observation:
        """Nothing, (1, 0) as in the games, for everybody."""
        return see(state, state, state.new_zeros(len(state), len(self.spec.agents)))


class Identity(World[Int[Tensor, "E N"]]):
    """Each agent sees a random choice as a one-hot vector and earns 1 if it makes that choice. One step.

    A diagnostic: the best return is 1, that of random play 1/choices.
    """

    shows_clock = False

    def __init__(self, choices: int = 4, agents: int = 1):
        if agents < 1 or choices < 2:
            raise InputError(f"Identity needs one agent and two choices at least; got {agents=}, {choices=}.")
        self.choices = choices
        self.spec = EnvSpec(
            agents=tuple(f"agent_{i}" for i in range(agents)),
            kind=(0,) * agents,
            channels=("right",),
            observation_sizes=(choices,) * agents,
            actions=(Discrete((choices,)),) * agents,
            state_size=choices * agents,
            horizon=1,
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> Int[Tensor, "E N"]:
        """The choices to be named."""
        shape = (num, len(self.spec.agents))
        return torch.randint(self.choices, shape, generator=generator, device=generator.device)

    def initial(self, noise: Int[Tensor, "E N"]) -> Int[Tensor, "E N"]:
        """The choices to be named."""
        return noise

    def transition(self, state: Int[Tensor, "E N"], action: Num[Tensor, "E N 1"], noise: None) -> Transition:
        """1 for each agent who is right."""
        return Transition(state, (action == state.unsqueeze(-1)).float())

    def observe(self, state: Int[Tensor, "E N"]) -> Observation:
        """Each agent sees its own choice; `state` holds all."""
        agent = (state.unsqueeze(-1) == torch.arange(self.choices, device=state.device)).float()
        return Observation(agent, agent.flatten(1), torch.ones_like(state, dtype=torch.bool))
