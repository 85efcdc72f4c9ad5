"""Critics that are learned from a log of play, or taken from the run that has learned them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError
from envs.world import World
from marl.learning.batch import Batch
from marl.learning.regression import Regression, source
from marl.learning.state_log import StateLog
from marl.models.critics import CriticConfig
from marl.models.levels import LevelCritic, level_inputs, levels_of
from marl.models.ordered_critic import OrderedCritic
from marl.models.prefix_critic import PrefixCritic
from marl.output.console import console
from marl.training.run import Run
from planners.planning.config import Config
from planners.read.critics import LearnedCritic

STAGE = "critic"
SAMPLE = 20_000  # steps of the log by which states and advantages are measured
# What is kept beside the parameters: what the critic is made of, and its unit.
MADE_OF, SCALE = "critic", "scale"
# Settings that say what play a critic judges, and those of learning, which count for nothing where one is taken.
WORLD, PLANNING = ("world", "args", "agents"), ("mode", "plans")
FITTING = ("log", "network", "learner", "updates", "members")


def learned_critic(
    config: Config, run: Run, world: World[Any], log: StateLog, ordered: bool, suffix: str = ""
) -> LearnedCritic:
    """A critic fitted to a log, or as it was fitted before. suffix: of its names, where a run has several.

    ordered: an `OrderedCritic`, which learns best and whose planner must know the model's probabilities; else a
    `PrefixCritic`, for models that do not tell them.
    """
    asked = config.critic
    sample = sample_of(log)
    made_of = run.once(MADE_OF + suffix, lambda: {"levels": levels_of(sample.obs.state), "ordered": ordered})
    learner = new_learner(config, run, world, **made_of, suffix=suffix)
    rows = source(log, asked.learner, run.streams("rows" + suffix, members=asked.members))
    run.fit(STAGE + suffix, learner, rows, asked.updates, members=asked.members)
    scale = run.once(SCALE + suffix, lambda: LearnedCritic(learner, sample, pessimism=asked.pessimism).scale)
    return LearnedCritic(learner, pessimism=asked.pessimism, scale=scale)


def new_learner(
    config: Config, run: Run, world: World[Any], levels: list[list[float]], ordered: bool, suffix: str = ""
) -> Regression:
    """A critic that has learned nothing, and what fits it."""
    asked = config.critic
    spec = replace(world.spec, channels=("worth",), state_size=level_inputs(levels))
    shape = CriticConfig(network=asked.network, output="team")
    kind = OrderedCritic if ordered else PrefixCritic
    critic = LevelCritic(kind(spec, shape, run.streams("critic" + suffix, members=asked.members)), levels, run.device)
    return Regression(critic, asked.learner, run.streams("orders" + suffix, members=asked.members), asked.updates)


def sample_of(log: StateLog) -> Batch:
    """Steps from all over a log, or all of a short one."""
    if len(log) <= SAMPLE:
        places = torch.arange(log.starts(1))
    else:
        places = torch.randint(log.starts(1), (SAMPLE,), generator=torch.Generator().manual_seed(0))
    return log.take(places.to(log.reward.device), 1, 1)


def taken_critic(config: Config, run: Run, world: World[Any]) -> LearnedCritic:
    """The critic that another run has learned, as it is."""
    other = run_of_critic(config, run)
    learner = new_learner(other.config, other, world, **kept(other, MADE_OF))
    learner.load_state_dict(other.load(STAGE))
    console.print(f"taking the critic of {other.folder}", markup=False)
    _tell_unused(config, other.config, other.folder)
    return LearnedCritic(learner, pessimism=config.critic.pessimism, scale=kept(other, SCALE))


def run_of_critic(config: Config, run: Run) -> Run:
    """The run whose critic is taken.

    Raises InputError where it has learned none, or for another world or other plans than are planned with here.
    """
    folder = Path(str(config.critic.run)).expanduser()
    other = Run.open(folder, {"device": str(run.device), "threads": config.threads})
    if other.config.recipe != config.recipe:
        raise InputError(f"critic.run: expected a run of {config.recipe}; {folder} is one of {other.config.recipe}.")
    if other.config.critic.run is not None:
        raise InputError(
            f"critic.run: {folder} has taken its own critic from {other.config.critic.run}; name that run."
        )
    if not (folder / "once" / f"{SCALE}.json").is_file():
        raise InputError(
            f"critic.run: {folder}, of critic.kind={other.config.critic.kind}, has learned no critic, or not to the "
            f"end. Expected a run with critic.kind=learned; `concord resume {folder}` finishes one that was "
            "interrupted."
        )
    _require_alike(config, other.config, folder)
    return other


def _require_alike(config: Config, other: Config, folder: Path) -> None:
    """Raise InputError for settings with which the other run's critic judges other play."""
    pairs = [(f"env.{name}", getattr(config.env, name), getattr(other.env, name)) for name in WORLD]
    pairs += [(f"planner.{name}", getattr(config.planner, name), getattr(other.planner, name)) for name in PLANNING]
    pairs += [("critic.weights", _weights(config), _weights(other))]
    wrong = [f"{name} is {own} here and {its} there" for name, own, its in pairs if own != its]
    if wrong:
        raise InputError(
            f"critic.run: the critic of {folder} judges other play than this run's: {'; '.join(wrong)}. Set them "
            "alike, or let a critic be learned."
        )


def _tell_unused(config: Config, other: Config, folder: Path) -> None:
    """Say which settings of learning change nothing, as the critic was learned with others."""
    unused = [f"critic.{name}" for name in FITTING if getattr(config.critic, name) != getattr(other.critic, name)]
    if unused:
        console.print(f"{', '.join(unused)}: as in {folder}, where the critic was learned", markup=False)


def _weights(config: Config) -> list[float]:
    """Worth of the reward channels, without those at the end that count nothing."""
    weights = [1.0] if config.critic.weights is None else list(config.critic.weights)
    while weights and weights[-1] == 0:
        weights.pop()
    return weights


def kept(run: Run, name: str) -> Any:
    """Value that a run has computed once. Raises InputError where it is gone."""
    path = run.folder / "once" / f"{name}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); the run {run.folder} was damaged. Run it anew.") from error


def weights_of(config: Config, world: World[Any]) -> Float[Tensor, " K"]:
    """Worth of each reward channel; of the first alone where the config says nothing."""
    channels = world.spec.channels
    given = config.critic.weights
    if given is None:
        return torch.tensor([1.0] + [0.0] * (len(channels) - 1))
    if len(given) != len(channels):
        raise InputError(f"critic.weights: expected a number for each of {', '.join(channels)}; got {list(given)}.")
    return torch.tensor(given)
