"""A language model's own policy in a world whose states can be listed: exact, by asking in each of them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from envs.core import Observation, tree_map
from envs.tabular import Digits, Table
from marl.output.console import console
from planners.language.base import LanguageModel, Query
from planners.read.phrases import Phrasebook, Phrases
from planners.read.prior import choice_shares, log_shares, require_scores, score_all
from planners.read.prompts import ask_all, ask_one, joint_plans
from planners.read.team import COUNTS, TeamConfig

CHUNK = 512  # states that are asked about together
TOLD = 16  # of these, after which it is said how many were: a status line alone is silent where nobody looks on

Prefix = tuple[int, float, tuple[int, ...], tuple[int, ...]]  # row, probability, plans and choices of the first agents


@runtime_checkable
class HasDigits(Protocol):
    """A world whose states follow from what is observed, and can be told apart."""

    def state_of(self, code: Tensor) -> Any:
        """States of observed ones."""

    def digits(self, state: Any) -> Digits:
        """Numbers that tell states apart."""


def joint_policy(
    world: Any, table: Table, model: LanguageModel, config: TeamConfig, places: Int[Tensor, " X"] | None = None
) -> Float[Tensor, "*joint"]:
    """Probabilities [S,A,…,A] of the agents' joint choices in every state, as the model's plans are drawn.

    places: of these states of the table alone, [X,A,…,A].

    Sequential, each agent is asked after every plan of those before it; joint, all at once. Raises InputError for a
    model that cannot score texts.
    """
    require_scores(model, "The exact policy of a language model", "take critic.log.play=random")
    book = Phrasebook(world, config.plans)
    asked = _joint if config.mode == "joint" else _sequential
    parts = []
    wanted = torch.arange(len(table)) if places is None else places
    for done, part in enumerate(wanted.split(CHUNK)):
        if done and done % TOLD == 0:
            console.print(f"asked in {CHUNK * done:,} of {len(wanted):,} states", markup=False)
        with console.status(f"asking in {len(wanted):,} states: {CHUNK * done:,} done"):
            obs: Observation = world.observe(tree_map(lambda leaf, rows=part: leaf[rows], table.states))
            parts.append(asked(book, book.of(obs), model, config.temperature, table.choices))
    return torch.cat(parts)


def decided_at_once(world: Any, table: Table, model: LanguageModel, config: TeamConfig) -> bool:
    """True where a plan's first token tells it from all others, as far as those of the first agent at the start tell.

    Jointly a local model writes one agent's plan after the other's, so that it is not.
    """
    book = Phrasebook(world, config.plans)
    (here,) = book.of(world.observe(tree_map(lambda leaf: leaf[:1], table.states)))
    if config.mode == "joint":
        query = Query(ask_all(book.agents, here.words, here.plans), choices=tuple(joint_plans(book.agents, here.plans)))
    else:
        query = Query(_messages(book, here, 0, ()), choices=here.plans[0])
    (scores,) = score_all(model, [query], [dict.fromkeys(COUNTS, 0)])
    return len({path[0] for path in scores.tokens}) == len(scores.tokens)


def _sequential(
    book: Phrasebook, phrases: list[Phrases], model: LanguageModel, temperature: float, choices: int
) -> Float[Tensor, "*joint"]:
    """One agent after the other: the shares of every prefix of plans, as shares of choices."""
    agents = len(book.agents)
    policy = torch.zeros(len(phrases), *(choices,) * agents, dtype=torch.float64)
    open_prefixes: list[Prefix] = [(row, 1.0, (), ()) for row in range(len(phrases))]
    for agent in range(agents):
        queries = [
            Query(_messages(book, phrases[row], agent, before), choices=phrases[row].plans[agent])
            for row, _, before, _ in open_prefixes
        ]
        shares = _shares(model, queries, temperature)
        following: list[Prefix] = []
        for (row, mass, before, actions), share in zip(open_prefixes, shares, strict=True):
            own = phrases[row].actions[agent].tolist()
            for plan, (action, chance) in enumerate(zip(own, share.tolist(), strict=True)):
                following.append((row, mass * chance, (*before, plan), (*actions, action)))
        open_prefixes = following
    for row, mass, _, actions in open_prefixes:
        policy[(row, *actions)] += mass
    return policy


def _joint(
    book: Phrasebook, phrases: list[Phrases], model: LanguageModel, temperature: float, choices: int
) -> Float[Tensor, "*joint"]:
    """All agents at once."""
    agents = len(book.agents)
    queries = [
        Query(
            ask_all(book.agents, each.words, each.plans),
            choices=tuple(joint_plans(book.agents, each.plans)),
        )
        for each in phrases
    ]
    rows = []
    for each, share in zip(phrases, _shares(model, queries, temperature), strict=True):
        number = torch.zeros(len(share), dtype=torch.int64)
        for agent in range(agents):
            number = number * choices + each.combinations[:, agent, 0]
        rows.append(choice_shares(share, number, choices**agents).view((choices,) * agents))
    return torch.stack(rows)


def _messages(book: Phrasebook, phrases: Phrases, agent: int, before: tuple[int, ...]) -> Any:
    decided = [f"{name}: {own[plan]}" for name, own, plan in zip(book.agents, phrases.plans, before)]
    return ask_one(book.agents, book.agents[agent], phrases.words, phrases.plans[agent], decided)


def _shares(model: LanguageModel, queries: list[Query], temperature: float) -> list[Float[Tensor, " plans"]]:
    """Probabilities of the plans of each query; a single plan is certain, and nobody is asked."""
    unsure = [query for query in queries if len(query.choices) > 1]
    scores = iter(score_all(model, unsure, [dict.fromkeys(COUNTS, 0) for _ in unsure]))
    certain = torch.ones(1, dtype=torch.float64)
    return [
        log_shares(model, next(scores), temperature).exp() if len(query.choices) > 1 else certain for query in queries
    ]
