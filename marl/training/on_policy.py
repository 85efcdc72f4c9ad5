"""From a config to a trained policy: what every recipe shares that trains one policy on its own experience."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

from pydantic import field_validator, model_validator

from envs.core import EnvSpec, Streams
from marl.config.schema import TrainingConfig
from marl.learning.actor_critic import ActorCritic, LearnerConfig
from marl.learning.learner import Learner, Progress, per_channel
from marl.learning.rollout import OnPolicy
from marl.learning.scalarization import AdvantageConfig, build_scalarization
from marl.learning.unroll import AT_ONCE
from marl.models.critics import CriticConfig, build_critic
from marl.models.policies import JointPolicy, PolicyConfig
from marl.output.console import console
from marl.training.environments import make_env
from marl.training.run import Run, env_steps_to_updates
from marl.training.stage import Probe

STAGE = "train"  # what the stage is called that these recipes fit


class ActorCriticConfig(TrainingConfig):
    """A policy and a critic that learn from their own experience."""

    policy: PolicyConfig = PolicyConfig()
    critic: CriticConfig = CriticConfig()
    learner: LearnerConfig = LearnerConfig()
    advantage: AdvantageConfig = AdvantageConfig()

    @field_validator("advantage", mode="before")
    @classmethod
    def _kind_alone(cls, value: Any) -> Any:
        """`advantage: team` is short for `advantage: {kind: team}`."""
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _end_is_known(self) -> ActorCriticConfig:
        ends = {
            "learner.entropy_end": self.learner.entropy_end,
            "learner.learning_rate_end": self.learner.learning_rate_end,
            "advantage.weights_end": self.advantage.weights_end,
        }
        fading = [name for name, end in ends.items() if end is not None]
        if fading and self.train.cpu_seconds is not None:
            raise ValueError(
                f"{fading[0]} follows the steps of training, and train.cpu_seconds may end it before; use "
                "train.env_steps alone"
            )
        return self

    @model_validator(mode="after")
    def _enough_segments(self) -> ActorCriticConfig:
        segments = self.learner.steps // self.learner.sequence_length * self.env.num_envs
        if segments < self.learner.minibatches:
            raise ValueError(
                f"a batch of {segments} segments cannot be dealt into {self.learner.minibatches} minibatches; raise "
                "env.num_envs or learner.steps, or lower learner.minibatches"
            )
        return self


def actor_critic(config: ActorCriticConfig, run: Run, spec: EnvSpec, policy: JointPolicy, updates: int) -> ActorCritic:
    """PPO with the critic and the scalarization that the config asks for."""
    critic = build_critic(spec, config.critic, run.streams("critic"))
    progress = Progress(updates)
    scalarization = build_scalarization(
        spec.channels, config.advantage, policies=run.policies, device=run.device, progress=progress
    )
    return ActorCritic(policy, critic, config.learner, scalarization, run.streams("minibatches"), progress)


def train(
    config: ActorCriticConfig,
    run: Run,
    build: Callable[[Any, EnvSpec, Streams], JointPolicy],
    build_learner: Callable[[Any, Run, EnvSpec, Any, int], Learner] = actor_critic,
    source: type[OnPolicy] = OnPolicy,
    build_probes: Callable[[Any], Sequence[Probe]] = lambda policy: (),
) -> Any:
    """The trained policy that build(config, spec, streams) makes; P of them for a run of P policies.

    build_learner(config, run, spec, policy, updates) gives what improves it, from the batches of such a source;
    build_probes(policy) what looks at it in between.
    """
    env = make_env(
        config.env,
        num_envs=run.policies * config.env.num_envs,
        device=run.device,
        restart_episodes=config.resume.restart_episodes,
    )
    policy = build(config, env.spec, run.streams("policy"))
    updates = env_steps_to_updates(config.train.env_steps, config.learner.steps * config.env.num_envs)
    learner = build_learner(config, run, env.spec, policy, updates)
    batches = source(
        env,
        policy,
        steps=config.learner.steps,
        segment=config.learner.sequence_length,
        discount=per_channel(config.learner.discount, len(env.spec.channels)).to(run.device),
        streams=run.streams("actions"),
        seeds=run.stage_seeds(STAGE),
        at_once=AT_ONCE if config.compile else None,
    )
    with closing(env), _compiled(batches, learner, config.cuda_graphs) if config.compile else nullcontext():
        run.fit(STAGE, learner, batches, updates, build_probes(policy), config.train.cpu_seconds)
    return policy


def _compiled(source: OnPolicy, learner: Learner, cuda_graphs: bool) -> AbstractContextManager[None]:
    from marl.training.compiling import compilable_methods, compiled  # few want it

    device = source.env.device
    if cuda_graphs and device.type != "cuda":
        console.print(f"cuda_graphs: true changes nothing on {device}")
    return compiled(*compilable_methods(source, learner), cuda_graphs=cuda_graphs and device.type == "cuda")
