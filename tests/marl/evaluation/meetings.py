"""A world whose cross-play is known: two agents meet, or do not, and have scripted partners."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.core import Actor, Decision, Discrete, EnvSpec, Observation, Streams, Tree
from envs.tabular import Digits, Table, tabulate
from envs.world import Transition, World
from marl.models.distributions import IndependentCategorical


class Place(NamedTuple):
    """prize [E] of meeting at the next step; done [E], steps taken, at most 3."""

    prize: Tensor
    done: Tensor


class Meeting(World[Place]):
    """Each of three steps, agents who choose alike earn the prize, 1 or 2, drawn at the start if `varied`.

    left earns .5 more whenever it chooses 1. A second channel pays 10 a step for nothing. uneven: episodes with the
    prize 1 end after two steps. pays: otherwise nobody meets.
    """

    def __init__(
        self,
        varied: bool = True,
        horizon: int | None = 3,
        agents: int = 2,
        partners: bool = True,
        uneven: bool = False,
        pays: bool = True,
    ):
        self.varied, self.has_partners, self.uneven, self.pays = varied, partners, uneven, pays
        names = ("left", "right", "third")[:agents]
        self.spec = EnvSpec(
            names, (0,) * agents, ("meet", "noise"), (1,) * agents, (Discrete((2,)),) * agents, 2, horizon
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.rand(num, generator=generator)

    def initial(self, noise: Tensor) -> Place:
        return Place(1 + (noise > 0.5).long() * self.varied, torch.zeros_like(noise).long())

    def transition(self, state: Place, action: Tensor, noise: None) -> Transition:
        choice = action.squeeze(-1)
        alike = (choice == choice[:, :1]).all(1)
        paid = (alike * state.prize + 0.5 * (choice[:, 0] == 1)) * self.pays
        meet = paid.unsqueeze(-1).expand(-1, choice.shape[1])
        reward = torch.stack([meet, torch.full_like(meet, 10.0)], -1)
        done = (state.done + 1).clamp(max=3)
        over = (done > state.prize).unsqueeze(-1).expand_as(meet) if self.uneven else None
        return Transition(Place(state.prize, done), reward, over)

    def observe(self, state: Place) -> Observation:
        agents = len(self.spec.agents)
        seen = state.prize.float().view(-1, 1)
        whole = torch.stack([state.prize, state.done], 1).float()
        return Observation(
            seen.unsqueeze(1).expand(-1, agents, -1), whole, torch.ones(len(seen), agents, dtype=torch.bool)
        )

    def known(self) -> dict[str, float]:
        return {"meet/always": 6.0, "always": 40.0}

    def frame(self, state: Place) -> Any:
        return torch.zeros(4, 4, 3, dtype=torch.uint8).numpy() + self.varied

    def partners(self) -> dict[str, Actor]:
        agents = len(self.spec.agents)
        return {"zeros": Constant(0, agents), "ones": Constant(1, agents)} if self.has_partners else {}

    def table(self, most: int = 100) -> Table:
        first = Place(torch.tensor([1]), torch.tensor([0]))
        return tabulate(self, first, lambda s: Digits(torch.stack([s.prize, s.done], 1), (3, 4)), channel=0, most=most)


class Constant:
    """Every agent always makes one choice."""

    def __init__(self, choice: int, agents: int = 2):
        self.choice, self.agents = choice, agents

    def initial_memory(self, num_envs: int) -> None:
        return None

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        return Decision(torch.full((*obs.alive.shape, 1), self.choice)), None

    def probabilities(self, state: Any) -> Tensor:
        return torch.eye(2)[self.choice].expand(len(state.prize), self.agents, 2)


class Often:
    """Every agent chooses 1 with a probability; a JointActor."""

    def __init__(self, chance: float):
        self.logits = torch.tensor([1 - chance, chance]).log()

    def initial_memory(self, num_envs: int) -> None:
        return None

    def __call__(self, obs: Observation, memory: Tree) -> tuple[IndependentCategorical, Tree]:
        return IndependentCategorical(self.logits.expand(*obs.alive.shape, 2), (2,), obs.legal), None

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        distribution, memory = self(obs, memory)
        return distribution.sample(streams), memory


class Recalls(Often):
    """Decides independently, and remembers something."""

    def initial_memory(self, num_envs: int) -> Any:
        return torch.zeros(num_envs, 1)


class Remembers:
    """Every agent chooses 0 and 1 in turn, by what it remembers, beginning with a random one."""

    def initial_memory(self, num_envs: int) -> Tensor:
        return torch.zeros(num_envs, 1)

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        first = (streams.exponential((len(memory), 1)) > 0.7).float() + 1
        memory = torch.where(memory > 0, 3 - memory, first)
        return Decision((memory - 1).long().unsqueeze(1).expand(*obs.alive.shape, 1)), memory
