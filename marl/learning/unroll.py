"""Steps of a native world by a policy as one pure function of random numbers that were drawn ahead."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from envs.core import Actor, Decision, InputError, Observation, Streams, Tree, leaves, tree_map
from envs.world import Noise, Rows, TensorEnv
from marl.learning.batch import forget

MOST_DRAWN = 2**18  # random numbers drawn ahead for a policy: more would leave a processor's caches
AT_ONCE = 4  # steps in one compiled function: more are no faster and take longer to compile

OTHER_NUMBERS = (
    "An actor with draws_alike = True asked for other random numbers than when it first acted. Set "
    "draws_alike = False: its numbers cannot be drawn ahead."
)

Sample = Callable[[int, torch.Generator], Tree]


class TimeStep(NamedTuple):
    """One step: what was seen, what it led to, what was decided, and what followed."""

    obs: Observation
    final_obs: Observation
    decision: Decision
    reward: Float[Tensor, "E N K"]
    terminated: Bool[Tensor, "E N"]
    truncated: Bool[Tensor, "E N"]
    ended: Bool[Tensor, " E"]


class Trajectory(NamedTuple):
    """T steps, what the actor remembered before each, and observation and memory to go on from."""

    taken: list[TimeStep]
    memories: list[Tree]
    obs: Observation
    memory: Tree


@runtime_checkable
class DrawsAlike(Actor, Protocol):
    """An Actor whose every `act` draws the same kinds and shapes of numbers by `streams.draw`, and is otherwise pure.

    draws_alike: true. Its random numbers are then drawn ahead for many steps, and several steps compiled as one. Each
    row's must not depend on the other rows', since those of all steps are drawn by one call.
    """

    draws_alike: bool


class Asked(NamedTuple):
    """A draw that an actor asks its streams for; see `Streams.draw`."""

    sample: Sample
    rows: int

    def like(self, sample: Sample, rows: int) -> bool:
        """True where that is a draw of the same kind and shape."""
        return rows == self.rows and _kind(sample) == _kind(self.sample)


class _Recorder(Streams):
    """Streams that note what they are asked for."""

    asked: tuple[Asked, ...] = ()

    def draw(self, sample: Sample, rows: int) -> Tree:
        self.asked += (Asked(sample, rows),)
        return super().draw(sample, rows)


class Drawn(Streams):
    """Streams whose numbers were drawn before, in the order in which they are asked for: as `asked` says."""

    def __init__(self, numbers: Sequence[Tree], asked: Sequence[Asked], policies: int, device: torch.device):
        self.device, self._left, self._policies = device, list(zip(numbers, asked, strict=True)), policies

    def __len__(self) -> int:
        return self._policies

    def require_none_left(self) -> None:
        """Raise InputError where fewer numbers were asked for than had been drawn."""
        if self._left:
            raise InputError(OTHER_NUMBERS)

    @property
    def generators(self) -> Any:  # type: ignore[override]
        """Raises InputError: what is drawn from them directly cannot have been drawn before."""
        raise InputError(
            "An actor with draws_alike = True may draw by streams.draw, streams.normal and streams.exponential alone. "
            "Set draws_alike = False for one that draws otherwise."
        )

    def draw(self, sample: Sample, rows: int) -> Tree:
        """The next ones. Raises InputError where there are none, or others than are asked for."""
        # A compiler cannot compare functions; what it traces has run as it is, and been compared, in `_Recorder`'s act.
        alike = bool(self._left) and (torch.compiler.is_compiling() or self._left[0][1].like(sample, rows))
        if not alike:
            raise InputError(OTHER_NUMBERS)
        return self._left.pop(0)[0]


class Ahead(NamedTuple):
    """Random numbers of T steps, [T,E,…]: each of the actor's draws in turn, and the world's."""

    actor: tuple[Tree, ...]
    world: Noise


class Unroll:
    """Steps of a policy that draws alike in a native world, several as one function of state and random numbers.

    at_once: steps that `steps` takes in one call, so that it can be compiled; None: all whose numbers were drawn. The
    same numbers are drawn in the same order in any case.
    """

    def __init__(self, env: TensorEnv, actor: DrawsAlike, policies: int, at_once: int | None = None):
        self.env, self.actor, self.policies, self.at_once = env, actor, policies, at_once
        self._asked: tuple[Asked, ...] | None = None
        self._reach = 0

    def reach(self, obs: Observation, memory: Tree) -> int:
        """Steps for which random numbers are drawn ahead; 0 where those of one step are too many."""
        if self._asked is None:
            recorder = _Recorder(range(self.policies), self.env.device)
            with torch.no_grad():  # what was seen may come from inference mode
                self.actor.act(obs, memory, recorder)
            self._asked = recorder.asked
            reach = MOST_DRAWN * self.policies // max(1, self._numbers_of_a_step())
            left_over = reach % AT_ONCE if reach > AT_ONCE else 0  # it would be compiled by itself
            self._reach = reach - left_over
        return self._reach

    def play(self, obs: Observation, memory: Tree, streams: Streams, steps: int) -> Trajectory:
        """`steps` steps from `obs`, which the environment shows at present, and from what is remembered."""
        taken: list[TimeStep] = []
        memories: list[Tree] = []
        reach = self.reach(obs, memory)
        rows, obs, memory = _as_computed_here((self.env.rows, obs, memory))
        for drawn in _parts(steps, reach):
            ahead = self._draw(streams, len(drawn))
            for part in _parts(len(drawn), self.at_once or len(drawn)):
                found, before, rows, obs, memory = self.steps(rows, obs, memory, _of(ahead, part))
                taken += found
                memories += before
        self.env.go_on_from(rows, obs)
        return Trajectory(taken, memories, obs, memory)

    def steps(
        self, rows: Rows, obs: Observation, memory: Tree, ahead: Ahead
    ) -> tuple[tuple[TimeStep, ...], tuple[Tree, ...], Rows, Observation, Tree]:
        """As many steps as there are random numbers; pure, so that they can be compiled."""
        taken, memories = [], []
        for t in range(_length(ahead.world.start)):
            memories.append(memory)
            of_actor, noise = tree_map(itemgetter(t), ahead)
            drawn = Drawn(of_actor, self._asked or (), self.policies, self.env.device)
            decision, memory = self.actor.act(obs, memory, drawn)
            drawn.require_none_left()
            rows, following, outcomes, final_obs = self.env.advance(rows, obs.alive, decision.action, noise.physics)
            taken.append(TimeStep(obs, final_obs, decision, *outcomes))
            ended = outcomes[-1]
            rows, obs = self.env.restart(rows, following, ended, noise.start)
            memory = forget(memory, ended)
        return tuple(taken), tuple(memories), rows, obs, memory

    def _draw(self, streams: Streams, steps: int) -> Ahead:
        assert self._asked is not None
        of_actor = tuple(streams.draw_ahead(asked.sample, asked.rows, steps) for asked in self._asked)
        return Ahead(of_actor, self.env.draw_ahead(steps))

    def _numbers_of_a_step(self) -> int:
        assert self._asked is not None
        one, world = Streams([0], self.env.device), self.env.world
        draws = [*self._asked, Asked(world.noise, self.env.num_envs), Asked(world.initial_noise, self.env.num_envs)]
        return sum(asked.rows * sum(x.numel() for x in leaves(one.draw(asked.sample, 1))) for asked in draws)


def _kind(sample: Sample) -> tuple[Any, ...]:
    """What a draw does, and what it holds on to besides its own streams, such as the shape; tensors by identity."""
    if isinstance(sample, functools.partial):
        return _kind(sample.func), *map(_held, sample.args), *map(_held, sample.keywords.values())
    cells = [cell.cell_contents for cell in getattr(sample, "__closure__", None) or ()]
    held = (*cells, *(getattr(sample, "__defaults__", None) or ()))
    return getattr(sample, "__code__", sample), *(_held(x) for x in held if not isinstance(x, Streams))


def _held(x: Any) -> Any:
    return id(x) if isinstance(x, Tensor) else x


def _as_computed_here(present: Tree) -> Tree:
    """Copies of what was made outside inference mode or with memory shared by rows: a compiler would start anew."""
    outside = torch.is_inference_mode_enabled() and not all(x.is_inference() for x in leaves(present))
    return tree_map(lambda x: x.clone(memory_format=torch.contiguous_format), present) if outside else present


def _parts(total: int, most: int) -> Iterator[range]:
    return (range(first, min(total, first + most)) for first in range(0, total, most))


def _of(ahead: Ahead, steps: range) -> Ahead:
    return tree_map(lambda x: x[steps.start : steps.stop], ahead)


def _length(tree: Tree) -> int:
    return len(leaves(tree)[0])
