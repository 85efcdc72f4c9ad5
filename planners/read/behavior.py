"""Play of a language model alone, fast enough for long logs: what it would say is asked once in each situation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from envs.core import Decision, InputError, Observation, Streams, Tree
from marl.learning.batch import take_rows
from marl.models.action_critic import only_choice
from planners.language.base import LanguageModel, Query
from planners.read.phrases import Phrasebook, Phrases
from planners.read.prior import choice_shares, log_shares, require_scores, score_all
from planners.read.prompts import ask_all, ask_one, joint_plans
from planners.read.situations import Situations
from planners.read.team import COUNTS, TeamConfig, require_model


class Behavior:
    """An Actor that plays as a model's plans are drawn without a critic, and tells by which probabilities.

    `Decision.latent` are the probabilities [E,N,A] of each agent's choices given what those before it have decided,
    which `marl.learning.state_log.record` keeps, and a critic that needs behavior is fitted with. The model scores only
    what was not met before: sequential, a query for each state and what is decided in it; joint, one for each state.
    All that is new at a step is asked at once.

    Sequential prompts tell the plans of those before: where several mean one choice (`plans: all`), probabilities are
    given these plans, which say more than the choices; where the two differ, joint ones are exact.

    explore: the share of plans that are any plan, whatever the model would say: (1 - ε) μ + ε / |plans|. Of what is
    hardly ever said a log tells nothing, and a critic that is fitted to it errs. Probabilities that are told are those
    of such play, and a critic of the log values it, not the model's own.

    world: one that describes itself, in words that follow from state, who is alive and what is legal alone. asked:
    situations that the model was asked about; agents with a single plan are not. All situations are kept, some 200
    bytes each beside the state itself. Raises InputError for a model that cannot score texts, and an `explore` that is
    no share.
    """

    def __init__(self, world: Any, model: LanguageModel, config: TeamConfig, explore: float = 0.0):
        require_model(model)
        require_scores(model, "Play by a model's probabilities", "let ReadPlanner ask it for every decision")
        if not 0 <= explore <= 1:
            raise InputError(f"The share of plans that are any plan, explore, is in [0, 1]; got {explore}.")
        self.phrasebook, self.model, self.config = Phrasebook(world, config.plans), model, config
        self.explore = explore
        self.agents, self.choices = self.phrasebook.agents, only_choice(world.spec.action)
        self.asked = 0
        self._first: dict[bytes, int] = {}  # situation of the first agent, by what is observed
        self._situations = Situations(self.choices)

    def initial_memory(self, num_envs: int) -> Tree:
        """None: nothing is remembered."""
        return None

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Draw what all agents do."""
        rows, agents = obs.alive.shape
        chance = streams.draw(lambda n, g: _uniform(n, agents, g), rows).cpu()
        place = self._begin(obs)
        taken: list[Int[Tensor, " E"]] = []
        action, behavior = [], []
        for agent in range(agents):
            if agent:
                place = self._go_on(obs, place, taken)
            branch, choice, share = self._situations.draw(place, chance[:, agent])
            taken.append(branch)
            action.append(choice)
            behavior.append(share)
        device = obs.alive.device
        chosen = torch.stack(action, 1).unsqueeze(-1)
        return Decision(chosen.to(device), torch.stack(behavior, 1).to(device)), memory

    def _begin(self, obs: Observation) -> Int[Tensor, " E"]:
        """Situations of the first agent."""
        keys = _keys(obs)
        known = self._first.get
        places = [known(key, -1) for key in keys]
        if -1 in places:
            new = {key: row for row, key in enumerate(keys) if places[row] < 0}
            met = self._meet(obs, list(new.values()), 0, [])
            self._first.update(zip(new, met, strict=True))
            places = [self._first[key] for key in keys]
        return torch.tensor(places)

    def _go_on(self, obs: Observation, place: Int[Tensor, " E"], taken: Sequence[Int[Tensor, " E"]]) -> Tensor:
        """Situations [E] of the next agent, those before it having taken these branches."""
        following = self._situations.following[place, taken[-1]]
        new = (following < 0).nonzero().squeeze(1)
        if not len(new):
            return following
        pairs = torch.stack([place[new], taken[-1][new]], 1).tolist()
        rows = {(start, branch): row for (start, branch), row in zip(pairs, new.tolist(), strict=True)}
        met = self._meet(obs, list(rows.values()), len(taken), taken)
        for (start, branch), there in zip(rows, met, strict=True):
            self._situations.following[start, branch] = there
        return self._situations.following[place, taken[-1]]

    def _meet(self, obs: Observation, rows: Sequence[int], agent: int, taken: Sequence[Int[Tensor, " E"]]) -> list[int]:
        """New situations of these rows, in which an agent decides after these branches; all are asked at once."""
        phrases = self.phrasebook.of(take_rows(obs, torch.tensor(rows, device=obs.alive.device)))
        if self.config.mode == "joint":
            shares = self._ask([self._query_all(each) for each in phrases])
            actions = [each.combinations.squeeze(-1) for each in phrases]
            return [self._grow(share, action, 0) for share, action in zip(shares, actions, strict=True)]
        before = [[int(branches[row]) for branches in taken] for row in rows]
        queries = [self._query_one(each, agent, plans) for each, plans in zip(phrases, before, strict=True)]
        found = []
        for each, share in zip(phrases, self._ask(queries), strict=True):
            choice = each.actions[agent] if each.plans[agent] else torch.zeros(1, dtype=torch.int64)
            found.append(self._situations.add(share, choice, choice_shares(share, choice, self.choices)))
        return found

    def _grow(self, share: Float[Tensor, " plans"], action: Int[Tensor, "plans N"], agent: int) -> int:
        """The situation of an agent whom these joint plans are left to, and all that can follow it."""
        choice, group = action[:, agent].unique(return_inverse=True)
        mass = share.new_zeros(len(choice)).index_add(0, group, share)
        place = self._situations.add(mass, choice, choice_shares(mass, choice, self.choices))
        if agent + 1 < len(self.agents):
            for branch in mass.nonzero().squeeze(1).tolist():
                here = group == branch
                self._situations.following[place, branch] = self._grow(share[here], action[here], agent + 1)
        return place

    def _query_one(self, phrases: Phrases, agent: int, before: Sequence[int]) -> Query | None:
        """A query for the plans of one agent; None where there is nothing to ask."""
        plans = phrases.plans[agent]
        if len(plans) < 2:
            return None
        earlier = zip(self.agents, phrases.plans, before)
        decided = [f"{name}: {own[plan]}" for name, own, plan in earlier if own]
        return Query(ask_one(self.agents, self.agents[agent], phrases.words, plans, decided), choices=plans)

    def _query_all(self, phrases: Phrases) -> Query | None:
        """A query for the plans of all who are there; None where there is nothing to ask."""
        if len(phrases.combinations) < 2:
            return None
        names = [name for name, own in zip(self.agents, phrases.plans, strict=True) if own]
        plans = [own for own in phrases.plans if own]
        return Query(ask_all(names, phrases.words, plans), choices=tuple(joint_plans(names, plans)))

    def _ask(self, queries: Sequence[Query | None]) -> list[Float[Tensor, " plans"]]:
        """Probabilities of the plans of each query; certainty where there is none."""
        wanted = [query for query in queries if query is not None]
        self.asked += len(wanted)
        scores = iter(score_all(self.model, wanted, [dict.fromkeys(COUNTS, 0) for _ in wanted]))
        temperature, certain = self.config.temperature, torch.ones(1, dtype=torch.float64)
        return [
            certain if query is None else self._explored(log_shares(self.model, next(scores), temperature).exp())
            for query in queries
        ]

    def _explored(self, share: Float[Tensor, " plans"]) -> Float[Tensor, " plans"]:
        """These probabilities, of which the share `explore` goes to any plan."""
        return (1 - self.explore) * share + self.explore / len(share)


def _keys(obs: Observation) -> list[bytes]:
    """Letters that tell the rows apart: state, who is alive, and what is legal."""
    columns = [obs.state, obs.alive.to(obs.state)]
    if obs.legal is not None:
        columns.append(obs.legal.flatten(1).to(obs.state))
    seen = np.ascontiguousarray(torch.cat(columns, 1).cpu().numpy())
    return seen.view(np.dtype((np.void, seen.shape[1] * seen.itemsize))).squeeze(1).tolist()


def _uniform(count: int, agents: int, generator: torch.Generator) -> Float[Tensor, "count N"]:
    return torch.rand(count, agents, generator=generator, device=generator.device, dtype=torch.float64)
