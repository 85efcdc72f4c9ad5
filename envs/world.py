"""A world is physics as pure functions of batched tensors; `TensorEnv` turns any world into a `VectorEnv`."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from envs.core import (
    WIDEST,
    Continuous,
    Decision,
    Discrete,
    EnvSpec,
    InputError,
    Observation,
    Step,
    Streams,
    Tree,
    tree_map,
    tree_where,
)
from envs.forms import require_form

State = TypeVar("State")
# reward [E,N,K], terminated, truncated [E,N], ended [E]
Outcomes = tuple[Float[Tensor, "E N K"], Bool[Tensor, "E N"], Bool[Tensor, "E N"], Bool[Tensor, " E"]]


class Transition(NamedTuple):
    """Result of one step of a world's physics. `terminated` None says that this world never ends by itself."""

    state: Any
    reward: Float[Tensor, "E N K"]
    terminated: Bool[Tensor, "E N"] | None = None


class World(ABC, Generic[State]):
    """Physics, pure in its noise: the same state, action and noise always give the same result.

    That purity is what lets one world be compiled, differentiated, captured on a GPU, and compared exactly with another
    implementation. `State` is any tree of tensors whose leading axis is E. Subclasses set `spec` and, if a horizon is
    part of the task but agents may not see the clock, `shows_clock = False` (the critic always sees it, in `state`).
    """

    spec: EnvSpec
    shows_clock: bool = True

    @abstractmethod
    def initial_noise(self, num: int, generator: torch.Generator) -> Tree:
        """The random numbers that `initial` needs for `num` rows, on the generator's device."""

    @abstractmethod
    def initial(self, noise: Tree) -> State:
        """The state at the start of an episode."""

    def noise(self, num: int, generator: torch.Generator) -> Tree:
        """The random numbers that one `transition` of `num` rows needs; None for deterministic physics."""
        return None

    @abstractmethod
    def transition(self, state: State, action: Num[Tensor, "E N A"], noise: Tree) -> Transition:
        """One step. Returns new tensors; never writes to its arguments."""

    @abstractmethod
    def observe(self, state: State) -> Observation:
        """Observation of `state` by agents and critic."""

    def known(self) -> dict[str, float]:
        """Returns per agent that theory gives for this world, by name, of one channel by CHANNEL/NAME (above 0)."""
        return {}

    def frame(self, state: State) -> Any:
        """A picture of the one row of `state`, [height, width, 3] uint8. A world without pictures raises InputError."""
        raise InputError(f"{type(self).__name__} has no picture; give it a method frame(state) to render it.")


class Rows(NamedTuple):
    """Present of each row of a `TensorEnv`: physics, steps taken in its episode, and agents who have not left it."""

    state: Any
    clock: Int[Tensor, " E"]
    present: Bool[Tensor, "E N"]


class Noise(NamedTuple):
    """Random numbers of a step, [E,…], or of T steps, [T,E,…]: the physics', and those of an episode's start."""

    physics: Tree
    start: Tree


class TensorEnv:
    """E rows of a `World`, stepped together on one device.

    time_limit truncates an episode after that many steps, a convenience of training; `spec.horizon`, where a world has
    one, terminates it, and then the clock (elapsed share of the horizon) comes first in `state` and, unless the world
    hides it, in `agent`.

    On the CPU only the rows that ended are restarted (indexing); on a GPU all rows are computed and selected, so that
    the host never waits. Both give the same numbers wherever a world draws the same noise. Raises InputError for a time
    limit or a number of rows below 1, and where a world's first observation or transition has not the form of its spec.
    """

    def __init__(
        self,
        world: World[Any],
        num_envs: int,
        *,
        time_limit: int | None = None,
        device: torch.device | str = "cpu",
        select_rows: bool | None = None,
    ):
        if num_envs < 1:
            raise InputError(f"num_envs must be at least 1; got {num_envs}.")
        if time_limit is not None and time_limit < 1:
            raise InputError(f"time_limit must be at least 1 step (or null for none); got {time_limit}.")
        self.world = world
        self.num_envs = num_envs
        self.time_limit = time_limit
        self.device = torch.device(device)
        self.spec = _spec_with_clock(world)
        self._select_rows = self.device.type != "cpu" if select_rows is None else select_rows
        self._never = torch.zeros(num_envs, len(self.spec.agents), dtype=torch.bool, device=self.device)
        self._start = torch.zeros(num_envs, dtype=torch.int64, device=self.device), ~self._never
        self._begun, self._unseen, self._untried = False, True, True  # the last two: of what is checked once

    def reset(self, seed: int | Sequence[int]) -> Observation:
        """Start every row anew; P seeds seed P equal blocks of rows."""
        seeds = [seed] if isinstance(seed, int) else list(seed)
        if not seeds or self.num_envs % len(seeds):
            raise InputError(
                f"{self.num_envs} environments cannot be shared equally by {len(seeds)} seeds; give as many seeds as "
                "policies, a divisor of num_envs."
            )
        self._streams, self._begun = Streams(seeds, self.device), True
        self._rows, self._obs = self._begin(self._streams.draw(self.world.initial_noise, self.num_envs), self.num_envs)
        return self._obs

    def step(self, action: Num[Tensor, "E N A"]) -> Step:
        """Advance every row by one joint action, [E,N,A]."""
        if not self._begun:
            raise InputError("Call reset(seed) before the first step: it draws where the episodes begin.")
        noise = self._streams.draw(self.world.noise, self.num_envs)
        rows, obs, (reward, terminated, truncated, ended), final_obs = self.advance(
            self._rows, self._obs.alive, action, noise
        )
        self._rows, self._obs = self._restart(rows, obs, ended)
        return Step(self._obs, reward, terminated, truncated, ended, final_obs)

    def advance(
        self, rows: Rows, acted: Bool[Tensor, "E N"], action: Num[Tensor, "E N A"], noise: Tree
    ) -> tuple[Rows, Observation, Outcomes, Observation]:
        """One step without restarts: the rows, what is seen next, what happened, and what those who acted see.

        Pure, so that it can be compiled.
        """
        result = self.world.transition(rows.state, action, noise)
        if self._untried and not torch.compiler.is_compiling():
            self._untried = False
            require_form(self.world, result, Transition, len(action), self.device)
        state, reward, terminated = result
        clock, present = rows.clock + 1, rows.present
        seen = self.observe(state, clock)
        final_obs = Observation(seen.agent, seen.state, acted, seen.legal)
        over, truncated, ended = self._leaving_together(clock, acted)
        if terminated is None:
            return Rows(state, clock, present), seen, (reward, over, truncated, ended), final_obs
        terminated = (terminated & acted) | over
        truncated = truncated & ~terminated
        present = present & ~(terminated | truncated)
        alive = seen.alive & present
        terminated = terminated | (acted & ~alive & ~truncated)  # who is gone without a word has no future either
        obs = Observation(seen.agent, seen.state, alive, seen.legal)
        outcomes = (reward * acted.unsqueeze(-1), terminated, truncated, ~alive.any(-1))
        return Rows(state, clock, present), obs, outcomes, final_obs

    def restart(self, rows: Rows, obs: Observation, ended: Bool[Tensor, " E"], noise: Tree) -> tuple[Rows, Observation]:
        """New episodes in the rows that ended, from random numbers [E,…]; the others stay. Pure, as `advance` is."""
        if self._select_rows or torch.compiler.is_compiling():
            return tree_where(ended, self._begin(noise, self.num_envs), (rows, obs))
        places = ended.nonzero().squeeze(1)
        return self._put(rows, obs, places, tree_map(lambda x: x.index_select(0, places), noise))

    def draw_ahead(self, steps: int) -> Noise:
        """Random numbers [T,E,…] for `advance` and `restart`, T times."""
        # Step by step: the rows of one step may share what they draw, such as a shock that meets all of them.
        draw, world, rows = self._streams.draw, self.world, self.num_envs
        drawn = [Noise(draw(world.noise, rows), draw(world.initial_noise, rows)) for _ in range(steps)]
        return tree_map(lambda *leaves: torch.stack(leaves), *drawn)

    @property
    def rows(self) -> Rows:
        """The present of every row."""
        return self._rows

    def go_on_from(self, rows: Rows, obs: Observation) -> None:
        """Go on from what `advance` and `restart` made of the rows."""
        self._rows, self._obs = rows, obs

    def close(self) -> None:
        """Nothing to free."""

    def detach(self) -> Observation:
        """Take the present for given: gradients of what follows end here. Returns the current observation."""
        self._rows, self._obs = tree_map(Tensor.detach, (self._rows, self._obs))
        return self._obs

    def state_dict(self) -> dict[str, Any]:
        """Physics, clocks, who is present, and the random streams."""
        leaves: list[Tensor] = []
        state, clock, present = self._rows
        tree_map(leaves.append, state)
        physics = {str(i): leaf for i, leaf in enumerate(leaves)}
        return {"physics": physics, "clock": clock, "present": present, "streams": self._streams.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        """Continue exactly where `state` was taken."""
        self.reset([0] * len(state["streams"]["generators"]))
        self._streams.load_state_dict(state["streams"])
        leaves = iter(state["physics"][str(i)] for i in range(len(state["physics"])))
        physics = tree_map(lambda _: next(leaves), self._rows.state)
        self._rows = tree_map(lambda leaf: leaf.to(self.device), Rows(physics, state["clock"], state["present"]))
        seen = self.observe(self._rows.state, self._rows.clock)
        self._obs = Observation(seen.agent, seen.state, seen.alive & self._rows.present, seen.legal)
        return self._obs

    def frame(self) -> Any:
        """A picture of the first row, [height, width, 3] uint8."""
        return self.world.frame(tree_map(lambda leaf: leaf[:1], self._rows.state))

    def _leaving_together(
        self, clock: Int[Tensor, " E"], acted: Bool[Tensor, "E N"]
    ) -> tuple[Bool[Tensor, "E N"], Bool[Tensor, "E N"], Bool[Tensor, " E"]]:
        """Terminated, truncated, ended, in a world that only the clock ends."""
        if self.spec.horizon is None:
            if self.time_limit is None:
                return self._never, self._never, self._never[:, 0]
            out = clock >= self.time_limit
            return self._never, acted & out.unsqueeze(-1), out
        over = clock >= self.spec.horizon
        if self.time_limit is None or self.time_limit >= self.spec.horizon:
            return acted & over.unsqueeze(-1), self._never, over
        out = clock >= self.time_limit
        return self._never, acted & out.unsqueeze(-1), out

    def observe(self, state: Any, clock: Int[Tensor, " E"]) -> Observation:
        """The world's observation of rows, with the clock where the task has a horizon."""
        seen = self.world.observe(state)
        if self._unseen and not torch.compiler.is_compiling():
            self._unseen = False
            require_form(self.world, seen, Observation, len(clock), self.device)
        if self.spec.horizon is None:
            return seen
        elapsed = (clock / self.spec.horizon).to(seen.state.dtype).unsqueeze(-1)
        agent = seen.agent
        if self.world.shows_clock:
            agent = torch.cat([elapsed.unsqueeze(1).expand(*agent.shape[:2], 1), agent], -1)
        return Observation(agent, torch.cat([elapsed, seen.state], -1), seen.alive, seen.legal)

    def _begin(self, noise: Tree, count: int) -> tuple[Rows, Observation]:
        """`count` rows at the start of an episode, and what is seen there."""
        rows = Rows(self.world.initial(noise), *(first[:count] for first in self._start))
        return rows, self.observe(rows.state, rows.clock)

    def _restart(self, rows: Rows, obs: Observation, ended: Bool[Tensor, " E"]) -> tuple[Rows, Observation]:
        """`restart` with the next random numbers, on a CPU only for the rows that ended."""
        if self._select_rows:
            return self.restart(rows, obs, ended, self._streams.draw(self.world.initial_noise, self.num_envs))
        places = ended.nonzero().squeeze(1)
        count, policies = len(places), len(self._streams)
        if not count:
            return rows, obs
        counts = [count] if policies == 1 else ended.view(policies, -1).sum(1).tolist()
        return self._put(rows, obs, places, self._streams.draw_ragged(self.world.initial_noise, counts))

    def _put(self, rows: Rows, obs: Observation, places: Int[Tensor, " X"], noise: Tree) -> tuple[Rows, Observation]:
        """Begin episodes at these places from random numbers [X,…]."""
        if not len(places):
            return rows, obs
        fresh = self._begin(noise, len(places))
        return tree_map(lambda old, new: old.index_copy(0, places, new), (rows, obs), fresh)


class Scripted:
    """An Actor that follows a function of the observation alone: baselines, tests, and a person's own rule."""

    def __init__(self, rule: Any):
        self.rule = rule

    def initial_memory(self, num_envs: int) -> None:
        """Scripted actors remember nothing."""

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """`rule(obs, streams)` must give actions [E,N,A]."""
        return Decision(self.rule(obs, streams)), memory


class RandomActor:
    """An Actor that plays at random.

    Discrete: uniform over the legal choices of each component. Continuous: uniform between the bounds, standard normal
    where there are none, half normal from the bound where there is only one.
    """

    draws_alike = True

    def __init__(self, spec: EnvSpec):
        self.spec = spec
        self._bounds: dict[torch.device, tuple[Float[Tensor, "N A"], Float[Tensor, "N A"]]] = {}

    def initial_memory(self, num_envs: int) -> None:
        """Nothing is remembered."""

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Actions [E,N,A]; an agent without a legal choice, who is not alive, gets 0."""
        space = self.spec.action
        shape = obs.alive.shape
        if isinstance(space, Discrete):
            # The least of equally fast exponential clocks is uniform, also among the legal ones alone.
            clocks = streams.exponential((*shape, sum(space.choices)))
            if obs.legal is not None:
                clocks = clocks.masked_fill(~obs.legal, torch.inf)
            return Decision(torch.stack([c.argmin(-1) for c in clocks.split(space.choices, -1)], -1)), memory
        return Decision(self._within_bounds(streams.normal((*shape, space.size)))), memory

    def _within_bounds(self, normal: Float[Tensor, "E N A"]) -> Float[Tensor, "E N A"]:
        low, high = self._on(normal.device)
        bounded, below, above = high - low <= WIDEST, low > -WIDEST, high < WIDEST
        uniform = torch.where(bounded, low, 0) + torch.where(bounded, high - low, 0) * torch.special.ndtr(normal)
        one_sided = torch.where(below, low + normal.abs(), torch.where(above, high - normal.abs(), normal))
        return torch.where(bounded, uniform, one_sided)

    def _on(self, device: torch.device) -> tuple[Float[Tensor, "N A"], Float[Tensor, "N A"]]:
        if device not in self._bounds:
            spaces, size = [s for s in self.spec.actions if isinstance(s, Continuous)], self.spec.action.size
            padded = [[(*bounds, *(0.0,) * (size - len(bounds))) for bounds in (s.low, s.high)] for s in spaces]
            low, high = torch.tensor(padded, device=device).unbind(1)
            self._bounds[device] = low, high
        return self._bounds[device]


def _spec_with_clock(world: World[Any]) -> EnvSpec:
    spec = world.spec
    if spec.horizon is None:
        return spec
    if spec.horizon < 1:
        raise InputError(f"A horizon is at least 1 step; {type(world).__name__} has {spec.horizon}.")
    sizes = tuple(size + int(world.shows_clock) for size in spec.observation_sizes)
    return dataclasses.replace(spec, observation_sizes=sizes, state_size=spec.state_size + 1)
