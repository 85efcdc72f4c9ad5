"""The critic that a config asks for, made or learned."""

from __future__ import annotations

from typing import Any

from envs.core import InputError
from envs.restarts import from_random_play
from envs.tabular import HasTable, Table
from envs.world import TensorEnv, World
from marl.evaluation.environments import differing, with_args
from marl.learning.state_log import StateLog, record
from marl.output.console import console
from marl.training.run import Run
from planners.baselines import uniform_prior
from planners.language.backends.deciding import deciding
from planners.language.base import LanguageModel
from planners.language.recorded import Recorded
from planners.planning.config import Config
from planners.planning.learned import learned_critic, run_of_critic, taken_critic, weights_of
from planners.planning.tabulated import HasDigits, joint_policy
from planners.read.behavior import Behavior
from planners.read.critics import ExactCritic, PlanCritic
from planners.read.prior import require_scores
from planners.tiny.recipe import native_world


def require_possible(config: Config, run: Run, world: World[Any]) -> None:
    """Raise InputError, before a model is opened or trained, for a critic that cannot be made or taken."""
    if config.critic.kind != "none":
        weights_of(config, world)
        world_of_log(config, world)
    if config.critic.run is not None:
        run_of_critic(config, run)


def require_able(config: Config, model: LanguageModel) -> None:
    """Raise InputError, before anything is asked, for a model that cannot score where it has to."""
    for needing, instead in config.needs_scores.items():
        require_scores(model, needing, instead)


def make_critic(
    config: Config, run: Run, world: World[Any], model: LanguageModel, suffix: str = ""
) -> PlanCritic | None:
    """The critic; None where the config asks for none. suffix: of the names of its stages, where a run has several."""
    kind = config.critic.kind
    if kind == "none":
        return None
    if config.critic.run is not None:
        return taken_critic(config, run, world)
    player = model if config.critic.log.play == "model" else uniform_prior()
    if kind == "exact":
        return exact_critic(config, world, player)
    log = logged_play(config, run, world, player, suffix).weighted(weights_of(config, world))
    if kind == "counted":
        from planners.read.counted import CountedCritic

        return CountedCritic(log, discount_of(config))
    return learned_critic(config, run, world, log, model.scores, suffix)


def logged_play(config: Config, run: Run, world: World[Any], player: LanguageModel, suffix: str = "") -> StateLog:
    """Play of a model alone, after random starts, with its probabilities."""
    asked = config.critic.log
    seed = run.stage_seeds("log" + suffix)[0]
    env = TensorEnv(
        started_anywhere(config, world, seed), asked.num_envs, time_limit=asked.time_limit, device=run.device
    )
    actor = Behavior(world, player, config.planner, asked.explore)
    with console.status(f"logging {asked.steps * asked.num_envs:,} steps of play"):
        log = record(env, actor, asked.steps, seed)
    console.print(f"logged {len(log):,} steps of play; {actor.asked:,} situations were scored", markup=False)
    return log


def started_anywhere(config: Config, world: World[Any], seed: int) -> World[Any]:
    """The world with `critic.log.args`, whose episodes begin where random play led."""
    asked = config.critic.log
    return from_random_play(world_of_log(config, world), asked.starts, asked.start_steps, seed)


def world_of_log(config: Config, world: World[Any]) -> World[Any]:
    """The world that is planned in, with `critic.log.args` over its arguments.

    Raises InputError where these make none, or another task.
    """
    args = config.critic.log.args
    if not args:
        return world
    try:
        other = native_world(config.model_copy(update={"env": with_args(config.env, args)}))
    except InputError as error:
        raise InputError(f"In the critic's log, with critic.log.args={args}: {error}") from error
    if changed := differing(world.spec, other.spec):
        raise InputError(
            f"critic.log.args={args} make another task of env, whose agents, what they see and choose, rewards and "
            f"horizon must stay: {changed}."
        )
    return other


def exact_critic(config: Config, world: Any, player: LanguageModel) -> ExactCritic:
    """The truth about a model's own play. Raises InputError for a world whose states cannot be listed."""
    table = listed_table(world)
    weights = weights_of(config, world)
    if bool((weights[1:] != 0).any()):
        raise InputError("critic.kind=exact is of the first reward channel alone; leave critic.weights out.")
    inner = player.model if isinstance(player, Recorded) else player  # as many answers as states would fill the cache
    policy = joint_policy(world, table, deciding(inner), config.planner)
    return ExactCritic(table, policy, discount_of(config), state_of=world.state_of, digits=world.digits)


def listed_table(world: Any) -> Table:
    """All states of a world. Raises InputError for one whose states cannot be listed."""
    if not isinstance(world, HasTable) or not isinstance(world, HasDigits):
        raise InputError(
            "critic.kind=exact and evaluation.exact need a world whose states can be listed (envs.tabular.HasTable), "
            f"and {type(world).__name__} has no table. Let a critic be learned, and episodes be played."
        )
    with console.status("listing the world's states"):
        return world.table()


def discount_of(config: Config) -> float:
    """The discount, of which a config has one."""
    discount = config.critic.learner.discount
    assert isinstance(discount, float)
    return discount
