"""The seats of an actor that plays: rows of the environment that it is asked about, fewer as rows finish."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Num
from torch import Tensor

from envs.actors import Hears, require_actor
from envs.core import (
    Actor,
    Continuous,
    Decision,
    EnvSpec,
    InputError,
    KeepsRows,
    Observation,
    Step,
    Streams,
    Tree,
    VectorEnv,
    tree_map,
    tree_where,
)
from marl.evaluation.decisions import Referee, two_things


class Seats:
    """An actor at the rows of P policies that have not finished yet, and what it remembers of them.

    A row that has finished costs no decision. Where the policies have unequally many rows left, those with fewer fill
    up with rows that have finished, which are shown with nobody alive and draw no random numbers: each policy decides
    as it would alone. An actor that keeps something by row (`KeepsRows`) is shown every row always.
    """

    def __init__(self, env: VectorEnv, actor: Actor, streams: Streams):
        require_actor(actor, "What plays")
        self.spec, self.actor, self.streams = env.spec, actor, streams
        self.referee = Referee(env.spec, env.device)
        self.memory = actor.initial_memory(env.num_envs)
        self.rows = torch.arange(env.num_envs, device=env.device).view(len(streams), -1)  # [P,R]
        self._all = self._playing = torch.ones_like(self.rows, dtype=torch.bool)
        self._drawing = streams

    def act(self, obs: Observation) -> Decision:
        """Decide for all E rows; those that have finished get the first legal action, and count nothing.

        Raises InputError for a decision that is none, or not allowed; see `Referee`.
        """
        asked = self.rows.flatten()
        whole = len(asked) == len(obs.alive) and self._playing is self._all
        shown = obs if whole else self._shown(obs, asked)
        decision, self.memory = two_things(self.actor.act(shown, self.memory, self._drawing))
        self.referee.check(decision, shown)
        if whole:
            return decision
        action = first_legal(self.spec, obs).to(decision.action.dtype)
        counts = decision.counts and {name: self._spread(x, asked, len(action)) for name, x in decision.counts.items()}
        return Decision(action.index_copy(0, asked, decision.action), counts=counts)

    def after(self, step: Step) -> None:
        """Tell what the decision led to, to an actor that hears, and clear what is remembered of rows that ended."""
        asked = self.rows.flatten()
        if isinstance(self.actor, Hears):
            self.actor.hear(step if len(asked) == len(step.ended) else take(step, asked))
        if self.memory is not None:
            over = step.ended[asked]
            self.memory = tree_where(over, tree_map(torch.zeros_like, self.memory), self.memory)

    def keep(self, playing: Bool[Tensor, " E"]) -> None:
        """Ask from now on about these rows only; none that left before may be among them."""
        here = playing[self.rows]
        if not (isinstance(self.actor, KeepsRows) and self.actor.keeps_rows):
            left = here.sum(1).tolist()
            # Rows that play come first, in their order, then as many of the others as another policy has more.
            order = (~here).int().argsort(dim=1, stable=True)[:, : max(left)]
            place = torch.arange(len(here), device=here.device).unsqueeze(1) * here.shape[1]
            self.memory = take(self.memory, (order + place).flatten())
            self.rows, here = self.rows.gather(1, order), here.gather(1, order)
            self._drawing = self.streams if min(left) == max(left) else RaggedStreams(self.streams, left)
        self._playing = here

    def _shown(self, obs: Observation, asked: Num[Tensor, " R"]) -> Observation:
        shown = take(obs, asked)
        return dataclasses.replace(shown, alive=shown.alive & self._playing.flatten().unsqueeze(-1))

    def _spread(self, count: Tensor, asked: Tensor, rows: int) -> Tensor:
        """Scatter the counts of the rows that play among all `rows`; the others count 0."""
        counted = count * self._playing.flatten()
        return counted.new_zeros(rows).index_copy(0, asked, counted)


class RaggedStreams(Streams):
    """Streams of policies that use only their first counts[p] rows of R: only those are drawn, the others are 1."""

    def __init__(self, streams: Streams, counts: Sequence[int]):
        self.device, self.on_host, self.generators = streams.device, streams.on_host, streams.generators
        self.counts = counts

    def draw(self, sample: Callable[[int, torch.Generator], Tree], rows: int) -> Tree:
        """`sample(counts[p], generator)` for each policy's generator, filled up, joined policy-major."""
        size = rows // len(self)
        each, rest = divmod(size, max(self.counts))  # several draws a row, as one for each agent
        if rest:
            raise InputError(
                f"Expected a multiple of {len(self)} times {max(self.counts)} rows; got a draw for {rows} rows. An "
                "actor draws equally often for each row that it is shown, or keeps rows (envs.core.KeepsRows)."
            )

        def filled(leaf: Tensor) -> Tensor:
            return torch.cat([leaf, leaf.new_ones(size - len(leaf), *leaf.shape[1:])])

        drawn = [
            tree_map(filled, sample(count * each, g)) for count, g in zip(self.counts, self.generators, strict=True)
        ]
        return tree_map(lambda *leaves: torch.cat(leaves), *drawn)


def take(tree: Tree, rows: Num[Tensor, " R"]) -> Tree:
    """tree[rows]."""
    return tree_map(lambda x: x.index_select(0, rows), tree)


def first_legal(spec: EnvSpec, obs: Observation) -> Num[Tensor, "E N A"]:
    """An action that every environment takes: the first legal choices, or real numbers as near to 0 as bounds let."""
    space, shape = spec.action, obs.alive.shape
    if isinstance(space, Continuous):
        low, high = torch.tensor([space.low, space.high], device=obs.alive.device)
        return torch.zeros(*shape, space.size, device=obs.alive.device).clamp(low, high)
    if obs.legal is None:
        return torch.zeros(*shape, space.size, dtype=torch.int64, device=obs.alive.device)
    # The first of equal maxima: 0 where nothing is legal.
    return torch.stack([legal.int().argmax(-1) for legal in obs.legal.split(space.choices, -1)], -1)
