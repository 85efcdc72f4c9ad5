"""Memory for the agents of any swarm: numbers of their own that they write by acting and see beside the rest."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from envs.arguments import require_arguments
from envs.core import Continuous, InputError, Observation, Tree, import_dotted
from envs.swarm.features import Moments
from envs.swarm.spec import require_whole
from envs.world import Transition, World


class Remembering(NamedTuple):
    """The inner world's state, and what each agent has written last."""

    inner: Any
    memory: Float[Tensor, "E N C"]


class WithMemory(World[Remembering]):
    """A swarm world whose agents each have `cells` real numbers of memory.

    An agent sees its memory after what it sees of the world, and its action has `cells` more components in [-1, 1]:
    what it writes. The new memory is that action, cut to the range; at the start of an episode it is 0. A rule that
    is memoryless in (y, memory) is thus one with memory in y. Memory is a part of the agents' state, so the critic
    (and an upper level with sees: swarm) gets its mean and variance over the swarm, cell by cell, after the state of
    the inner world. Reward, horizon and picture are the inner world's.

    world: a World, or the dotted path of one, which is made with `args`; `agents` goes to it where given. Raises
    InputError for fewer than one cell, what is no world, finite choices, and agents who differ.
    """

    def __init__(self, world: World[Any] | str, cells: int = 1, agents: int | None = None, **args: Any):
        require_whole(cells=cells)
        if cells < 1:
            raise InputError(f"A memory has at least one cell; got cells={cells}.")
        args |= {} if agents is None else {"agents": agents}
        self.world = _made(world, args)
        self.cells, self.shows_clock = cells, self.world.shows_clock
        self.features = Moments(cells)
        inner = self.world.spec
        name = type(self.world).__name__
        if not isinstance(inner.action, Continuous):
            raise InputError(
                f"WithMemory adds real numbers to real actions; agents of {name} choose among finitely many. Such as "
                "LinearQuadratic, Aggregation, Vicsek and Kuramoto of envs.swarm can remember."
            )
        if len(set(inner.observation_sizes)) > 1 or len(set(inner.actions)) > 1:
            raise InputError(f"WithMemory is for swarms of like agents; those of {name} see or act differently.")
        action = Continuous((*inner.action.low, *(-1.0,) * cells), (*inner.action.high, *(1.0,) * cells))
        self.spec = dataclasses.replace(
            inner,
            observation_sizes=tuple(size + cells for size in inner.observation_sizes),
            actions=(action,) * len(inner.agents),
            state_size=inner.state_size + self.features.size,
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> Tree:
        """The inner world's."""
        return self.world.initial_noise(num, generator)

    def initial(self, noise: Tree) -> Remembering:
        """Nothing is remembered."""
        inner = self.world.initial(noise)
        seen = self.world.observe(inner).agent
        return Remembering(inner, seen.new_zeros(*seen.shape[:2], self.cells))

    def noise(self, num: int, generator: torch.Generator) -> Tree:
        """The inner world's."""
        return self.world.noise(num, generator)

    def transition(self, state: Remembering, action: Num[Tensor, "E N A"], noise: Tree) -> Transition:
        """The inner world goes on, and agents write."""
        done, written = action[..., : -self.cells], action[..., -self.cells :]
        inner, reward, terminated = self.world.transition(state.inner, done, noise)
        return Transition(Remembering(inner, written.clamp(-1, 1)), reward, terminated)

    def observe(self, state: Remembering) -> Observation:
        """Observation of the inner world, then memory: each agent its own, the critic its moments."""
        seen = self.world.observe(state.inner)
        agent = torch.cat([seen.agent, state.memory], -1)
        whole = torch.cat([seen.state, self.features(state.memory)], -1)
        return Observation(agent, whole, seen.alive, self._legal(seen.legal))

    def frame(self, state: Remembering) -> Any:
        """The inner world's picture."""
        return self.world.frame(state.inner)

    def _legal(self, legal: Bool[Tensor, "E N A"] | None) -> Bool[Tensor, "E N A+cells"] | None:
        """Memory can always be written."""
        return None if legal is None else torch.cat([legal, legal.new_ones(*legal.shape[:2], self.cells)], -1)


def _made(world: World[Any] | str, args: dict[str, Any]) -> World[Any]:
    """The world itself, or the one that its dotted path makes with `args`."""
    made: Any = world
    if isinstance(world, str):
        maker = import_dotted(world)
        require_arguments(maker, args, "args")
        made = maker(**args) if callable(maker) else maker
    if not isinstance(made, World):
        raise InputError(f"WithMemory needs a World, or the dotted path of one, module:Class; got {world!r}.")
    return made
