"""Line-ups: who plays in each slot, and many of them played side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Int, Num
from torch import Tensor

from envs.actors import Hears
from envs.core import Actor, Decision, EnvSpec, InputError, Observation, Step, Streams, Tree, tree_map
from marl.evaluation.decisions import Referee, two_things
from marl.evaluation.seats import take

Lineup = tuple[str, ...]  # who plays in each slot
MOST_SEATS = 8  # that one player takes in turn; of more slots these, evenly spaced


def lineups(who: str, partner: str, slots: int) -> list[Lineup]:
    """Ways for one to play in a slot beside a partner in all others, in each of at most `MOST_SEATS` slots.

    One way for it to play beside itself.
    """
    if who == partner:
        return [(who,) * slots]
    seats = range(slots) if slots <= MOST_SEATS else [slots * i // MOST_SEATS for i in range(MOST_SEATS)]
    return [tuple(who if slot == seat else partner for slot in range(slots)) for seat in seats]


class Lineups:
    """An Actor whose rows are P blocks of R rows, policy-major; in each block other players fill the slots.

    Each player is asked once for all rows in which it has a slot. A block plays as `envs.team.Team` of its players, in
    the order of `players`, would alone: it has a stream of random numbers of its own.
    """

    keeps_rows = True

    def __init__(self, spec: EnvSpec, players: Mapping[str, Actor], blocks: Sequence[Lineup]):
        self.spec, self.count = spec, len(blocks)
        self.parts = [_Part(name, actor, blocks) for name, actor in players.items()]
        self.parts = [part for part in self.parts if part.blocks]

    def initial_memory(self, num_envs: int) -> Tree:
        """Each player's, in all E rows; it is asked and remembers in its own."""
        memories = []
        for part in self.parts:
            rows = part.rows(num_envs, self.count)
            memory = part.actor.initial_memory(len(rows))
            memories.append(tree_map(lambda x, rows=rows: put(x.new_zeros(num_envs, *x.shape[1:]), rows, x), memory))
        return tuple(memories)

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Ask every player about its rows; its choices count in its slots. Raises InputError that names the player."""
        joint, memories = None, []
        for part, remembered in zip(self.parts, memory, strict=True):
            rows = part.rows(len(obs.alive), self.count).to(obs.alive.device)
            shown, own = take(obs, rows), part.slots(len(rows)).to(rows.device)
            given = part.actor.act(shown, take(remembered, rows), _Some(streams, part.blocks))
            try:
                decision, later = two_things(given)
                part.referee(self.spec, rows.device).check(decision, shown)
            except InputError as error:
                raise InputError(f"{part.name}: {error}") from error
            memories.append(tree_map(lambda old, new, rows=rows: put(old, rows, new), remembered, later))
            action = decision.action
            if joint is None:
                joint = action.new_zeros(len(obs.alive), *action.shape[1:])
            joint = put(joint, rows, torch.where(own, action.to(joint.dtype), joint[rows]))
        assert joint is not None
        return Decision(joint), tuple(memories)

    def hear(self, step: Step) -> None:
        """Tell the players who hear, each of its rows."""
        for part in self.parts:
            if isinstance(part.actor, Hears):
                rows = part.rows(len(step.ended), self.count).to(step.ended.device)
                part.actor.hear(take(step, rows))


class _Part:
    """A player, the blocks in which it has slots, and which these are."""

    def __init__(self, name: str, actor: Actor, blocks: Sequence[Lineup]):
        self.name, self.actor = name, actor
        self.blocks = [number for number, lineup in enumerate(blocks) if name in lineup]
        self._filled = torch.tensor([[member == name for member in blocks[number]] for number in self.blocks])
        self._referee: Referee | None = None

    def rows(self, rows: int, blocks: int) -> Int[Tensor, " R"]:
        """Numbers of its rows."""
        return torch.arange(rows).view(blocks, -1)[self.blocks].flatten()

    def slots(self, rows: int) -> Bool[Tensor, "R N 1"]:
        """Slots that it fills, in each of its rows."""
        return self._filled.repeat_interleave(rows // len(self.blocks), 0).unsqueeze(-1)

    def referee(self, spec: EnvSpec, device: torch.device) -> Referee:
        """Who checks its decisions."""
        self._referee = self._referee or Referee(spec, device)
        return self._referee


class _Some(Streams):
    """Streams of some of the policies."""

    def __init__(self, streams: Streams, policies: Sequence[int]):
        self.device = streams.device
        self.on_host = [streams.on_host[p] for p in policies]
        self.generators = [streams.generators[p] for p in policies]


def put(x: Num[Tensor, "E ..."], rows: Int[Tensor, " R"], new: Num[Tensor, "R ..."]) -> Num[Tensor, "E ..."]:
    """A copy of x with other rows."""
    return x.index_copy(0, rows.to(x.device), new)
