"""A witness follows one episode of those that are played and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Int, Num
from torch import Tensor

from envs.core import InputError, Observation, Step, VectorEnv
from marl.models.action_critic import only_choice
from planners.episode.story import StoryStep, choice_of
from planners.read.phrases import NamesChoices
from planners.read.team import TeamPlanner

Tell = Callable[[StoryStep], None]
PICTURES = 1000  # of an episode, at most: a picture is half a megabyte


@runtime_checkable
class Drawn(Protocol):
    """Environments whose first row can be drawn."""

    def frame(self) -> Any:
        """A picture of the first row, [height,width,3] uint8. Raises InputError for a world without pictures."""


class Witness:
    """A VectorEnv around another one that keeps the story of its first row's first episode in `steps`.

        env = Witness(TensorEnv(kitchen, 50, time_limit=20), planner)
        play(env, planner, episodes=50, seed=0)
        write_page(Path("episode.html"), "Two cooks", env.steps)

    The episode that is told is one that was counted, and costs no query beside it. Nothing of what is played changes.
    planner: who plays. pictures: False where none shall be drawn. tell: is given each step as it happens, such as
    `planners.episode.live.print_step`. After another `reset` the story begins anew; what goes on from a state has no
    beginning and is not followed. Raises InputError where somebody else plays.
    """

    def __init__(self, env: VectorEnv, planner: TeamPlanner, *, pictures: bool = True, tell: Tell | None = None):
        require_players(env, planner)
        self.env, self.planner, self.tell = env, planner, tell
        self.spec, self.num_envs, self.device = env.spec, env.num_envs, env.device
        self.steps: list[StoryStep] = []
        self._pictures = pictures and isinstance(env, Drawn)
        self._names = names_of_choices(planner)
        self._following = False

    def reset(self, seed: int | Sequence[int]) -> Observation:
        """Start every row anew, and the story with the first."""
        obs = self.env.reset(seed)
        self._begin(obs, following=True)
        return obs

    def step(self, action: Num[Tensor, "E N A"]) -> Step:
        """Advance every row by one joint action, [E,N,A]."""
        if not self._following:
            return self.env.step(action)
        self._require_asked()
        picture = self._picture()
        step = self.env.step(action)
        self.steps.append(self._told(action[0, :, 0], step, picture))
        self._alive, self._following = step.obs.alive[0], not bool(step.ended[0])
        if self.tell is not None:
            self.tell(self.steps[-1])
        return step

    def close(self) -> None:
        """Free what the environment holds."""
        self.env.close()

    def frame(self) -> Any:
        """A picture of the first row, [height,width,3] uint8. Raises InputError where there is none."""
        if not isinstance(self.env, Drawn):
            raise InputError(f"{type(self.env).__name__} has no picture; give it a method frame() that draws one.")
        return self.env.frame()

    def state_dict(self) -> dict[str, Any]:
        """Everything that the environment needs to continue exactly; the story is no part of it."""
        return self.env.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        """Continue exactly where `state` was taken, without following it."""
        obs = self.env.load_state_dict(state)
        self._begin(obs, following=False)
        return obs

    def _begin(self, obs: Observation, following: bool) -> None:
        self.steps, self._following = [], following
        self._alive = obs.alive[0]
        self._asked = self.planner.latest

    def _require_asked(self) -> None:
        """Raise InputError where the planner has not decided about the first row since the last step."""
        latest = self.planner.latest
        if latest is self._asked or not latest or not latest[0]:
            raise InputError(
                "A witness tells the decisions of its planner, which has not been asked before this step. Let the "
                "planner play, play(Witness(env, planner), planner, …), and somebody else without a witness."
            )
        self._asked = latest

    def _picture(self) -> Any:
        """The first row now; None where there are no pictures, or enough."""
        if not self._pictures or len(self.steps) >= PICTURES:
            return None
        try:
            return self.frame()
        except InputError:
            self._pictures = False
            return None

    def _told(self, action: Int[Tensor, " N"], step: Step, picture: Any) -> StoryStep:
        decisions = self.planner.latest[0]
        judged = self.planner.critic is not None
        return StoryStep(
            number=len(self.steps) + 1,
            words=decisions[0].words,
            choices=tuple(choice_of(one, judged) for one in decisions),
            executed=self._executed(action.tolist()),
            reward=self._reward(step),
            ending=_ending(step),
            picture=picture,
        )

    def _executed(self, action: list[int]) -> dict[str, str]:
        """By agent who is there, the name of its choice, or its number where choices have none."""
        found = {}
        for agent, choice, here in zip(self.spec.agents, action, self._alive.tolist(), strict=True):
            if here:
                found[agent] = self._names[choice] if self._names else f"choice {choice}"
        return found

    def _reward(self, step: Step) -> dict[str, float]:
        earned = step.reward[0].sum(0, dtype=torch.float64) / len(self.spec.agents)
        return dict(zip(self.spec.channels, earned.tolist(), strict=True))


def require_players(env: Any, planner: Any) -> None:
    """Raise InputError for what is no environment, or no planner whose decisions are told."""
    if not isinstance(env, VectorEnv):
        raise InputError(f"A witness follows a VectorEnv, such as TensorEnv(world, 50); got {type(env).__name__}.")
    if not isinstance(planner, TeamPlanner):
        raise InputError(
            "A witness tells the decisions of the planner that plays, such as ReadPlanner; got "
            f"{type(planner).__name__}."
        )


def names_of_choices(planner: TeamPlanner) -> tuple[str, ...]:
    """Names of single steps in the world that is planned in; none where it does not name each of them."""
    world = planner.phrasebook.world
    count = only_choice(world.spec.action)
    if not isinstance(world, NamesChoices) or not isinstance(world.choices, list | tuple):
        return ()
    return tuple(map(str, world.choices)) if len(world.choices) == count else ()


def _ending(step: Step) -> Literal["terminated", "truncated"] | None:
    """Cause of the first row's end with this step."""
    if not bool(step.ended[0]):
        return None
    return "truncated" if bool(step.truncated[0].any()) else "terminated"
