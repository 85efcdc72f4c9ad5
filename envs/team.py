"""Teams of several actors: opponents, strangers, people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from envs.actors import Hears, require_actor
from envs.core import Actor, Decision, EnvSpec, InputError, KeepsRows, Observation, Step, Streams, Tree

Slots = str | int | Sequence[str | int]


@runtime_checkable
class HasPartners(Protocol):
    """A world that comes with actors for a trained one to meet, each of whom can fill any slot."""

    def partners(self) -> Mapping[str, Actor]:
        """Actors by name."""


class Team:
    """An Actor whose slots are other Actors: `Team(spec, {"agent_0": one, "agent_1": other})`.

    Keys are agents by name or slot, one or several. Each member sees the whole observation, as it would alone, and its
    decision counts for its own slots. An actor under several keys decides once for all of them; two objects are two
    members, who remember apart. What a team remembers is a tuple, an entry a member.

    A team's latent is the tuple of its members', None where none has any; its counts are their sums; its log_prob is
    [E,N] where every member gives one an agent, else None: what a joint decider does cannot be taken apart.
    Raises InputError for an unknown agent, a member that is no Actor, and unless every slot is filled once.
    """

    def __init__(self, spec: EnvSpec, actors: Mapping[Slots, Actor]):
        if not isinstance(actors, Mapping):
            raise InputError(f"A team is made of actors by agent, {{{spec.agents[0]!r}: one, …}}; got {actors!r}.")
        members: dict[int, tuple[Actor, list[int]]] = {}
        for key, actor in actors.items():
            require_actor(actor, f"A team's member {key!r}")
            keys = key if isinstance(key, Sequence) and not isinstance(key, str) else [key]
            members.setdefault(id(actor), (actor, []))[1].extend(_slot(spec, each) for each in keys)
        filled = sorted(slot for _, slots in members.values() for slot in slots)
        if filled != list(range(len(spec.agents))):
            raise InputError(
                f"A team fills every slot once, 0 to {len(spec.agents) - 1} ({', '.join(spec.agents)}); got {filled}."
            )
        self.spec = spec
        self.members = tuple((actor, tuple(sorted(slots))) for actor, slots in members.values())
        self.keeps_rows = any(isinstance(actor, KeepsRows) and actor.keeps_rows for actor, _ in self.members)

    def initial_memory(self, num_envs: int) -> Tree:
        """Each member's."""
        return tuple(actor.initial_memory(num_envs) for actor, _ in self.members)

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Ask every member, in order, and put their parts together."""
        decisions, memories = [], []
        for (actor, _), remembered in zip(self.members, memory, strict=True):
            decision, remembered = actor.act(obs, remembered, streams)
            decisions.append(decision)
            memories.append(remembered)
        latents = tuple(decision.latent for decision in decisions)
        joint = Decision(
            self._by_slot([decision.action for decision in decisions]),
            None if all(latent is None for latent in latents) else latents,
            self._log_prob(decisions),
            _sums(decisions),
        )
        return joint, tuple(memories)

    def hear(self, step: Step) -> None:
        """Tell the members who hear."""
        for actor, _ in self.members:
            if isinstance(actor, Hears):
                actor.hear(step)

    def _log_prob(self, decisions: Sequence[Decision]) -> Float[Tensor, "E N"] | None:
        parts = [decision.log_prob for decision in decisions if decision.log_prob is not None]
        one_each = all(part.shape[-1] == len(self.spec.agents) for part in parts)
        return self._by_slot(parts) if one_each and len(parts) == len(decisions) else None

    def _by_slot(self, parts: Sequence[Tensor]) -> Tensor:
        """Of each member's tensor [E,N,…] its own slots."""
        joint = parts[0].clone()
        for (_, slots), part in zip(self.members, parts, strict=True):
            own = torch.tensor(slots, device=part.device)
            joint = joint.index_copy(1, own, part.index_select(1, own).to(joint.dtype))
        return joint


def _slot(spec: EnvSpec, key: Any) -> int:
    if key in spec.agents:
        return spec.agents.index(key)
    if type(key) is int and 0 <= key < len(spec.agents):
        return key
    raise InputError(f"There is no agent {key!r}; the agents are {', '.join(spec.agents)}, or 0, 1, … by slot.")


def _sums(decisions: Sequence[Decision]) -> dict[str, Tensor] | None:
    """Sums over all members of their decisions' counts, by name; None where nothing is counted."""
    sums: dict[str, Tensor] = {}
    for decision in decisions:
        for name, count in (decision.counts or {}).items():
            sums[name] = sums[name] + count if name in sums else count
    return sums or None
