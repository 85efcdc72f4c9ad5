"""From a config to a trained policy: what every recipe shares that trains one policy on its own experience."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from envs.core import ConcordError, EnvSpec, InputError, Streams, VectorEnv
from envs.world import TensorEnv
from marl import weighing
from marl.config import RunConfig, load_recipe
from marl.critics import CriticConfig, build_critic
from marl.display import in_words
from marl.environments import make_env
from marl.evaluation import check_other_numbers, in_other_numbers
from marl.learners import ActorCritic, Chain, Learner, LearnerConfig, per_channel
from marl.policies import JointPolicy, PolicyConfig
from marl.report import Report
from marl.run import Run, env_steps_to_updates
from marl.sources import OnPolicy


class ActorCriticConfig(RunConfig):
    """A policy and a critic that learn from their own experience."""

    policy: PolicyConfig = PolicyConfig()
    critic: CriticConfig = CriticConfig()
    learner: LearnerConfig = LearnerConfig()
    weighing: Literal["own", "team"] = Field("own", description="each agent's own advantage, or the living team's mean")

    @model_validator(mode="after")
    def _end_is_known(self) -> ActorCriticConfig:
        fading = [name for name in ("entropy_end", "learning_rate_end") if getattr(self.learner, name) is not None]
        if fading and self.train.cpu_seconds is not None:
            raise ValueError(
                f"learner.{fading[0]} follows the steps of training, and train.cpu_seconds may end it before; use "
                "train.env_steps alone"
            )
        return self

    @model_validator(mode="after")
    def _enough_segments(self) -> ActorCriticConfig:
        segments = self.learner.steps // self.learner.segment * self.env.num_envs
        if segments < self.learner.minibatches:
            raise ValueError(
                f"a batch of {segments} segments cannot be dealt into {self.learner.minibatches} minibatches; raise "
                "env.num_envs or learner.steps, or lower learner.minibatches"
            )
        return self


def run_training(config: RunConfig, folder: Path) -> Report:
    """One run in a new folder, which stays free where the config's world or networks cannot be built."""
    return follow(config, Run.create(folder, config))


def follow(config: RunConfig, run: Run) -> Report:
    """What the recipe finds. Before anything is trained, whatever it raises is taken for bad input."""
    module = load_recipe(config.recipe)
    try:
        check_other_numbers(config)
        report = module.recipe(config, run)
    except ConcordError:
        raise
    except Exception as error:
        if run.begun:
            raise
        raise InputError(
            f"What the config asks for cannot be built: {in_words(error)} Mend the value that this comes from, such as "
            "a dotted path or an argument; CONCORD_TRACEBACK=1 shows the whole way to it."
        ) from error
    if not isinstance(report, Report):
        raise InputError(f"{config.recipe}.recipe must return a marl.report.Report; got a {type(report).__name__}.")
    return in_other_numbers(run, report)


def actor_critic(config: ActorCriticConfig, run: Run, spec: EnvSpec, policy: JointPolicy, updates: int) -> ActorCritic:
    """PPO with the critic and the weighing that the config asks for."""
    critic = build_critic(spec, config.critic, run.streams("critic"))
    weigh = {"own": weighing.own, "team": weighing.team}[config.weighing]
    return ActorCritic(policy, critic, config.learner, weigh, run.streams("minibatches"), updates)


def train(
    config: ActorCriticConfig,
    run: Run,
    build: Callable[[EnvSpec, Streams], JointPolicy],
    build_learner: Callable[[Any, Run, EnvSpec, Any, int], Learner] = actor_critic,
    source: type[OnPolicy] = OnPolicy,
) -> Any:
    """The trained policy that `build` makes; P of them for a run with P seeds.

    build_learner(config, run, spec, policy, updates) gives what improves it, from the batches of such a source.
    """
    env = make_env(
        config.env,
        num_envs=run.policies * config.env.num_envs,
        device=run.device,
        restart_episodes=config.resume.restart_episodes,
    )
    policy = build(env.spec, run.streams("policy"))
    updates = env_steps_to_updates(config.train.env_steps, config.learner.steps * config.env.num_envs)
    learner = build_learner(config, run, env.spec, policy, updates)
    batches = source(
        env,
        policy,
        steps=config.learner.steps,
        segment=config.learner.segment,
        discount=per_channel(config.learner.discount, len(env.spec.channels)).to(run.device),
        streams=run.streams("actions"),
        seeds=run.stage_seeds("train"),
    )
    with closing(env), run.compiled(*_pure(env, policy, learner)):
        run.fit("train", learner, batches, updates, cpu_seconds=config.train.cpu_seconds)
    return policy


def _pure(env: VectorEnv, policy: JointPolicy, learner: Learner) -> list[tuple[Any, str]]:
    """The pure methods, which can be compiled: owners and names."""
    parts = learner.learners if isinstance(learner, Chain) else [learner]
    found: list[tuple[Any, str]] = [(part, "loss") for part in parts if isinstance(part, ActorCritic)]
    found += [(env, "advance")] if isinstance(env, TensorEnv) else []
    return found + ([(policy, "decide")] if hasattr(policy, "decide") else [])
