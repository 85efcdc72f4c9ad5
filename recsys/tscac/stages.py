"""The stages of TSCAC, each the core's learner with channels, a temperature and an anchor of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from envs.core import EnvSpec
from marl.config.schema import Section
from marl.learning.batch import Batch
from marl.learning.learner import Chain, Learner
from marl.learning.offline_actor_critic import LoggedActorCritic, LoggedLearnerConfig, Objective
from marl.learning.offline_batch import Logged
from marl.learning.owned_channels import OwnedChannels
from marl.models.action_critic import ActionCritic
from marl.models.layers import NetworkConfig
from marl.models.policies import IndependentPolicy, PolicyConfig
from marl.training.run import Run, env_steps_to_updates

LEARNER = LoggedLearnerConfig()


class StageConfig(Section):
    """Networks of a stage, and how they learn."""

    policy: NetworkConfig = Field(NetworkConfig(hidden=(64,)), description="of each policy")
    critic: NetworkConfig = Field(NetworkConfig(hidden=(64,)), description="of each critic")
    rows: int = Field(LEARNER.rows, ge=1, description="logged rows of an update, for each policy")
    learning_rate: float = Field(LEARNER.learning_rate, gt=0, description="of the policies' Adam, at first")
    critic_learning_rate: float = Field(
        LEARNER.critic_learning_rate, gt=0, description="of the critics' Adam, at first"
    )
    cooling: float = Field(0.03, gt=0, le=1, description="share of both learning rates that is left at the last update")
    max_grad_norm: float = Field(LEARNER.max_grad_norm, gt=0, description="largest gradient norm of each network")
    averaging: float = Field(LEARNER.averaging, gt=0, le=1, description="how far target critics move at each update")

    def learner(self, temperature: float) -> LoggedLearnerConfig:
        """As the core's learner takes it."""
        return LoggedLearnerConfig(
            rows=self.rows,
            learning_rate=self.learning_rate,
            learning_rate_end=self.cooling * self.learning_rate,
            critic_learning_rate=self.critic_learning_rate,
            critic_learning_rate_end=self.cooling * self.critic_learning_rate,
            max_grad_norm=self.max_grad_norm,
            averaging=self.averaging,
            temperature=temperature,
        )


Beside = Callable[[LoggedActorCritic], Mapping[str, Learner]]


def _alone(learner: LoggedActorCritic) -> Mapping[str, Learner]:
    """Nobody."""
    return {}


class Goals(NamedTuple):
    """What M policies of a stage want.

    owned: for each the channels that its critics are of, one a policy where values are soft. discount: γ of each
    channel of the log. temperature: τ of soft values. weights: what each makes of its own channels, 1 where not given.
    """

    objective: Objective
    owned: Sequence[Sequence[int]]
    discount: Float[Tensor, " K"]
    temperature: float = 0.0
    weights: Float[Tensor, "M own"] | None = None


class Fitted(NamedTuple):
    """Policies of a stage and their critics, seed-major."""

    policy: IndependentPolicy
    critic: ActionCritic


def fit_stage(
    run: Run,
    name: str,
    log: Batch,
    spec: EnvSpec,
    config: StageConfig,
    goals: Goals,
    beside: Beside = _alone,
) -> Fitted:
    """Train a stage's policies on all rows of a log, as many for each seed as there are goals.

    beside: learners that come first in each update, made from the stage's own.
    """
    members, weights = len(goals.owned), goals.weights
    channels = OwnedChannels([list(own) for own in goals.owned] * len(run.seeds), run.device)
    narrow = channels.spec(spec)
    policy = IndependentPolicy(narrow, PolicyConfig(network=config.policy), run.streams(f"{name} policy", members))
    critic = ActionCritic(narrow, config.critic, run.streams(f"{name} critic", members))
    updates = env_steps_to_updates(run.config.train.env_steps, config.rows)
    learner = LoggedActorCritic(
        policy,
        critic,
        config.learner(goals.temperature),
        len(channels.owned),
        weights=None if weights is None else weights.repeat(len(run.seeds), 1),
        discount=goals.discount.to(run.device)[channels.owned],
        objective=goals.objective,
        updates=updates,
    )
    source = Logged(log, rows=config.rows, streams=run.streams(f"{name} rows", members))
    chain = Chain({"channels": channels, **beside(learner), "learner": learner})
    run.fit(name, chain, source, updates, cpu_seconds=run.config.train.cpu_seconds, members=members)
    return Fitted(policy, critic)


def equal_shares(auxiliaries: int) -> Float[Tensor, " m"]:
    """Every auxiliary alike."""
    return torch.full((auxiliaries,), 1 / auxiliaries)
