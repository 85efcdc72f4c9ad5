"""Small games whose best values are known exactly: what a learner of joint decisions must reach, and cannot exceed.

Every game answers `optimal_value(graph)`: the best expected team return of a joint policy that factorizes along a
directed acyclic graph over the agents, π(a | o) = Π_i π_i(a_i | o_i, a_parents(i)). An edge (i, j) says that agent j
sees the action that agent i has sampled before j acts. Agents share no other randomness.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from envs.core import Discrete, EnvSpec, InputError, Observation
from envs.dags import Edges, descendants, parents, search_for_value, twin_groups, value_of_blocks, value_with_full_sight
from envs.world import Transition, World

Hidden = Float[Tensor, "E S"]

# The permutation game's optimum has no closed form on every graph; the search for it is reliable up to so many agents.
LARGEST_SEARCH = 4
# Beyond |zeros - ones| = margin a state of the coordination game counts as coordinated.
MARGINS = {2: 1, 3: 1, 5: 2, 10: 3}


class OneShot(World[Hidden]):
    """A game of one joint action and one team reward. The state is all there is to know before acting, [E,S].

    An agent sees the public context as a one-hot vector, then its private signal, 0 if it has none: (1, 0) where there
    is one context and no signal. It does not see its seat: indistinguishable agents who share parameters would be told
    apart by it, and agents of different kinds are told apart by their kinds.
    """

    shows_clock = False

    def transition(self, state: Hidden, action: Num[Tensor, "E N 1"], noise: None) -> Transition:
        """Everybody earns the team's reward; the horizon of one step ends the episode."""
        return Transition(state, _team(self.team_reward(state, action.squeeze(-1)), action.shape[1]))

    @abstractmethod
    def team_reward(self, state: Hidden, action: Num[Tensor, "E N"]) -> Float[Tensor, " E"]:
        """What the joint action earns."""

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
        self.spec = _one_shot_spec(tuple(range(self.payoff.dim())), tuple(self.payoff.shape), contexts=1, state_size=1)
        self._copies: dict[torch.device, tuple[Tensor, Tensor | None]] = {}

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E 0"]:
        """Nothing is random."""
        return torch.empty(num, 0, device=generator.device)

    def initial(self, noise: Float[Tensor, "E 0"]) -> Hidden:
        """A constant."""
        return noise.new_ones(len(noise), 1)

    def team_reward(self, state: Hidden, action: Num[Tensor, "E N"]) -> Float[Tensor, " E"]:
        """The payoff of the joint action."""
        payoff, _ = self._on(state.device)
        return payoff[action.unbind(-1)]

    def observe(self, state: Hidden) -> Observation:
        """Nothing, (1, 0), for everybody."""
        agent = _views(state, state.new_zeros(len(state), len(self.spec.agents)))
        _, legal = self._on(state.device)
        return Observation(
            agent, state, _all_alive(agent), legal if legal is None else legal.expand(len(agent), -1, -1)
        )

    def optimal_value(self, graph: Edges) -> float:
        """The largest payoff, under every graph: always playing one best joint action is a product of policies."""
        parents(graph, self.payoff.dim())
        return float(self.payoff.max())

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The payoffs and the legal choices on a device, copied there once."""
        if device not in self._copies:
            legal = self.spec.legal
            self._copies[device] = self.payoff.to(device, torch.float32), None if legal is None else legal.to(device)
        return self._copies[device]


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


class PermutationGame(OneShot):
    """N indistinguishable agents with N actions earn 1 if all actions differ, else 0 (Fu et al., arXiv 2206.07505).

    All agents are of one kind and see the same: one policy decides for all of them, and only what they see of each
    other's actions can tell them apart.
    """

    def __init__(self, agents: int = 3):
        if agents < 2:
            raise InputError(f"The permutation game needs at least two agents; got agents={agents}.")
        self.spec = _one_shot_spec((0,) * agents, (agents,) * agents, contexts=1, state_size=1)

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E 0"]:
        """Nothing is random."""
        return torch.empty(num, 0, device=generator.device)

    def initial(self, noise: Float[Tensor, "E 0"]) -> Hidden:
        """A constant."""
        return noise.new_ones(len(noise), 1)

    def team_reward(self, state: Hidden, action: Num[Tensor, "E N"]) -> Float[Tensor, " E"]:
        """1 if no two actions are equal."""
        return (action.sort(-1).values.diff(dim=-1) != 0).all(-1).to(state)

    def observe(self, state: Hidden) -> Observation:
        """Nothing, (1, 0), for everybody."""
        agent = _views(state, state.new_zeros(len(state), len(self.spec.agents)))
        return Observation(agent, state, _all_alive(agent))

    def optimal_value(self, graph: Edges) -> float:
        """The best probability that all actions differ, when one policy with shared parameters decides for everybody.

        What an agent sees of its parents is each one's action in that parent's own slot, and empty slots elsewhere. So
        agents with different parents can be told apart, and agents with the same parents (twins) draw independently
        from the same distribution p(· | parents' actions). Twins never see one another.

        - Without twins the value is 1: what an agent sees tells who it is. A line of N-1 edges is enough.
        - m twins who know which k actions are free are all different with probability at most m!·C(k, m) / k^m,
          reached by the uniform p (Maclaurin's inequality). Where each group of twins sees everybody before it, the
          value is the product of these, k falling by m each time. Without edges it is N!/N^N.
        - In general this product, least over the orders in which the groups may act, bounds the value from above: it
          grants each group the sight of all actions before. From below: divide the actions into blocks, each played by
          groups who see all members of the block's earlier groups, and take the product over blocks.
        - Where both agree, that is the value. Elsewhere the later groups see some twins and not others, but may be told
          of them by a third (edges 02, 03, 12, 23: agent 2's action tells agent 3 what agent 1 did), and a search
          decides: P(all differ) is a polynomial with non-negative coefficients on a product of simplices, which the map
          p ← p·∂P/∂p, normalized, never decreases (Baum and Eagon, 1967), here from many starts. Up to 4 agents it
          always ends at one of the two bounds, at the upper only on that graph.

        Raises InputError for an impossible graph, and for one that needs the search with more than 4 agents.
        """
        agents = len(self.spec.agents)
        twins = twin_groups(parents(graph, agents))
        least, most = value_of_blocks(twins), value_with_full_sight(twins)
        if math.isclose(least, most):
            return least
        if agents > LARGEST_SEARCH:
            raise InputError(
                f"The optimum of the permutation game on this graph lies between {least:.6g} and {most:.6g} and has no "
                f"known closed form; it is searched for up to {LARGEST_SEARCH} agents, and this game has {agents}. Use "
                "a graph in which no two agents have the same parents, or in which each agent sees all before it."
            )
        found = search_for_value(twins)
        return most if math.isclose(found, most, rel_tol=1e-6) else max(least, found)


def xor() -> PermutationGame:
    """Two indistinguishable agents earn 1 if they act differently: 1/2 without an edge, 1 with one."""
    return PermutationGame(2)


class CopyGame(OneShot):
    """Agent 0 sees a fair bit x, agent 1 sees nothing; the reward is 1 if agent 1 plays x."""

    def __init__(self) -> None:
        self.spec = _one_shot_spec((0, 1), (2, 2), contexts=1, state_size=1)

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
        agent = _views(torch.ones_like(state), torch.cat([state, torch.zeros_like(state)], 1))
        return Observation(agent, state, _all_alive(agent))

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
        self.spec = _one_shot_spec((0,) * agents, (2,) * agents, contexts=agents, state_size=agents + 1)

    def initial_noise(self, num: int, generator: torch.Generator) -> tuple[Int[Tensor, " E"], Int[Tensor, " E"]]:
        """Who is informed, and the bit."""
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
        agent = _views(context, context * bit)
        return Observation(agent, state, _all_alive(agent))

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
        self.spec = EnvSpec(
            agents=_names(agents),
            kind=tuple(range(agents)),
            channels=("team",),
            observation_sizes=(agents,) * agents,
            actions=(Discrete((2,)),) * agents,
            state_size=agents,
            horizon=_checked_horizon(horizon),
        )
        self.flip = flip

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N"]:
        """Uniform numbers in [0, 1)."""
        return torch.rand(num, len(self.spec.agents), generator=generator, device=generator.device)

    def initial(self, noise: Float[Tensor, "E N"]) -> Float[Tensor, "E N"]:
        """Each bit is 0 with probability 1/N."""
        return (noise >= 1 / len(self.spec.agents)).float()

    def noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E N"]:
        """Uniform numbers in [0, 1), one a bit; a bit flips where its number is below `flip`."""
        return torch.rand(num, len(self.spec.agents), generator=generator, device=generator.device)

    def transition(
        self, state: Float[Tensor, "E N"], action: Num[Tensor, "E N 1"], noise: Float[Tensor, "E N"]
    ) -> Transition:
        """The old state is rewarded, the actions become the new one."""
        flipped = (action.squeeze(-1) == 1) ^ (noise < self.flip)
        return Transition(flipped.to(state), _team(self.team_reward(state.sum(-1)), state.shape[1]))

    def team_reward(self, ones: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """What a state with so many ones earns."""
        agents = len(self.spec.agents)
        lead, margin = agents - 2 * ones, MARGINS[agents]
        return 3.0 * (lead > margin) + 2.0 * (lead < -margin) + 1.0 * ((lead < 0) & (lead >= -margin))

    def observe(self, state: Float[Tensor, "E N"]) -> Observation:
        """Everybody sees all bits, as +1 or -1."""
        bits = 2 * state - 1
        agent = bits.unsqueeze(1).expand(-1, state.shape[1], -1)
        return Observation(agent, bits, _all_alive(agent))

    def expected_reward(self, ones: int) -> float:
        """What the state earns, in expectation, that follows a joint action with so many ones.

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
        start = sum(p * r for p, r in zip(_binomial(agents, 1 - 1 / agents), self._rewards(), strict=True))
        later = discount / (1 - discount) if horizon is None else sum(discount**t for t in range(1, horizon))
        return start + later * max(self.expected_reward(ones) for ones in range(agents + 1))

    def _rewards(self) -> list[float]:
        return self.team_reward(torch.arange(len(self.spec.agents) + 1.0)).tolist()


class Constant(World[Float[Tensor, "E 1"]]):
    """Reward 1 at every step, whatever is done: V = 1/(1-γ), or (1-γ^h)/(1-γ) with a horizon of h steps.

    A diagnostic: a horizon terminates, a time limit truncates and must leave the first value in place.
    """

    def __init__(self, agents: int = 1, horizon: int | None = None):
        if agents < 1:
            raise InputError(f"A world needs at least one agent; got agents={agents}.")
        self.spec = EnvSpec(
            agents=_names(agents),
            kind=(0,) * agents,
            channels=("one",),
            observation_sizes=(2,) * agents,
            actions=(Discrete((2,)),) * agents,
            state_size=1,
            horizon=_checked_horizon(horizon),
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E 0"]:
        """Nothing is random."""
        return torch.empty(num, 0, device=generator.device)

    def initial(self, noise: Float[Tensor, "E 0"]) -> Float[Tensor, "E 1"]:
        """A constant."""
        return noise.new_ones(len(noise), 1)

    def transition(self, state: Float[Tensor, "E 1"], action: Num[Tensor, "E N 1"], noise: None) -> Transition:
        """Nothing changes."""
        return Transition(state, _team(state.squeeze(-1), action.shape[1]))

    def observe(self, state: Float[Tensor, "E 1"]) -> Observation:
        """Nothing, (1, 0) as in the games, for everybody."""
        agent = _views(state, state.new_zeros(len(state), len(self.spec.agents)))
        return Observation(agent, state, _all_alive(agent))


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
            agents=_names(agents),
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
        return Observation(agent, agent.flatten(1), _all_alive(agent))


def _names(agents: int) -> tuple[str, ...]:
    return tuple(f"agent_{i}" for i in range(agents))


def _one_shot_spec(kind: tuple[int, ...], choices: tuple[int, ...], contexts: int, state_size: int) -> EnvSpec:
    return EnvSpec(
        agents=_names(len(kind)),
        kind=kind,
        channels=("team",),
        observation_sizes=(contexts + 1,) * len(kind),
        actions=tuple(Discrete((count,)) for count in choices),
        state_size=state_size,
        horizon=1,
    )


def _checked_horizon(horizon: int | None) -> int | None:
    if horizon is not None and horizon < 1:
        raise InputError(f"A horizon is at least 1 step, or null for an endless game; got {horizon}.")
    return horizon


def _views(context: Float[Tensor, "E contexts"], signal: Float[Tensor, "E N"]) -> Float[Tensor, "E N D"]:
    """What agents see of a one-shot game: the public context, then each its own signal."""
    public = context.unsqueeze(1).expand(-1, signal.shape[1], -1)
    return torch.cat([public, signal.unsqueeze(-1)], -1)


def _team(reward: Float[Tensor, " E"], agents: int) -> Float[Tensor, "E N 1"]:
    """One reward for everybody."""
    return reward.view(-1, 1, 1).expand(-1, agents, 1)


def _all_alive(agent: Float[Tensor, "E N D"]) -> Bool[Tensor, "E N"]:
    return torch.ones(agent.shape[:2], dtype=torch.bool, device=agent.device)


def _binomial(count: int, probability: float) -> list[float]:
    """P(Bin(count, probability) = i) for i = 0, …, count."""
    p, q = probability, 1 - probability
    return [math.comb(count, i) * p**i * q ** (count - i) for i in range(count + 1)]
