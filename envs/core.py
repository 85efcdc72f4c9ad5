"""The types that worlds and learners share: tensors with named axes, and nothing about learning.

Axes: E parallel environments, N agents, D observation features, S state features, A action components (or, in `legal`,
choices), K reward channels, P policies trained at once, M deciders. Environments are ordered policy-major: with P
policies, rows p·E/P to (p+1)·E/P belong to policy p.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

T = TypeVar("T")
Tree = Any  # a Tensor, None, or a tuple, dict or dataclass of trees


WIDEST = 1e6  # the widest range that real actions are scaled to


class ConcordError(Exception):
    """Something the user can mend. The message says what was expected, what came and what to do.

    The command line prints it as one paragraph, without a traceback, and exits with `exit_code`.
    """

    exit_code = 1


class InputError(ConcordError):
    """Bad input: a config, an argument, or an environment that breaks its contract."""

    exit_code = 2


@dataclass(frozen=True)
class Discrete:
    """Actions of A components; component a is an integer in {0, …, choices[a]-1}."""

    choices: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of components, A."""
        return len(self.choices)


@dataclass(frozen=True)
class Continuous:
    """Actions of A real components, component a in [low[a], high[a]] (infinite where unbounded)."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def size(self) -> int:
        """The number of components, A."""
        return len(self.low)

    @property
    def bounded(self) -> tuple[bool, ...]:
        """True for components with a range worth scaling to; wider ones, as of any float, count as unbounded."""
        return tuple(high - low <= WIDEST for low, high in zip(self.low, self.high))


@dataclass(frozen=True)
class EnvSpec:
    """Specification of a world, known to a learner before it sees it.

    agents: names, in slot order. kind: agents of equal kind are interchangeable and may share parameters.
    channels: names of the K rewards. observation_sizes, actions: one entry an agent, before padding.
    state_size: S. horizon: steps after which the task itself ends (it terminates), or None.
    """

    agents: tuple[str, ...]
    kind: tuple[int, ...]
    channels: tuple[str, ...]
    observation_sizes: tuple[int, ...]
    actions: tuple[Discrete | Continuous, ...]
    state_size: int
    horizon: int | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ("agents", "kind", "observation_sizes", "actions")}
        if len(set(lengths.values())) != 1:
            raise InputError(f"An EnvSpec needs one entry per agent in each of {', '.join(lengths)}; got {lengths}.")
        for name in ("agents", "channels"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                raise InputError(f"An EnvSpec needs {name} with names of their own; got {list(given)}.")
        if len({type(space) for space in self.actions}) > 1:
            raise InputError(
                "All agents of one environment must act in the same way: all discrete or all continuous. Got "
                f"{[type(space).__name__ for space in self.actions]}; discretize the continuous ones."
            )

    @cached_property
    def action(self) -> Discrete | Continuous:
        """The padded action space: the union over agents, which every agent's action fits into."""
        size = max(space.size for space in self.actions)
        if isinstance(self.actions[0], Discrete):
            rows = itertools.zip_longest(*(s.choices for s in self.actions if isinstance(s, Discrete)), fillvalue=1)
            return Discrete(tuple(max(row) for row in rows))
        spaces = [s for s in self.actions if isinstance(s, Continuous)]
        low, high = (
            tuple(pick(getattr(s, side)[a] for s in spaces if a < s.size) for a in range(size))
            for side, pick in (("low", min), ("high", max))
        )
        return Continuous(low, high)

    @cached_property
    def observation_size(self) -> int:
        """D, the largest agent's observation; shorter ones are padded with zeros."""
        return max(self.observation_sizes)

    @cached_property
    def legal(self) -> Bool[Tensor, "N A"] | None:
        """The choices that exist for each agent, or None where no padding forbids any."""
        if not isinstance(self.action, Discrete):
            return None
        rows = []
        for space in self.actions:
            assert isinstance(space, Discrete)
            for component, widest in enumerate(self.action.choices):
                count = space.choices[component] if component < space.size else 1
                rows.append(torch.arange(widest) < count)
        mask = torch.cat(rows).view(len(self.agents), -1)
        return None if bool(mask.all()) else mask


@dataclass(frozen=True, slots=True)
class Observation:
    """Present view of the agents, and of their critic.

    agent: each agent's own view, padded to D. state: the whole, for central critics. alive: who is still there.
    legal: choices allowed (components side by side), None where everything always is. For real actions, the components
    that count: an agent out of turn has none.
    """

    agent: Float[Tensor, "*B N D"]
    state: Float[Tensor, "*B S"]
    alive: Bool[Tensor, "*B N"]
    legal: Bool[Tensor, "*B N A"] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Consequences of one joint action.

    obs: what the agents see next; where `ended`, already the next episode's start.
    reward: by agent and channel, 0 for agents who were not alive.
    terminated, truncated: by agent, true at the one step at which the agent leaves; value is bootstrapped through
    truncation only. ended: no agent is left, so this row has started anew.
    final_obs: the true successor as the agents who acted saw it, before any restart; bootstrap from this.

    Every tensor belongs to the receiver: an environment never writes to one that it has handed out.
    """

    obs: Observation
    reward: Float[Tensor, "E N K"]
    terminated: Bool[Tensor, "E N"]
    truncated: Bool[Tensor, "E N"]
    ended: Bool[Tensor, " E"]
    final_obs: Observation


@dataclass(frozen=True, slots=True)
class Decision:
    """A joint decision. The environment gets `action`; whoever learns stores the whole.

    action: integers (discrete) or reals. latent: what else was decided (a graph, a rule), or None.
    log_prob: of each of M deciders, under whoever decided; None if it does not say.
    counts: what this decision took in each row, by name, such as queries or tokens; the same names at every step.
    """

    action: Num[Tensor, "*B N A"]
    latent: Any = None
    log_prob: Float[Tensor, "*B M"] | None = None
    counts: dict[str, Num[Tensor, "*B"]] | None = None


@runtime_checkable
class Actor(Protocol):
    """Anything that acts: policies, planners and scripted baselines alike.

    Memory is a tree of tensors [E, …] (or None) that is zero at the start of an episode.
    """

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory at the start of an episode."""

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Decide for all agents of all rows: `return Decision(action), memory`.

        action: [E,N,A], E = len(obs.alive) rows, N agents, A = spec.action.size components. Discrete: int64, component
        a in {0, …, spec.action.choices[a] - 1}, and legal where `obs.legal` is given and the agent alive. Continuous:
        float32 and finite, in [low, high]; environments clip what is beyond. Agents who are not alive act without
        effect; 0 will do. memory: what the next call gets, None where nothing is remembered.
        """


@runtime_checkable
class KeepsRows(Actor, Protocol):
    """An Actor that keeps something by row beside its memory, as a planner its text: it must always see every row.

    keeps_rows: true. Others may be asked about fewer rows as an evaluation goes on.
    """

    keeps_rows: bool


@runtime_checkable
class VectorEnv(Protocol):
    """E environments stepped together. Rows restart by themselves. `envs.testing.check_env` tests the contract."""

    spec: EnvSpec
    num_envs: int
    device: torch.device

    def reset(self, seed: int | Sequence[int]) -> Observation:
        """Start every row anew; P seeds seed P equal blocks of rows, each as an environment of its own would be."""

    def step(self, action: Num[Tensor, "E N A"]) -> Step:
        """Advance every row by one joint action."""

    def close(self) -> None:
        """Free what the environment holds; a second call does nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly, as a tree of tensors and JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        """Continue exactly where `state` was taken; returns the observation that was current then."""


@runtime_checkable
class Describes(Protocol):
    """A task in words, said from an `Observation` alone; a World with these three gets every planner."""

    def words(self, obs: Observation, row: int, agent: int | None = None) -> str:
        """One row in words; with an agent given, only what `obs.agent` shows it."""

    def plans(self, obs: Observation, row: int) -> list[list[str]]:
        """The legal plans of each agent, in words that `parse` reads."""

    def parse(self, text: str, obs: Observation, row: int) -> Decision | str:
        """The decision [1,N,A] that a text means, or a sentence that says why it is refused."""


class Streams:
    """Random numbers, one generator a policy, so that a policy draws the same alone and among others.

    Draws have P·n rows, policy-major. `on_host` holds generators of the same seeds on the CPU, for what must not depend
    on the device, such as first weights.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.on_host = [torch.Generator().manual_seed(seed) for seed in seeds]
        on_cpu = self.device.type == "cpu"
        self.generators = self.on_host if on_cpu else [torch.Generator(self.device).manual_seed(s) for s in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def draw(self, sample: Callable[[int, torch.Generator], Tree], rows: int) -> Tree:
        """`sample(rows/P, generator)` for each policy's generator, joined policy-major, leaf by leaf."""
        policies = len(self.generators)
        return self.draw_ragged(sample, [rows // policies] * policies)

    def draw_ragged(self, sample: Callable[[int, torch.Generator], Tree], rows: Sequence[int]) -> Tree:
        """As `draw`, with rows[p] rows for policy p."""
        if len(self.generators) == 1:
            return sample(rows[0], self.generators[0])
        drawn = [sample(count, g) for count, g in zip(rows, self.generators, strict=True)]
        return tree_map(lambda *leaves: torch.cat(leaves), *drawn)

    def draw_ahead(self, sample: Callable[[int, torch.Generator], Tree], rows: int, steps: int) -> Tree:
        """Numbers for `steps` draws of as many rows, [T,rows,…]; each policy's are drawn at once."""
        shape = (len(self), steps, rows // len(self))
        drawn = self.draw(sample, steps * rows)
        return tree_map(lambda x: x.unflatten(0, shape).transpose(0, 1).flatten(1, 2), drawn)

    def exponential(self, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
        """Exponential variables of rate 1; shape[0] must be a multiple of P."""
        rest = tuple(shape[1:])
        return self.draw(lambda n, g: torch.empty((n, *rest), device=self.device).exponential_(generator=g), shape[0])

    def normal(self, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
        """Standard normal variables; shape[0] must be a multiple of P."""
        rest = tuple(shape[1:])
        return self.draw(lambda n, g: torch.randn((n, *rest), generator=g, device=self.device), shape[0])

    def permutation(self, count: int) -> Int[Tensor, "P count"]:
        """A random order of `count` things for each policy."""
        return torch.stack([torch.randperm(count, generator=g, device=self.device) for g in self.generators])

    def state_dict(self) -> dict[str, Tensor]:
        """The generators' states, [P, bytes]."""
        return {"generators": torch.stack([g.get_state() for g in self.generators])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue the sequences where `state` was taken."""
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.set_state(saved.to("cpu", copy=True))  # torch crashes on a view that starts inside its storage


def import_dotted(path: str) -> Any:
    """The module `package.module`, or the object `package.module:name`.

    The current folder is searched too, so that a user's own file needs no installation. Raises InputError for a path
    that is malformed, a module that is missing or fails to import, or a name that it lacks (the nearest is told).
    """
    module_path, colon, name = path.partition(":")
    if not all(part.isidentifier() for part in module_path.split(".")) or (colon and not name.isidentifier()):
        raise InputError(f"Expected a dotted path such as 'package.module' or 'package.module:name'; got {path!r}.")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_path)
    except ImportError as error:
        missing = getattr(error, "name", None)
        reason = "there is no such module" if missing and module_path.startswith(missing) else str(error)
        raise InputError(f"Cannot import {module_path} (from {path!r}): {reason}.") from error
    if not colon:
        return module
    if not hasattr(module, name):
        near = difflib.get_close_matches(name, dir(module), 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"{module_path} has no {name} (from {path!r}).{hint}")
    return getattr(module, name)


_FIELDS: dict[type, tuple[str, ...]] = {}


def tree_map(function: Callable[..., Any], tree: T, *others: Any) -> T:
    """Apply `function` to the tensors of equally shaped trees; None and names stay as they are."""
    kind: Any = type(tree)
    # Most leaves are plain tensors, and torch takes long to tell that something else is none: both are asked last.
    if kind is Tensor:
        return function(tree, *others)
    if tree is None or isinstance(tree, str):
        return tree
    if isinstance(tree, tuple):
        values = [tree_map(function, *leaves) for leaves in zip(tree, *others, strict=True)]
        return kind(*values) if hasattr(kind, "_fields") else kind(values)
    if isinstance(tree, dict):
        return {key: tree_map(function, tree[key], *(o[key] for o in others)) for key in tree}  # type: ignore[return-value]
    if isinstance(tree, Tensor):
        return function(tree, *others)
    names = _FIELDS.get(kind)
    if names is None:
        names = _FIELDS[kind] = tuple(field.name for field in dataclasses.fields(kind))
    return kind(*[tree_map(function, getattr(tree, n), *[getattr(o, n) for o in others]) for n in names])


def leaves(tree: Tree) -> list[Tensor]:
    """The tensors of a tree."""
    found: list[Tensor] = []

    def found_too(leaf: Tensor) -> Tensor:
        found.append(leaf)
        return leaf

    tree_map(found_too, tree)
    return found


def tree_where(mask: Bool[Tensor, " E"], yes: T, no: T) -> T:
    """Rows of `yes` where the mask holds, else rows of `no`."""
    return tree_map(lambda a, b: torch.where(mask.view(-1, *[1] * (a.dim() - 1)), a, b), yes, no)
