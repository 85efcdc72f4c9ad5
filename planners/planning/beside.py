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
from planners.planning.config import Config, MethodConfig, Name
from planners.planning.critic import make_critic
from planners.read.critics import PlanCritic
from planners.read.planner import PlannerConfig, ReadPlanner
from planners.read.reweigh import ReweighConfig, ReweighingPlanner
from planners.read.team import TeamPlanner

RANDOM = "_of_random_play"  # after the names of stages of the critic of random play


@dataclass(frozen=True, slots=True)
class Made:
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

    def own(self, model: LanguageModel, critic: PlanCritic | None, **changes: Any) -> TeamPlanner:
        """A planner of the config's kind, with changes to its settings."""
        return planner_of(self.config.planner.model_copy(update=changes), self.world, model, critic)


def planner_of(
    settings: MethodConfig, world: World[Any], model: LanguageModel, critic: PlanCritic | None
) -> TeamPlanner:
    """A planner of the kind that its settings name."""
    kind = ReweighingPlanner if settings.kind == "reweigh" else ReadPlanner
    return kind(world, model, critic, settings)


def alone(made: Made) -> TeamPlanner:
    """The model alone: its first legal plan."""
    return ReadPlanner(made.world, made.model, None, made.config.planner)


def uniform(made: Made) -> TeamPlanner:
    """The same planner and critic with a model to which all plans are alike."""
    return made.own(uniform_prior(), made.critic)


def nobody(made: Made) -> TeamPlanner:
    """Such a model and a critic of random play: no language model at all."""
    config = made.config
    unasked = config.model_copy(update={"critic": config.critic.model_copy(update={"run": None})})
    anybody = uniform_prior()  # whose own play is random
    return made.own(anybody, make_critic(unasked, made.run, made.world, anybody, RANDOM))


def asked_again(made: Made) -> TeamPlanner:
    """Plans are proposed and sent back until one is accepted, by the same critic."""
    return ReadPlanner(made.world, made.model, made.critic, made.config.planner)


def blind(made: Made, rounds: int | None = None) -> TeamPlanner:
    """The same, as often, from a model that is neither told nor kept from what was sent back."""
    settings = made.config.planner.model_copy(update={"tell": False, "repeats": True})
    if rounds is not None:
        settings = settings.model_copy(update={"rounds": rounds})
    return ReadPlanner(made.world, made.model, made.critic, settings)


def reweighed(made: Made) -> TeamPlanner:
    """All plans scored at once by model and critic, and one drawn."""
    return ReweighingPlanner(made.world, made.model, made.critic, made.config.planner)


def best_of_n(made: Made) -> TeamPlanner:
    """One query for five plans, of which the critic takes the best."""
    return BestOfN(made.world, made.model, made.critic, BestOfNConfig(**made.writers))


def central(made: Made) -> TeamPlanner:
    """Central Plan: one query a step for the whole team, and no critic."""
    return ReadPlanner(made.world, made.model, None, PlannerConfig(**made.team | {"mode": "joint"}, rounds=1))


def saycan(made: Made) -> TeamPlanner:
    """The plan whose text is the most probable."""
    settings = ReweighConfig(**made.team | {"temperature": 0}, probabilities="whole")
    return ReweighingPlanner(made.world, made.model, None, settings)


def twosome(made: Made) -> TeamPlanner:
    """A plan drawn by its mean log-probability a token."""
    return ReweighingPlanner(made.world, made.model, None, ReweighConfig(**made.team, probabilities="per_token"))


def react(made: Made) -> TeamPlanner:
    """Thought and plan in free text."""
    return ReAct(made.world, made.model, ReActConfig(**made.writers))


def reflexion(made: Made) -> TeamPlanner:
    """The same, looking back at each episode."""
    return Reflexion(made.world, made.model, ReflexionConfig(**made.writers))


Maker = Callable[[Made], TeamPlanner]
WITH_CRITIC: Mapping[Name, Maker] = MappingProxyType(
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
WITHOUT: Mapping[Name, Maker] = MappingProxyType(
    {"central": central, "saycan": saycan, "twosome": twosome, "react": react, "reflexion": reflexion}
)


@dataclass(frozen=True, slots=True)
class Judged:
    """A planner that is judged. reset: the step after which its world silently begins anew."""

    name: str
    make: Maker
    reset: int | None = None


def all_judged(config: Config) -> list[Judged]:
    """The run's own planner and those beside it. Without a critic some would be the same again, and are left out."""
    asked, own = config.evaluation, partial(_with_rounds, rounds=config.planner.rounds)
    makers = dict(WITHOUT) if config.critic.kind == "none" else {**WITH_CRITIC, **WITHOUT}
    found = [Judged(config.planner.kind, own)]
    found += [Judged(name, makers[name]) for name in asked.beside if name in makers]
    for rounds in asked.rounds:
        found.append(Judged(f"rounds_{rounds}", partial(_with_rounds, rounds=rounds)))
        found.append(Judged(f"blind_{rounds}", partial(blind, rounds=rounds)))
    return found + [Judged(f"reset_{step}", own, step) for step in asked.resets]


def _with_rounds(made: Made, rounds: int) -> TeamPlanner:
    return made.own(made.model, made.critic, rounds=rounds)
