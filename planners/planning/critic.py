"""The critic that a config asks for, made or learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import InputError
from envs.restarts import from_random_play
from envs.tabular import HasTable
from envs.world import TensorEnv, World
from marl.learning.regression import Regression, source
from marl.learning.state_log import StateLog, record
from marl.models.critics import CriticConfig
from marl.models.levels import LevelCritic, level_inputs, levels_of
from marl.models.ordered_critic import OrderedCritic
from marl.output.console import console
from marl.training.run import Run
from planners.baselines import uniform_prior
from planners.language.base import LanguageModel
from planners.planning.config import Config
from planners.planning.tabulated import HasDigits, joint_policy
from planners.read.behavior import Behavior
from planners.read.critics import ExactCritic, LearnedCritic, PlanCritic

STAGE = "critic"


def make_critic(
    config: Config, run: Run, world: World[Any], model: LanguageModel, suffix: str = ""
) -> PlanCritic | None:
    """The critic; None where the config asks for none. suffix: of the names of its stages, where a run has several."""
    kind = config.critic.kind
    if kind == "none":
        return None
    player = model if config.critic.log.play == "model" else uniform_prior()
    if kind == "exact":
        return exact_critic(config, world, player)
    log = logged_play(config, run, world, player, suffix).weighted(weights_of(config, world))
    if kind == "counted":
        from planners.read.counted import CountedCritic

        return CountedCritic(log, discount_of(config))
    return learned_critic(config, run, world, log, suffix)


def logged_play(config: Config, run: Run, world: World[Any], player: LanguageModel, suffix: str = "") -> StateLog:
    """Play of a model alone, after random starts, with its probabilities."""
    asked = config.critic.log
    seed = run.stage_seeds("log" + suffix)[0]
    starts = from_random_play(world, asked.starts, asked.start_steps, seed)
    env = TensorEnv(starts, asked.num_envs, time_limit=asked.time_limit)
    actor = Behavior(world, player, config.planner, asked.explore)
    with console.status(f"logging {asked.steps * asked.num_envs:,} steps of play"):
        log = record(env, actor, asked.steps, seed)
    console.print(f"logged {len(log):,} steps of play; {actor.asked:,} situations were scored", markup=False)
    return log


def learned_critic(config: Config, run: Run, world: World[Any], log: StateLog, suffix: str = "") -> LearnedCritic:
    """A critic fitted to a log, or as it was fitted before."""
    asked = config.critic
    sample = log.take(torch.arange(log.starts(1)), 1, 1) if len(log) <= SAMPLE else _sample(log)
    levels = run.once("levels" + suffix, lambda: levels_of(sample.obs.state))
    spec = replace(world.spec, channels=("worth",), state_size=level_inputs(levels))
    shape = CriticConfig(network=asked.network, output="team")
    inner = OrderedCritic(spec, shape, run.streams("critic" + suffix, members=asked.members))
    critic = LevelCritic(inner, levels)
    learner = Regression(critic, asked.learner, run.streams("orders" + suffix, members=asked.members), asked.updates)
    rows = source(log, asked.learner, run.streams("rows" + suffix, members=asked.members))
    run.fit(STAGE + suffix, learner, rows, asked.updates, members=asked.members)
    return LearnedCritic(learner, sample, pessimism=asked.pessimism)


SAMPLE = 20_000  # steps of the log by which states and advantages are measured


def _sample(log: StateLog) -> Any:
    """Steps from all over the log."""
    generator = torch.Generator().manual_seed(0)
    return log.take(torch.randint(log.starts(1), (SAMPLE,), generator=generator), 1, 1)


def exact_critic(config: Config, world: World[Any], player: LanguageModel) -> ExactCritic:
    """The truth about a model's own play. Raises InputError for a world whose states cannot be listed."""
    if not isinstance(world, HasTable) or not isinstance(world, HasDigits):
        raise InputError(
            f"critic.kind=exact needs a world whose states can be listed (envs.tabular.HasTable), and "
            f"{type(world).__name__} has no table. Let a critic be learned."
        )
    weights = weights_of(config, world)
    if bool((weights[1:] != 0).any()):
        raise InputError("critic.kind=exact is of the first reward channel alone; leave critic.weights out.")
    with console.status("listing the world's states"):
        table = world.table()
    policy = joint_policy(world, table, player, config.planner)
    return ExactCritic(table, policy, discount_of(config), state_of=world.state_of, digits=world.digits)


def weights_of(config: Config, world: World[Any]) -> Float[Tensor, " K"]:
    """Worth of each reward channel; of the first alone where the config says nothing."""
    channels = world.spec.channels
    given = config.critic.weights
    if given is None:
        return torch.tensor([1.0] + [0.0] * (len(channels) - 1))
    if len(given) != len(channels):
        raise InputError(f"critic.weights: expected a number for each of {', '.join(channels)}; got {list(given)}.")
    return torch.tensor(given)


def discount_of(config: Config) -> float:
    """γ of the channel that counts."""
    discount = config.critic.learner.discount
    return float(discount if isinstance(discount, float) else discount[0])
