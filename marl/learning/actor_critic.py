"""Learners own losses and optimizers. `update` improves a policy from one batch; all a learner knows is saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from envs.core import Decision, Observation, Streams, Tree, tree_map
from marl.config.schema import Section
from marl.learning.batch import Batch, advantages_of, forget, join_steps, minibatches, take_rows
from marl.learning.learner import Kept, Learner, Progress, Stateful, per_channel
from marl.learning.losses import clipped_surrogate, mean_weights, normalize_by_policy, squared_error
from marl.learning.optimizers import Stacked, build_optimizer
from marl.learning.scalarization import Scalarization, by_decider, choosing
from marl.models.critics import Critic
from marl.models.policies import JointPolicy

T = TypeVar("T")


class LearnerConfig(Section):
    """Proximal policy optimization with generalized advantages."""

    steps: int = Field(128, ge=1, description="steps of each environment in a batch, T")
    sequence_length: int = Field(
        1, ge=1, description="steps of a training segment, L; recurrent networks want 8 or more"
    )
    epochs: int = Field(4, ge=1, description="passes over a batch")
    minibatches: int = Field(4, ge=1, description="parts of a pass")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam, at first")
    learning_rate_end: float | None = Field(
        None, gt=0, description="at the end of training, where it gets in a straight line; null keeps it"
    )
    discount: float | tuple[float, ...] = Field(0.99, description="γ in [0, 1], or one for each reward channel")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="λ of generalized advantage estimation")
    clip: float = Field(0.2, gt=0, description="ε, how far a decision's ratio may move")
    entropy: float = Field(0.01, ge=0, description="weight of the entropy bonus, at first")
    entropy_end: float | None = Field(
        None, ge=0, description="its weight at the end of training, where it gets in a straight line; null keeps it"
    )
    max_grad_norm: float = Field(0.5, gt=0, description="largest gradient norm, of the policy and of each critic")
    normalize_advantages: bool = Field(
        True,
        description="bring a batch's advantages to mean 0 and deviation 1; the weight of the entropy bonus is then "
        "in effect multiplied by their deviation, and is no temperature",
    )
    scale_values: bool = Field(
        False, description="learn values in running units of their targets, for huge or tiny rewards"
    )

    @model_validator(mode="after")
    def _whole_segments(self) -> LearnerConfig:
        if self.steps % self.sequence_length:
            raise ValueError(
                f"steps must be a multiple of sequence_length; got steps={self.steps}, "
                f"sequence_length={self.sequence_length}"
            )
        return self


class Samples(NamedTuple):
    """The part of a batch that one gradient step sees, [L,S,…]; memories at the segments' start, [S,…].

    What deciders and agents weigh in the loss: a sum over a minibatch estimates the mean over the batch of those who
    act and live. The others weigh 0.
    """

    obs: Observation
    decision: Decision
    ended: Bool[Tensor, "L S"]
    advantage: Float[Tensor, "L S M"]
    decider_weight: Float[Tensor, "L S M"]
    target: Float[Tensor, "L S N K"]
    agent_weight: Float[Tensor, "L S N"]


class ActorCritic(Learner):
    """PPO for any joint policy and any critic: one log-probability a decider, one value an agent and channel.

    Values, advantages and their scalarization are computed here, from raw rewards. Policy and critic may remember;
    their segments are replayed step by step from the stored memory, which restarts where an episode ended. progress:
    the clock of what changes over training, the scalarization's as well. discount: γ by channel, or by policy and
    channel, where it is not that of the config.
    """

    def __init__(
        self,
        policy: JointPolicy,
        critic: Critic,
        config: LearnerConfig,
        scalarization: Scalarization,
        streams: Streams,
        progress: Progress | None = None,
        *,
        discount: Float[Tensor, "*P K"] | None = None,
    ):
        self.policy, self.critic, self.config, self.streams = policy, critic, config, streams
        self.scalarization, self.progress = scalarization, Progress(1) if progress is None else progress
        self.policies = len(streams)
        device, channels = next(critic.parameters()).device, critic.channels
        self.scale: ValueScale | None = None
        if config.scale_values:
            from marl.learning.value_scale import ValueScale  # few want it

            self.scale = ValueScale(self.policies, channels, device)
        self.discount = (per_channel(config.discount, channels) if discount is None else discount).to(device)
        self.optimizer = build_optimizer(
            config,
            Stacked(policy.parameters(), self.policies),
            Stacked(critic.parameters(), self.policies * critic.copies),
        )
        self._critic_memory = Kept(None)
        self._entropy_weight = torch.tensor(config.entropy, device=device)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Epochs of clipped gradient steps on one batch."""
        self._move_on()
        samples, critic_memory = self._samples(batch)
        logged = []
        for _ in range(self.config.epochs):
            for rows, segments in minibatches(batch, self.config.minibatches, self.streams):
                self.optimizer.begin_step()
                change, terms = self.descent(samples, (batch.memory, critic_memory), rows, segments)
                self.optimizer.move(change)
                logged.append(terms)
        return {name: torch.stack([entry[name] for entry in logged]).mean(0) for name in logged[0]}

    def parts(self) -> dict[str, Stateful | None]:
        """Networks, optimizer, scales, streams, the clock, and what a recurrent critic remembers."""
        return {
            "policy": self.policy,
            "critic": self.critic,
            "scale": self.scale,
            "scalarization": self.scalarization,
            "optimizer": self.optimizer,
            "streams": self.streams,
            "critic_memory": self._critic_memory,
            "done": self.progress,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken; earlier versions had no scalarization with a state."""
        super().load_state_dict({"scalarization": {}, **state})

    def _move_on(self) -> None:
        self.progress.advance()
        config, along = self.config, self.progress.along
        # A tensor, so that a compiled loss need not be compiled again.
        self._entropy_weight.fill_(along(config.entropy, config.entropy_end))
        self.optimizer.learning_rate = along(config.learning_rate, config.learning_rate_end)

    def _samples(self, batch: Batch) -> tuple[Samples, Tree]:
        """The whole batch as a gradient step sees it, and what the critic remembers at each segment's start."""
        alive, config = batch.obs.alive, self.config
        advantage, target, critic_memory = self._advantages(batch)
        of_agents = self.scalarization.of(advantage, batch)
        free = choosing(batch.obs, self.policy.space)
        of_deciders, acting = by_decider(of_agents, alive, free, self.policy.members)
        if config.normalize_advantages:
            of_deciders = normalize_by_policy(of_deciders, acting, self.policies)
        if self.scale is not None:
            self.scale.update(target, alive)
            target = self.scale.apply_to(target)
        # A minibatch sums its share of the whole batch's mean.
        decider_weight = mean_weights(acting, self.policies) * config.minibatches
        agent_weight = mean_weights(alive, self.policies) * config.minibatches
        samples = Samples(
            batch.obs, batch.decision, batch.ended, of_deciders, decider_weight, target, agent_weight=agent_weight
        )
        return samples, critic_memory

    def loss(self, samples: Samples, memory: Tree, critic_memory: Tree) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimize, summed over policies, and its terms, each [P]."""
        config = self.config
        log_prob, entropy, price, value = self._replay(samples, memory, critic_memory)
        old = samples.decision.log_prob
        assert old is not None
        # The ratio of those who do not act may overflow, and infinity times 0 is NaN.
        log_prob = log_prob.where(samples.decider_weight > 0, old)
        surrogate = clipped_surrogate(log_prob, old, samples.advantage, config.clip)
        error = squared_error(value, samples.target) * samples.agent_weight
        objective = torch.addcmul(surrogate, entropy, self._entropy_weight)
        objective = (objective if price is None else objective - price) * samples.decider_weight
        with torch.no_grad():
            shift = log_prob - old
            change = shift.expm1()
            clipped = (change.abs() > config.clip).to(shift.dtype)
            terms = torch.stack([surrogate, entropy, change - shift, clipped])  # k3 estimate of the divergence
            means = self._by_policy(terms * samples.decider_weight)
            value_error = self._by_policy(error)
        named = dict(zip(("surrogate", "entropy", "kl", "clipped"), means.unbind()))
        return error.sum() - objective.sum(), {**named, "value_error": value_error}

    def _by_policy(self, x: Float[Tensor, "*X L S M"]) -> Float[Tensor, "*X P"]:
        """Sums over each policy's samples; S is policy-major."""
        return x.unflatten(-2, (self.policies, -1)).sum((-4, -2, -1))

    def descent(
        self, samples: Samples, memories: tuple[Tree, Tree], rows: Int[Tensor, "L S"], segments: Int[Tensor, " S"]
    ) -> tuple[Float[Tensor, " F"], dict[str, Tensor]]:
        """How a minibatch changes the parameters, and the loss's terms: all between two writes of the parameters.

        samples, memories: of the whole batch, of which `rows` and `segments` are taken. Can be compiled.
        """
        total, terms = self.loss(take_rows(samples, rows), *take_rows(memories, segments))
        parts = torch.autograd.grad(total, self.optimizer.parameters, allow_unused=True, materialize_grads=True)
        return self.optimizer.change(self.optimizer.side_by_side(parts)), terms

    def _replay(
        self, samples: Samples, memory: Tree, critic_memory: Tree
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Log-probabilities, entropies and prices [L,S,M] and values [L,S,N,K] under today's parameters."""

        def again(obs: Observation, decision: Decision, memories: Tree) -> tuple[Any, Tree]:
            distribution, memory = self.policy(obs, memories[0])
            value, critic_memory = self.critic(obs, memories[1])
            about = (distribution.log_prob(decision), distribution.entropy(decision), distribution.price(decision))
            return (*about, value), (memory, critic_memory)

        return replay(again, samples.obs, samples.decision, samples.ended, (memory, critic_memory))

    @torch.no_grad()
    def _advantages(self, batch: Batch) -> tuple[Float[Tensor, "B N K"], Float[Tensor, "B N K"], Tree]:
        """Advantages, value targets, and what the critic remembers at each segment's start."""
        value, next_value, memory = self._values(batch)
        if self.scale is not None:
            if self.progress.done == 1:
                # The units of the first values are those of the batch's own returns.
                nothing = torch.zeros_like(value)
                self.scale.update(
                    advantages_of(batch, nothing, nothing, self.discount, gae_lambda=1.0), batch.obs.alive
                )
            value, next_value = self.scale.restore(value), self.scale.restore(next_value)
        advantage = advantages_of(batch, value, next_value, self.discount, self.config.gae_lambda)
        return advantage, advantage + value, memory

    def _values(self, batch: Batch) -> tuple[Float[Tensor, "B N K"], Float[Tensor, "B N K"], Tree]:
        """Of the observations, of their true successors, and the critic's memory at each segment's start."""
        # final_obs still has those who just died, as they saw it; those who go on will not hear them at the next step.
        successor = dataclasses.replace(batch.final_obs, alive=batch.final_obs.alive & ~batch.terminated)
        start = self.critic.initial_memory(batch.policies * batch.rows)
        if start is None:
            return self.critic(batch.obs, None)[0], self.critic(successor, None)[0], None
        memory = start if self._critic_memory.value is None else self._critic_memory.value
        values, next_values, starts = [], [], []
        by_time = batch.over_time((batch.obs, successor, batch.ended))
        for t in range(batch.steps):
            obs, final_obs, ended = tree_map(lambda x: x.flatten(0, 1), tree_map(itemgetter(t), by_time))
            if t % batch.segment == 0:
                starts.append(memory)
            value, memory = self.critic(obs, memory)
            values.append(value)
            next_values.append(self.critic(final_obs, memory)[0])
            memory = forget(memory, ended)
        self._critic_memory.value = memory
        value, next_value, starting = (join_steps(x, batch.policies) for x in (values, next_values, starts))
        return value, next_value, starting


def replay(
    again: Callable[[Observation, Decision, Tree], tuple[T, Tree]],
    obs: Observation,
    decision: Decision,
    ended: Bool[Tensor, "L S"],
    memory: Tree,
) -> T:
    """Results of again(obs, decision, memory) at each step of segments, [L,S,…]; obs and decision are [L,S,…].

    again gives what it finds and what is remembered; memory, [S,…] at the segments' start, is cleared where an episode
    ended.
    """
    steps = []
    for t in range(len(ended)):
        found, memory = again(*tree_map(itemgetter(t), (obs, decision)), memory)
        steps.append(found)
        memory = forget(memory, ended[t])
    if len(steps) == 1:
        return tree_map(lambda x: x.unsqueeze(0), steps[0])
    return tree_map(lambda *x: torch.stack(x), *steps)
