"""Dec-Tiger: two agents, two doors and a tiger that each of them hears a little."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from envs.constants import Constants
from envs.core import Discrete, EnvSpec, InputError, Observation
from envs.dags import Edges, parents
from envs.world import Transition, World

LISTEN, CHOICES = 0, 3
HEARS = 0.85
# The team's reward, by the agents' choices (listen, open left, open right), if the tiger is behind the left door.
_TIGER_LEFT = [[-2.0, -101.0, 9.0], [-101.0, -50.0, -100.0], [9.0, -100.0, 20.0]]
# And [tiger's door, choice, choice]: behind the right door, the doors change places.
PAYOFF = torch.tensor([_TIGER_LEFT, [[_TIGER_LEFT[a][b] for b in (0, 2, 1)] for a in (0, 2, 1)]])
# The exact value enumerates one agent's 3^(2^horizon - 1) policies.
LONGEST_ENUMERATION = 3


class TigerState(NamedTuple):
    """Behind which door the tiger is, 0 (left) or 1, and what each agent has heard: 0 nothing yet, 1 left, 2 right."""

    tiger: Int[Tensor, " E"]
    heard: Int[Tensor, "E 2"]


class DecTiger(World[TigerState]):
    """Two agents listen or open a door each; behind one is a tiger, and neither knows what the other heard.

    Choices: 0 listens, 1 opens left, 2 opens right. The team earns -2 if both listen, 20 if both open the tiger-free
    door, -50 if both open the tiger's, -100 if they open different doors; if one listens, 9 or -101 for the other's
    door. If both listen, each hears the tiger's side with probability 0.85, independently. Otherwise the tiger moves
    behind a random door and each hears a random side. The discount is 1.

    An agent sees the clock and what it heard last, as one of (nothing yet, left, right): all there is to know up to a
    horizon of 2; beyond, agents need a memory. The critic sees the tiger, as -1 (left) or +1, and both views.
    Source: Nair et al., IJCAI 2003, with the constants of the standard file dectiger.dpomdp. Raises InputError for a
    horizon below 1.
    """

    def __init__(self, horizon: int = 2):
        if horizon < 1:
            raise InputError(f"A horizon is at least 1 step; got {horizon}.")
        self.horizon = horizon
        self.spec = EnvSpec(
            agents=("agent_0", "agent_1"),
            kind=(0, 1),
            channels=("team",),
            observation_sizes=(3, 3),
            actions=(Discrete((CHOICES,)),) * 2,
            state_size=7,
            horizon=horizon,
        )
        self._payoff = Constants(PAYOFF)

    def initial_noise(self, num: int, generator: torch.Generator) -> Int[Tensor, " E"]:
        """A random door."""
        return torch.randint(2, (num,), generator=generator, device=generator.device)

    def initial(self, noise: Int[Tensor, " E"]) -> TigerState:
        """Nothing is heard yet."""
        return TigerState(noise, torch.zeros_like(noise).unsqueeze(-1).repeat(1, 2))

    def noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E 3"]:
        """Uniform numbers in [0, 1): what the agents hear is true below a probability, and the tiger's new door."""
        return torch.rand(num, 3, generator=generator, device=generator.device)

    def transition(self, state: TigerState, action: Num[Tensor, "E 2 1"], noise: Float[Tensor, "E 3"]) -> Transition:
        """Reward by the tiger's door before it moves; what is heard is about the door after."""
        choice = action.squeeze(-1)
        reward = self._payoff.on(choice.device)[state.tiger, choice[:, 0], choice[:, 1]]
        both_listen = (choice == LISTEN).all(-1)
        tiger = torch.where(both_listen, state.tiger, (noise[:, 2] < 0.5).to(state.tiger))
        true = noise[:, :2] < torch.where(both_listen, HEARS, 0.5).unsqueeze(-1)
        heard = 1 + torch.where(true, tiger.unsqueeze(-1), 1 - tiger.unsqueeze(-1))
        return Transition(TigerState(tiger, heard), reward.view(-1, 1, 1).expand(-1, 2, 1))

    def observe(self, state: TigerState) -> Observation:
        """Observation of what each heard last; the critic sees the tiger too."""
        agent = F.one_hot(state.heard, 3).float()
        whole = torch.cat([2.0 * state.tiger.unsqueeze(-1) - 1.0, agent.flatten(1)], -1)
        return Observation(agent, whole, torch.ones_like(state.heard, dtype=torch.bool))

    def optimal_value(self, graph: Edges) -> float:
        """The best expected return, for horizons 1, 2, 3: -2, -4, 5.1908; with an edge -2, 7.5, 10.2736.

        Agents remember all that they heard and saw of their parents' actions; deterministic policies suffice. Every
        policy of one agent (the parent, if there is an edge) is met by the other's best response, found backward over
        what the other has heard and seen, with the joint weights of the tiger and of what the first has heard. The game
        is the same if the agents change places, so which of them is the parent makes no difference. With an edge
        the parent's action tells, for nothing but its own reward, what the parent has heard.

        Raises InputError for an impossible graph and for a horizon above 3, where the enumeration is too long.
        """
        sees = any(parents(graph, 2).values())
        if self.horizon > LONGEST_ENUMERATION:
            raise InputError(
                f"The exact value of Dec-Tiger enumerates 3^(2^horizon - 1) policies, which is done up to a horizon of "
                f"{LONGEST_ENUMERATION}; this game has {self.horizon}. centralized_value() bounds it at any horizon."
            )
        return float(_best_responses(self.horizon, sees).max())

    def centralized_value(self) -> float:
        """The best expected return of one player who hears with all ears: 10.815 for a horizon of 2.

        What was heard matters only through the lead k of lefts over rights since a door was opened last: the odds of
        the left door are (0.85/0.15)^k.
        """
        odds = HEARS / (1 - HEARS)
        by_choices = PAYOFF.double().flatten(1)

        @cache
        def value(steps: int, lead: int) -> float:
            if not steps:
                return 0.0
            left = 1 / (1 + odds**-lead)
            earned = left * by_choices[0] + (1 - left) * by_choices[1]
            right = 1 - left
            agree = HEARS**2, (1 - HEARS) ** 2
            listened = {
                lead + 2: left * agree[0] + right * agree[1],
                lead: 1 - sum(agree),
                lead - 2: left * agree[1] + right * agree[0],
            }
            listening = earned[0].item() + sum(p * value(steps - 1, k) for k, p in listened.items())
            return max(listening, earned[1:].max().item() + value(steps - 1, 0))

        return value(self.horizon, 0)


def _best_responses(horizon: int, sees: bool) -> Float[Tensor, " policies"]:
    """For every policy of the first agent, the most the team can earn when the second responds to it.

    A policy is a choice for each history of `heard`; histories of t sides are numbers below 2^t.
    """
    situations = 2**horizon - 1
    policies = torch.arange(CHOICES**situations).unsqueeze(-1) // CHOICES ** torch.arange(situations) % CHOICES
    payoff = PAYOFF.double()
    tiger = torch.arange(2).view(1, 2, 1)

    def value(t: int, weight: Float[Tensor, "policies 2 histories"]) -> Float[Tensor, " policies"]:
        """From step t on; weight of the tiger's door and the first agent's history, jointly with the second's."""
        first = policies[:, 2**t - 1 : 2 ** (t + 1) - 1]
        # Whoever sees the first agent's choice responds to each choice separately.
        told = [weight * (first == seen).unsqueeze(1) for seen in range(CHOICES)] if sees else [weight]
        return torch.stack([_response(t, first, known) for known in told]).sum(0)

    def _response(
        t: int, first: Int[Tensor, "policies histories"], weight: Float[Tensor, "policies 2 histories"]
    ) -> Float[Tensor, " policies"]:
        options = []
        for second in range(CHOICES):
            earned = (weight * payoff[tiger, first.unsqueeze(1), second]).sum((1, 2))
            if t + 1 == horizon:
                options.append(earned)
                continue
            both_listen = ((first == LISTEN) & (second == LISTEN)).unsqueeze(1)
            after = torch.where(both_listen, weight, weight.mean(1, keepdim=True))
            ahead = [value(t + 1, _hear(after, both_listen, side)) for side in range(2)]
            options.append(earned + ahead[0] + ahead[1])
        return torch.stack(options).amax(0)

    return value(0, torch.full((len(policies), 2, 1), 0.5, dtype=torch.float64))


def _hear(
    weight: Float[Tensor, "policies 2 histories"], both_listen: Bool[Tensor, "policies 1 histories"], side: int
) -> Float[Tensor, "policies 2 longer_histories"]:
    """The weights jointly with the second agent hearing `side`, and the first one hearing left or right."""
    true = torch.eye(2, dtype=torch.float64).unsqueeze(-1)  # [side, tiger, 1]
    listened = HEARS * true + (1 - HEARS) * (1 - true)
    chances = [torch.where(both_listen, listened[s], 0.5) for s in range(2)]
    return (weight.unsqueeze(-1) * chances[side].unsqueeze(-1) * torch.stack(chances, -1)).flatten(2)
