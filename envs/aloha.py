"""Slotted Aloha on a ladder: neighbors who send at once jam each other."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from envs.constants import Constants
from envs.core import Discrete, EnvSpec, InputError, Observation
from envs.drawing import blank_axes, pixels
from envs.world import Transition, World

Backlog = Int[Tensor, "E 10"]

RUNGS = 5
AGENTS = 2 * RUNGS
CAPACITY = 5
ARRIVAL = 0.6
SENT, JAMMED = 0.1, -10.0


class Aloha(World[Backlog]):
    """Ten stations on a 2x5 ladder decide at every step whether to send (1) or to wait (0).

    Stations 0-4 are one rail, 5-9 the other, and i faces i+5. A sender with a message delivers it and earns 0.1 if no
    neighbor sends, else earns -10 and keeps the message. Sending with an empty queue earns nothing and still jams the
    neighbors. The team is paid the sum. Each queue starts with one message; after service each gets another with
    probability 0.6, up to 5. An episode has `horizon` steps, 20 in the original.

    A station sees its own queue as two numbers, length / 5 and whether it holds a message (1 or -1), and never the
    clock; the critic sees all ten lengths / 5 and the clock. Each station has its own kind: where it stands matters,
    and it does not see that.

    The published game has one edge more, 4-5, an accident of numbering; wrap_around=False is the ladder alone.

    Mean returns (20,000 episodes, s.e. below 0.01 except for the first) in the published game, and on the ladder alone:
    - everybody sends with probability 0.05: -12.4 (-11.5);
    - {0, 2, 4, 6, 8} always send: 0.5 (1 + 19 · 0.6) = 6.20 on both, exactly; the best rule known that needs neither
      memory nor a clock nor messages;
    - in index order, send a message if no neighbor before sends, a Bayesian network along `ladder`: 9.22 (9.27);
    - {0, 2, 4, 6, 8} and the others in turn, which needs a clock: 9.55;
    - the independent set that can deliver most, ties to the longest queues, which needs all queues seen: 9.70;
    - nobody exceeds `bound`, 10.
    Source: Chen and Zhang, ICML 2023 (arXiv 2306.01920), and its code. Raises InputError for a horizon below 1.
    """

    shows_clock = False

    def __init__(self, wrap_around: bool = True, horizon: int = 20):
        if horizon < 1:
            raise InputError(f"A horizon is at least 1 step; got {horizon}.")
        self.spec = EnvSpec(
            agents=tuple(f"station_{i}" for i in range(AGENTS)),
            kind=tuple(range(AGENTS)),
            channels=("team",),
            observation_sizes=(2,) * AGENTS,
            actions=(Discrete((2,)),) * AGENTS,
            state_size=AGENTS,
            horizon=horizon,
        )
        self.edges = ladder(wrap_around)
        one_way = torch.zeros(AGENTS, AGENTS)
        one_way[tuple(zip(*self.edges))] = 1
        self._adjacency = Constants(one_way + one_way.T)

    @property
    def bound(self) -> float:
        """Bound on the return: at most five stations, an independent set of the ladder, deliver at every step."""
        assert self.spec.horizon is not None
        return SENT * RUNGS * self.spec.horizon

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E 0"]:
        """Nothing is random."""
        return torch.empty(num, 0, device=generator.device)

    def initial(self, noise: Float[Tensor, "E 0"]) -> Backlog:
        """One message in each queue."""
        return torch.ones(len(noise), AGENTS, dtype=torch.int64, device=noise.device)

    def noise(self, num: int, generator: torch.Generator) -> Bool[Tensor, "E 10"]:
        """True where a message arrives after service."""
        return torch.rand(num, AGENTS, generator=generator, device=generator.device) < ARRIVAL

    def transition(self, state: Backlog, action: Num[Tensor, "E 10 1"], noise: Bool[Tensor, "E 10"]) -> Transition:
        """Service, then arrivals. Everybody earns the team's reward."""
        sends = action.squeeze(-1) == 1
        jammed = (sends.float() @ self._adjacency.on(state.device)) > 0
        tries = sends & (state > 0)
        served = tries & ~jammed
        reward = (SENT * served + JAMMED * (tries & jammed)).sum(-1)
        backlog = (state - served.to(state.dtype) + noise).clamp(max=CAPACITY)
        return Transition(backlog, reward.view(-1, 1, 1).expand(-1, AGENTS, 1))

    def observe(self, state: Backlog) -> Observation:
        """Agents see their own queue, the critic all."""
        share = state / CAPACITY
        own = torch.stack([share, 2 * (state > 0).to(share) - 1], -1)
        return Observation(own, share, torch.ones_like(state, dtype=torch.bool))

    def frame(self, state: Backlog) -> Any:
        """The ladder; the fuller a queue, the darker its station, which shows its length."""
        axes = blank_axes((-0.7, 4.7), (-2.7, 2.7))
        places = [(i % RUNGS, 0.7 if i < RUNGS else -0.7) for i in range(AGENTS)]
        for pair in self.edges:
            axes.plot(*zip(*(places[i] for i in pair)), color="gray", zorder=1)
        backlog = state[0].tolist()
        x, y = zip(*places)
        axes.scatter(x, y, s=900, c=backlog, cmap="Oranges", vmin=0, vmax=CAPACITY, edgecolors="black", zorder=2)
        for place, length in zip(places, backlog):
            axes.text(*place, str(length), ha="center", va="center", zorder=3)
        return pixels(axes)


def ladder(wrap_around: bool = True) -> list[tuple[int, int]]:
    """Pairs of neighbors (i, j), i < j. Also the graph along which stations who see earlier neighbors can act."""
    rails = [(i, i + 1) for i in range(AGENTS - 1) if wrap_around or i != RUNGS - 1]
    return sorted(rails + [(i, i + RUNGS) for i in range(RUNGS)])
