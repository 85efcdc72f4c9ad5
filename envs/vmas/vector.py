"""The rows of a scenario as one `VectorEnv`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from envs.core import ConcordError, Discrete, InputError, Observation, Step, tree_map, tree_where
from envs.vmas.scenarios import allowed, find, flat, spec_of
from envs.vmas.snapshots import put, take


@dataclass(frozen=True)
class Block:
    """A simulator, and the generator that all its random numbers come from; it belongs to one seed."""

    simulator: Any
    generator: torch.Generator


class VmasEnv:
    """E rows of a VMAS scenario, stepped together on one device.

    scenario: a name of VMAS ("balance"), or a scenario of your own, "module:Class". options: arguments of the scenario,
    and of `vmas.make_env`: `continuous_actions` (False unless given) and `multidiscrete_actions`. time_limit: steps
    after which an episode is truncated; without it only the scenario's own `done` ends one, and it terminates.

    All agents are always alive; the state is their observations side by side. Real actions are clipped to their bounds.
    Rows that ended are reset one by one, unless all have. VMAS draws its random numbers for all rows at once, so that
    rows are no functions of seeds of their own: each seed's block of rows is a simulator of its own, whose every call
    is seeded from the block's generator. torch's own generators are left as they were.

    A saved state holds all that simulator and scenario keep in tensors, numbers and references (see `snapshots`).
    Where part of that cannot be saved or put back, loading raises ConcordError, or starts new episodes with
    `restart_episodes`. Raises InputError where VMAS is not installed, or cannot make the scenario.
    """

    def __init__(
        self,
        scenario: str | Callable[[], Any],
        num_envs: int,
        *,
        device: torch.device | str = "cpu",
        time_limit: int | None = None,
        options: Mapping[str, Any] | None = None,
        restart_episodes: bool = False,
    ):
        if num_envs < 1:
            raise InputError(f"num_envs must be at least 1; got {num_envs}.")
        if time_limit is not None and time_limit < 1:
            raise InputError(f"time_limit must be at least 1 step (or null for none); got {time_limit}.")
        self.num_envs, self.device, self.time_limit = num_envs, torch.device(device), time_limit
        self._make_env, self._scenario = find(scenario)
        self._options = {"continuous_actions": False, **allowed(options or {})}
        self._restart_episodes = restart_episodes
        self.restarted: list[int] = []  # rows that began an episode at the last loading, instead of going on
        self._blocks: list[Block] = []
        self._clock = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        with self._contained():
            self._probe = self._simulator(1, 0)
            self.spec = spec_of(self._probe)
        self._shape = (num_envs, len(self.spec.agents), self.spec.action.size)
        self._legal = None if self.spec.legal is None else self.spec.legal.to(self.device)

    def reset(self, seed: int | Sequence[int]) -> Observation:
        """Start every row anew; P seeds seed P equal blocks of rows."""
        self._blocks = self._made([seed] if isinstance(seed, int) else list(seed))
        return self._start()

    def step(self, action: Num[Tensor, "E N A"]) -> Step:
        """Advance every row by one joint action."""
        self._require_begun()
        self._require_fitting(action)
        self._clock = self._clock + 1
        late = self._clock >= self.time_limit if self.time_limit else torch.zeros_like(self._clock, dtype=torch.bool)
        blocks = zip(self._blocks, action.chunk(len(self._blocks)), late.chunk(len(self._blocks)), strict=True)
        step = _joined([self._advance(*each) for each in blocks])
        self._clock = torch.where(step.ended, 0, self._clock)
        self._obs = step.obs
        return step

    def frame(self) -> Any:
        """A picture of the first row, [height, width, 3] uint8. Raises InputError where there is no display."""
        self._require_begun()
        try:
            with self._drawing_from(self._blocks[0]) as simulator:
                return simulator.render(mode="rgb_array", env_index=0)
        except Exception as error:
            raise InputError(
                f"VMAS cannot draw here: {_in_words(error)} It needs a display; where there is none, start the "
                "command with xvfb-run, or set evaluation.film_episodes=0."
            ) from error

    def close(self) -> None:
        """Let go of the simulators."""
        self._blocks = []

    def state_dict(self) -> dict[str, Any]:
        """Each block's simulator and generator, the clocks, and what is seen now."""
        self._require_begun()
        return {
            "seeds": self._seeds,
            "clock": self._clock,
            "generators": torch.stack([block.generator.get_state() for block in self._blocks]),
            "simulators": [take(_roots(block)) for block in self._blocks],
            "seen": {"agent": self._obs.agent, "state": self._obs.state},
        }

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        """Continue exactly where `state` was taken.

        Raises ConcordError where part of it could not be saved or put back, unless episodes may be restarted.
        """
        rows = len(state["clock"])
        if rows != self.num_envs:
            raise InputError(f"The saved state has {rows} rows; this environment has num_envs={self.num_envs}.")
        self._blocks, self.restarted = self._made(state["seeds"]), []
        for block, generator in zip(self._blocks, state["generators"], strict=True):
            block.generator.set_state(generator.to("cpu", copy=True))
        try:
            for block, saved in zip(self._blocks, state["simulators"], strict=True):
                self._put(block, saved)
        except ConcordError as error:
            if not self._restart_episodes:
                raise ConcordError(
                    f"This VMAS scenario cannot continue where it was saved: {error} Let it keep its state in tensors "
                    "and numbers, or accept an inexact resume, in which all rows start a new episode, with "
                    "resume.restart_episodes=true."
                ) from error
            self.restarted = list(range(self.num_envs))
            return self._start()
        self._clock = state["clock"].to(self.device)
        seen = tree_map(lambda leaf: leaf.to(self.device), state["seen"])
        self._obs = self._observation_of(seen["agent"], seen["state"])
        return self._obs

    def _put(self, block: Block, saved: dict[str, Any]) -> None:
        if saved["unsaved"]:
            raise ConcordError(f"{saved['unsaved'][0]} is neither a tensor nor a number, nor made of such.")
        tensors = {number: tensor.to(self.device) for number, tensor in saved["tensors"].items()}
        with self._contained():
            put(_roots(block), {**saved, "tensors": tensors})

    def _made(self, seeds: Sequence[int]) -> list[Block]:
        """A simulator for each seed. Nothing is left of what others did before."""
        if not seeds or self.num_envs % len(seeds):
            raise InputError(f"{self.num_envs} environments cannot be shared equally by {len(seeds)} seeds.")
        self._seeds, blocks = [int(seed) for seed in seeds], []
        for seed in self._seeds:
            generator = torch.Generator().manual_seed(seed)
            with self._contained():
                number = _draw(generator)
                self._probe.seed(number)  # simulators share one stream, which the making of a world draws from
                blocks.append(Block(self._simulator(self.num_envs // len(seeds), number), generator))
        return blocks

    def _simulator(self, rows: int, seed: int) -> Any:
        name = self._scenario if isinstance(self._scenario, str) else getattr(self._scenario, "__name__", "scenario")
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*not used by the scenario")
            try:
                return self._make_env(
                    self._scenario if isinstance(self._scenario, str) else self._scenario(),
                    num_envs=rows,
                    device=self.device,
                    seed=seed,
                    clamp_actions=True,
                    terminated_truncated=True,
                    **self._options,
                )
            except Exception as error:
                raise InputError(
                    f"VMAS cannot make {name} with {self._options} on {self.device}: {_in_words(error)}"
                ) from error

    def _start(self) -> Observation:
        """Begin an episode in every row."""
        seen = []
        for block in self._blocks:
            with self._drawing_from(block) as simulator:
                seen.append(self._observation(simulator.reset()))
        self._clock = torch.zeros_like(self._clock)
        self._obs = _joined(seen)
        return self._obs

    def _advance(self, block: Block, action: Num[Tensor, "E N A"], late: Bool[Tensor, " E"]) -> Step:
        """One step of a block, and new episodes where rows ended."""
        with self._drawing_from(block) as simulator:
            taken = [action[:, i, : space.size].clone() for i, space in enumerate(self.spec.actions)]
            seen, reward, terminated, *_ = simulator.step(taken)
            final_obs = self._observation(seen)
            ended = terminated | late
            obs = self._with_new_episodes(simulator, ended, final_obs) if bool(ended.any()) else final_obs
            agents = len(taken)
            rewards = torch.stack([earned.reshape(-1) for earned in reward], 1).unsqueeze(-1)
            over, cut = (rows.unsqueeze(1).repeat(1, agents) for rows in (terminated, late & ~terminated))
            return Step(obs, rewards, over, cut, ended, final_obs)

    def _with_new_episodes(self, simulator: Any, ended: Bool[Tensor, " E"], last: Observation) -> Observation:
        """Observation after the rows that ended have started anew; the others are seen as before."""
        rows = ended.nonzero().squeeze(1).tolist()
        if len(rows) == len(ended):
            return self._observation(simulator.reset())
        for row in rows[:-1]:
            simulator.reset_at(row, return_observations=False)
        return tree_where(ended, self._observation(simulator.reset_at(rows[-1])), last)

    def _observation(self, seen: Sequence[Any]) -> Observation:
        """From each agent's observation to what learners see."""
        each = [flat(view) for view in seen]
        width = self.spec.observation_size
        padded = [torch.nn.functional.pad(view, (0, width - view.shape[1])) for view in each]
        return self._observation_of(torch.stack(padded, 1), torch.cat(each, 1))

    def _observation_of(self, agent: Float[Tensor, "E N D"], state: Float[Tensor, "E S"]) -> Observation:
        alive = torch.ones(agent.shape[:2], dtype=torch.bool, device=self.device)
        legal = None if self._legal is None else self._legal.repeat(len(agent), 1, 1)
        return Observation(agent, state, alive, legal)

    @contextmanager
    def _drawing_from(self, block: Block) -> Iterator[Any]:
        """The block's simulator, whose next random numbers follow from the block's generator alone."""
        with self._contained():
            block.simulator.seed(_draw(block.generator))
            yield block.simulator

    @contextmanager
    def _contained(self) -> Iterator[None]:
        """Nothing outside notices that a simulator runs, which writes into its own tensors and seeds torch anew."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
            yield

    def _require_begun(self) -> None:
        if not self._blocks:
            raise InputError("Call reset(seed) first; after close() make a new environment.")

    def _require_fitting(self, action: Tensor) -> None:
        if action.shape != self._shape:
            raise InputError(f"Expected actions of shape {list(self._shape)} [E,N,A]; got {list(action.shape)}.")
        if isinstance(self.spec.action, Discrete) and action.is_floating_point():
            raise InputError(f"Actions here are whole numbers, the choices' indices; got {action.dtype}.")


def _roots(block: Block) -> dict[str, Any]:
    return {"world": block.simulator.world, "scenario": block.simulator.scenario}


def _joined(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else tree_map(lambda *leaves: torch.cat(leaves), *parts)


def _draw(generator: torch.Generator) -> int:
    """A seed that every library accepts."""
    return int(torch.randint(2**31, (), generator=generator))


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).rstrip('.') or 'no reason given'}."
