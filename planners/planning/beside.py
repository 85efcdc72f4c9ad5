"""Planners that are judged beside a run's own, each with something left out or another way to choose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from envs.world import World
from marl.training.run import Run
from planners.baselines import uniform_prior
from planners.baselines.best_of_n import BestOfN, BestOfNConfig
from planners.baselines.react import ReAct, ReActConfig
from planners.baselines.reflexion import Reflexion, ReflexionConfig
from planners.language.base import LanguageModel
from planners.planning.config import Config, MethodConfig, PlannerName
from planners.planning.critic import make_critic
from planners.read.critics import PlanCritic
from planners.read.planner import PlannerConfig, ReadPlanner
from planners.read.reweigh import ReweighConfig, ReweighingPlanner
from planners.read.team import TeamPlanner

RANDOM = "_of_random_play"  # after the names of stages of the critic of random play


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What planners are made of: a run's config and folder, its world, its model and its critic."""

    config: Config
    run: Run
    world: World[Any]
    model: LanguageModel
    critic: PlanCritic | None

    @property
    def team(self) -> dict[str, Any]:
        """Settings that all planners share."""
        return {name: getattr(self.config.planner, name) for name in ("mode", "plans", "temperature")}

    @property
    def writers(self) -> dict[str, Any]:
        """The same of those that let the model write."""
        return self.team | {"max_tokens": self.config.planner.max_tokens}

    def like_own(self, model: LanguageModel, critic: PlanCritic | None, **changes: Any) -> TeamPlanner:
        """A planner of the config's kind, with changes to its settings."""
        return planner_of(self.config.planner.model_copy(update=changes), self.world, model, critic)


def planner_of(
    settings: MethodConfig, world: World[Any], model: LanguageModel, critic: PlanCritic | None
) -> TeamPlanner:
    """A planner of the kind that its settings name."""
    kind = ReweighingPlanner if settings.kind == "reweigh" else ReadPlanner
    return kind(world, model, critic, settings)


def alone(given: Ingredients) -> TeamPlanner:
    """The model alone: its first legal plan."""
    return ReadPlanner(given.world, given.model, None, given.config.planner)


def uniform(given: Ingredients) -> TeamPlanner:
    """The same planner and critic with a model to which all plans are alike."""
    return given.like_own(uniform_prior(), given.critic)


def nobody(given: Ingredients) -> TeamPlanner:
    """Such a model and a critic of random play: no language model at all."""
    config = given.config
    unasked = config.model_copy(update={"critic": config.critic.model_copy(update={"run": None})})
    anybody = uniform_prior()  # whose own play is random
    return given.like_own(anybody, make_critic(unasked, given.run, given.world, anybody, RANDOM))


def asked_again(given: Ingredients) -> TeamPlanner:
    """Plans are proposed and sent back until one is accepted, by the same critic."""
    return ReadPlanner(given.world, given.model, given.critic, given.config.planner)


def blind(given: Ingredients, rounds: int | None = None) -> TeamPlanner:
    """The same from a model that may propose again what was sent back, and is told of nothing."""
    settings = given.config.planner.model_copy(update={"tell": False, "repeats": True})
    if rounds is not None:
        settings = settings.model_copy(update={"rounds": rounds})
    return ReadPlanner(given.world, given.model, given.critic, settings)


def reweighed(given: Ingredients) -> TeamPlanner:
    """All plans scored at once by model and critic, and one drawn."""
    return ReweighingPlanner(given.world, given.model, given.critic, given.config.planner)


def best_of_n(given: Ingredients) -> TeamPlanner:
    """One query for five plans, of which the critic takes the best."""
    return BestOfN(given.world, given.model, given.critic, BestOfNConfig(**given.writers))


def central(given: Ingredients) -> TeamPlanner:
    """Central Plan: one query a step for the whole team, and no critic."""
    return ReadPlanner(given.world, given.model, None, PlannerConfig(**given.team | {"mode": "joint"}, rounds=1))


def saycan(given: Ingredients) -> TeamPlanner:
    """The plan whose text is the most probable."""
    settings = ReweighConfig(**given.team | {"temperature": 0}, probabilities="whole")
    return ReweighingPlanner(given.world, given.model, None, settings)


def twosome(given: Ingredients) -> TeamPlanner:
    """A plan drawn by its mean log-probability a token."""
    return ReweighingPlanner(given.world, given.model, None, ReweighConfig(**given.team, probabilities="per_token"))


def react(given: Ingredients) -> TeamPlanner:
    """Thought and plan in free text."""
    return ReAct(given.world, given.model, ReActConfig(**given.writers))


def reflexion(given: Ingredients) -> TeamPlanner:
    """The same, looking back at each episode."""
    return Reflexion(given.world, given.model, ReflexionConfig(**given.writers))


Maker = Callable[[Ingredients], TeamPlanner]
WITH_CRITIC: Mapping[PlannerName, Maker] = MappingProxyType(
    {
        "alone": alone,
        "uniform": uniform,
        "nobody": nobody,
        "asked_again": asked_again,
        "blind": blind,
        "reweighed": reweighed,
        "best_of_n": best_of_n,
    }
)
WITHOUT_CRITIC: Mapping[PlannerName, Maker] = MappingProxyType(
    {"central": central, "saycan": saycan, "twosome": twosome, "react": react, "reflexion": reflexion}
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A planner that is judged. reset: the step after which its world silently begins anew."""

    name: str
    make: Maker
    reset: int | None = None


def all_judged(config: Config) -> list[Judged]:
    """The run's own planner and those beside it, without the ones that would be the same again or need a critic."""
    asked = config.evaluation
    makers = dict(WITHOUT_CRITIC) if config.critic.kind == "none" else {**WITH_CRITIC, **WITHOUT_CRITIC}
    makers.pop("asked_again" if config.planner.kind == "read" else "reweighed", None)
    found = [Judged(config.planner.kind, own)]
    found += [Judged(name, makers[name]) for name in asked.beside if name in makers]
    for rounds in asked.rounds:
        found.append(Judged(f"rounds_{rounds}", partial(_with_rounds, rounds=rounds)))
        found.append(Judged(f"blind_{rounds}", partial(blind, rounds=rounds)))
    return found + [Judged(f"reset_{step}", own, step) for step in asked.resets]


def own(given: Ingredients) -> TeamPlanner:
    """The run's own planner."""
    return given.like_own(given.model, given.critic)


def _with_rounds(given: Ingredients, rounds: int) -> TeamPlanner:
    return given.like_own(given.model, given.critic, rounds=rounds)
