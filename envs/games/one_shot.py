"""Games of one joint action: with a table of payoffs, or with private information that actions can pass on."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from envs.constants import Constants
from envs.core import Discrete, EnvSpec, InputError, Observation
from envs.dags import Edges, descendants, parents
from envs.world import Transition, World

Hidden = Float[Tensor, "E S"]


class OneShot(World[Hidden]):
    """A game of one joint action and one team reward. The state is all there is to know before acting, [E,S].

    An agent sees the public context as a one-hot vector, then its private signal, 0 if it has none: (1, 0) where there
    is one context and no signal. It does not see its seat: indistinguishable agents who share parameters would be told
    apart by it, and agents of different kinds are told apart by their kinds.
    """

    shows_clock = False

    def transition(self, state: Hidden, action: Num[Tensor, "E N 1"], noise: None) -> Transition:
        """Everybody earns the team's reward; the horizon of one step ends the episode."""
        reward = self.team_reward(state, action.squeeze(-1))
        return Transition(state, reward.view(-1, 1, 1).expand(-1, action.shape[1], 1))

    @abstractmethod
    def team_reward(self, state: Hidden, action: Num[Tensor, "E N"]) -> Float[Tensor, " E"]:
        """Reward of the joint action."""

    @abstractmethod
    def optimal_value(self, graph: Any) -> float:
        """The best expected reward of policies that factorize along `graph`; InputError for an impossible graph."""


class MatrixGame(OneShot):
    """A one-shot game without private information: `payoff[a_1, …, a_N]` is the team's reward.

    Agents have each its own kind, for the best joint action may need them to differ. Raises InputError for payoffs that
    are ragged, not finite, or of fewer than two agents.
    """

    def __init__(self, payoff: Tensor | Sequence[Any]):
        try:
            self.payoff = torch.as_tensor(payoff, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"A payoff is a full table of numbers with one axis per agent; this one is not: {error}."
            ) from error
        if self.payoff.dim() < 2 or not self.payoff.numel() or not bool(self.payoff.isfinite().all()):
            raise InputError(
                "A payoff is a full table of finite numbers with one axis per agent, two agents or more; got shape "
                f"{list(self.payoff.shape)}."
            )
        self.spec = one_shot_spec(tuple(range(self.payoff.dim())), tuple(self.payoff.shape), contexts=1, state_size=1)
        self._table = Constants(self.payoff.float())
        self._legal = Constants(self.spec.legal)

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E 0"]:
        """Nothing is random."""
        return torch.empty(num, 0, device=generator.device)

    def initial(self, noise: Float[Tensor, "E 0"]) -> Hidden:
        """A constant."""
        return noise.new_ones(len(noise), 1)

    def team_reward(self, state: Hidden, action: Num[Tensor, "E N"]) -> Float[Tensor, " E"]:
        """The payoff of the joint action."""
        return self._table.on(state.device)[action.unbind(-1)]

    def observe(self, state: Hidden) -> Observation:
        """Nothing, (1, 0), for everybody."""
        legal = self._legal.on(state.device)
        seen = see(state, state, state.new_zeros(len(state), len(self.spec.agents)))
        return seen if legal is None else replace(seen, legal=legal.expand(len(state), -1, -1))

    def optimal_value(self, graph: Edges) -> float:
        """The largest payoff, under every graph: always playing one best joint action is a product of policies."""
        parents(graph, self.payoff.dim())
        return float(self.payoff.max())


def climbing() -> MatrixGame:
    """The climbing game: 11 at (0, 0), guarded by -30. Product policy gradient from uniform ends at 7.

    Source: Claus and Boutilier, AAAI 1998.
    """
    return MatrixGame([[11, -30, 0], [-30, 7, 6], [0, 0, 5]])


def penalty(k: float = -100.0) -> MatrixGame:
    """The penalty game: 10 at (0, 2) and (2, 0), a safe 2 at (1, 1), and k < 0 for whoever miscoordinates.

    Source: Claus and Boutilier, AAAI 1998, with one agent's actions in reverse order.
    """
    return MatrixGame([[k, 0, 10], [0, 2, 0], [10, 0, k]])


def coordination() -> MatrixGame:
    """One step of the two-agent `CoordinationGame`, in expectation: 2.45 at (0, 0), a strict Nash of 1.65 at (1, 1)."""
    return MatrixGame([[2.45, 0.45], [0.45, 1.65]])


class CopyGame(OneShot):
    """Agent 0 sees a fair bit x, agent 1 sees nothing; the reward is 1 if agent 1 plays x."""

    def __init__(self) -> None:
        self.spec = one_shot_spec((0, 1), (2, 2), contexts=1, state_size=1)

    def initial_noise(self, num: int, generator: torch.Generator) -> Int[Tensor, " E"]:
        """A fair bit."""
        return torch.randint(2, (num,), generator=generator, device=generator.device)

    def initial(self, noise: Int[Tensor, " E"]) -> Hidden:
        """The bit as +1 or -1."""
        return (2.0 * noise - 1.0).unsqueeze(-1)

    def team_reward(self, state: Hidden, action: Num[Tensor, "E N"]) -> Float[Tensor, " E"]:
        """1 if agent 1 plays the bit."""
        return ((action[:, 1] == 1) == (state[:, 0] > 0)).to(state)

    def observe(self, state: Hidden) -> Observation:
        """Agent 0 sees the bit, agent 1 nothing."""
        return see(state, torch.ones_like(state), torch.cat([state, torch.zeros_like(state)], 1))

    def optimal_value(self, graph: Edges) -> float:
        """1 with the edge (0, 1), else 1/2.

        With the edge, agent 0's free action carries the bit. Without it agent 1's action is independent of the bit.
        """
        return 1.0 if 0 in parents(graph, 2)[1] else 0.5


class WhoIsInformed(OneShot):
    """Everybody knows who is informed: agent c, uniform, who alone sees a fair bit x. The others should play x.

    The reward is the share of the agents other than c who play x. The context is c, the signal x as +1 or -1.
    """

    def __init__(self, agents: int = 3):
        if agents < 2:
            raise InputError(f"who-is-informed needs at least two agents; got agents={agents}.")
        self.spec = one_shot_spec((0,) * agents, (2,) * agents, contexts=agents, state_size=agents + 1)

    def initial_noise(self, num: int, generator: torch.Generator) -> tuple[Int[Tensor, " E"], Int[Tensor, " E"]]:
        """Agent who is informed, and the bit."""
        device = generator.device
        informed = torch.randint(len(self.spec.agents), (num,), generator=generator, device=device)
        return informed, torch.randint(2, (num,), generator=generator, device=device)

    def initial(self, noise: tuple[Int[Tensor, " E"], Int[Tensor, " E"]]) -> Hidden:
        """The context as a one-hot vector, then the bit as +1 or -1."""
        informed, bit = noise
        context = informed.unsqueeze(-1) == torch.arange(len(self.spec.agents), device=informed.device)
        return torch.cat([context.float(), (2.0 * bit - 1.0).unsqueeze(-1)], -1)

    def team_reward(self, state: Hidden, action: Num[Tensor, "E N"]) -> Float[Tensor, " E"]:
        """The share of uninformed agents who play the bit."""
        right = (action == 1) == (state[:, -1:] > 0)
        return (right * (1 - state[:, :-1])).sum(-1) / (len(self.spec.agents) - 1)

    def observe(self, state: Hidden) -> Observation:
        """The public context for all, the bit for the informed agent."""
        context, bit = state[:, :-1], state[:, -1:]
        return see(state, context, context * bit)

    def optimal_value(self, graph: Edges | Callable[[int], Edges]) -> float:
        """1/2 + 1/2 · (pairs (c, j) with a path from c to j) / (N(N-1)).

        Given c, an agent that no path from c reaches acts independently of x and is right half the time. On a path the
        bit is relayed for free: c's own action is not rewarded, so it plays x, and whoever knows x plays x in order to
        be rewarded, which tells its children. As c and the graph are known, so is which parents to believe; shared
        parameters suffice. Any complete order gives 3/4, for every N.

        A graph that may depend on the context is given as a function from c to edges: then each context counts its own
        paths, and N-1 edges from c to all others give 1.
        """
        agents = len(self.spec.agents)
        edges = None if callable(graph) else tuple(graph)
        reached = [
            len(descendants(graph(context) if edges is None else edges, agents, context))  # type: ignore[operator]
            for context in range(agents)
        ]
        return 0.5 + 0.5 * sum(reached) / (agents * (agents - 1))


def one_shot_spec(kind: tuple[int, ...], choices: tuple[int, ...], contexts: int, state_size: int) -> EnvSpec:
    """Agents who see one of `contexts` and a signal, choose once and earn together."""
    return EnvSpec(
        agents=tuple(f"agent_{i}" for i in range(len(kind))),
        kind=kind,
        channels=("team",),
        observation_sizes=(contexts + 1,) * len(kind),
        actions=tuple(Discrete((count,)) for count in choices),
        state_size=state_size,
        horizon=1,
    )


def see(state: Float[Tensor, "E S"], context: Float[Tensor, "E contexts"], signal: Float[Tensor, "E N"]) -> Observation:
    """Agents see the public context, then each its own signal; the critic sees `state`."""
    public = context.unsqueeze(1).expand(-1, signal.shape[1], -1)
    agent = torch.cat([public, signal.unsqueeze(-1)], -1)
    return Observation(agent, state, torch.ones_like(signal, dtype=torch.bool))
