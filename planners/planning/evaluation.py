"""Episodes of planners, counted and told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property
from typing import Any

import numpy as np
import torch

from envs.core import InputError, leaves
from envs.interrupted import Interrupted
from envs.tabular import HasTable, Table
from envs.world import TensorEnv, World
from marl.evaluation.episodes import Episodes, play
from marl.output.console import console
from marl.output.report import Metric
from marl.training.run import Run, stage_seed
from planners.episode.live import print_step
from planners.episode.story import StoryStep
from planners.episode.witness import Witness
from planners.language.recorded import BudgetSpent
from planners.planning.config import Config
from planners.read.team import TeamPlanner

STARTS = 64  # starts by which it is found out whether there are several


class Judge:
    """Plays planners in one world, from the same starts, and says how they did."""

    def __init__(self, config: Config, run: Run, world: World[Any]):
        self.config, self.run, self.world = config, run, world
        self.story: list[StoryStep] = []
        self.played: dict[str, Episodes] = {}  # by the planners' names
        self.budget_spent = False

    def play(self, planner: TeamPlanner, name: str, *, reset: int | None = None, tell: bool = False) -> Episodes | None:
        """Episodes of a planner, in rounds; those of whole rounds before a budget ended, None where it allowed none.

        reset: after so many steps the world silently begins anew, and episodes may take as many more. tell: print its
        first episode as it happens, and keep its `story`.
        """
        asked = self.config.evaluation
        rounds: list[Episodes] = []
        while (done := sum(len(each.returns) for each in rounds)) < asked.episodes and not self.budget_spent:
            console.print(f"{name}: {done} of {asked.episodes} episodes", markup=False)
            seed = stage_seed(self.run.config.seed, f"evaluation {len(rounds)}")
            env: Any = self._env(reset)
            if tell and not rounds:
                env = Witness(env, planner, tell=print_step)
            with closing(env):
                try:
                    rounds.append(play(env, planner, asked.num_envs, seed, asked.patience))
                except BudgetSpent as end:
                    self.budget_spent = True
                    console.print(str(end), markup=False)
            if isinstance(env, Witness):
                self.story = env.steps
        if not rounds:
            return None
        self.played[name] = joined(rounds)
        return self.played[name]

    def _env(self, reset: int | None) -> TensorEnv:
        limit, num_envs, device = self.config.env.time_limit, self.config.evaluation.num_envs, self.run.device
        if reset is None:
            return TensorEnv(self.world, num_envs, time_limit=limit, device=device)
        assert limit is not None  # the config says so
        return TensorEnv(Interrupted(self.world, reset), num_envs, time_limit=limit + reset, device=device)

    def metrics(self, episodes: Episodes, prefix: str = "") -> dict[str, Metric]:
        """Returns, lengths and costs of episodes; where a goal is named, how many reach it, and in how many steps."""
        found = episodes.metrics(self.world.spec.channels)
        goal = self.config.evaluation.goal
        if goal is not None:
            success = succeeded(episodes, goal)
            found["success"] = share_of(success)
            if success.any():
                steps = episodes.lengths[success]
                found["steps_of_successes"] = Metric.mean(steps)
                if (best := self.fewest_steps) is not None:
                    found["steps_above_fewest"] = Metric.mean(steps - best)
        return {prefix + name: metric for name, metric in found.items()}

    def above(self, name: str, other: str) -> dict[str, Metric]:
        """What one planner has above another, in success where a goal is named, else in return, and in queries.

        {} of one not played. Both began in the same states, and who does well where the other does badly makes the
        difference less certain: the interval knows. That both do well in the same is not counted on, and makes it no
        narrower.
        """
        if name not in self.played or other not in self.played:
            return {}
        one, two = self.played[name], self.played[other]
        goal = self.config.evaluation.goal
        if goal is None:
            found = {"return_per_agent": gap(Metric.mean, one.per_agent, two.per_agent)}
        else:
            found = {"success": gap(share_of, succeeded(one, goal), succeeded(two, goal))}
        if "queries" in one.counts:
            found["count/queries"] = gap(Metric.mean, one.counts["queries"], two.counts["queries"])
        return {f"above_{other}/{key}": metric for key, metric in found.items()}

    @cached_property
    def fewest_steps(self) -> int | None:
        """The fewest steps to the goal; None where states are not listed, or episodes begin in several of them."""
        goal = self.config.evaluation.goal
        if goal is None or not isinstance(self.world, HasTable):
            return None
        table = self.world.table()
        return table.steps_to(goal) if begins_in(self.world, table) else None


def begins_in(world: World[Any], table: Table) -> bool:
    """True where episodes begin in the table's first state, as far as a number of starts tells."""
    noise = world.initial_noise(STARTS, torch.Generator().manual_seed(0))
    pairs = zip(leaves(world.initial(noise)), leaves(table.states), strict=True)
    return all(bool((starts == states[:1]).all()) for starts, states in pairs)


def require_first(world: World[Any], table: Table, setting: str) -> None:
    """Raise InputError where episodes begin elsewhere than in the table's first state, of which `setting` is."""
    if not begins_in(world, table):
        raise InputError(
            f"{setting} is of play from the first state of a world's table, and episodes of this "
            f"{type(world).__name__} begin in others. Let all begin there, or leave it out: episodes are played anyway."
        )


def succeeded(episodes: Episodes, goal: float) -> np.ndarray:
    """Of each episode, whether the first channel's return is at least the goal, to rounding."""
    return episodes.returns[:, 0] >= goal - 1e-6 * max(1.0, abs(goal))


def share_of(success: np.ndarray) -> Metric:
    """The share of episodes that succeeded."""
    return Metric.proportion(int(success.sum()), len(success))


def gap(tell: Callable[[np.ndarray], Metric], one: np.ndarray, other: np.ndarray) -> Metric:
    """Difference of what is told of two samples whose episodes began alike; see `Judge.above`."""
    return Metric.difference(tell(one), tell(other), min(0.0, correlation(one, other)))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of pairs; 0 where they are none, as there are not equally many, or where either is all alike."""
    if len(one) != len(other) or not (one.std() and other.std()):
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def joined(rounds: Sequence[Episodes]) -> Episodes:
    """Episodes of several rounds as one."""
    late = [each.late for each in rounds if each.late is not None]
    return Episodes(
        returns=np.concatenate([each.returns for each in rounds]),
        lengths=np.concatenate([each.lengths for each in rounds]),
        agents=rounds[0].agents,
        rows=sum(each.rows for each in rounds),
        late=np.concatenate(late) if len(late) == len(rounds) else None,
        counts={name: np.concatenate([each.counts[name] for each in rounds]) for name in rounds[0].counts},
    )
