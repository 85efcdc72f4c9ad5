"""Learners own losses and optimizers. `update` improves a policy from one batch; all a learner knows is saved."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from envs.core import Decision, InputError, Observation, Streams, Tree, tree_map, tree_where
from marl.batch import Batch, join_steps, minibatches
from marl.config import Section
from marl.critics import Critic, ValueScale
from marl.losses import clipped_surrogate, mean_weights, normalize_by_policy, squared_error
from marl.policies import JointPolicy
from marl.returns import gae
from marl.weighing import Weighing, by_decider

T = TypeVar("T")


@runtime_checkable
class Learner(Protocol):
    """Improves something from batches."""

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Learn; gives what to log, each [P]."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly, as a tree of tensors and JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""


class LearnerConfig(Section):
    """Proximal policy optimization with generalized advantages."""

    steps: int = Field(128, ge=1, description="steps of each environment in a batch, T")
    segment: int = Field(1, ge=1, description="steps of a training segment, L; recurrent networks want 8 or more")
    epochs: int = Field(4, ge=1, description="passes over a batch")
    minibatches: int = Field(4, ge=1, description="parts of a pass")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam")
    discount: float | tuple[float, ...] = Field(0.99, description="γ in [0, 1], or one for each reward channel")
    trace: float = Field(0.95, ge=0, le=1, description="λ of generalized advantage estimation")
    clip: float = Field(0.2, gt=0, description="ε, how far a decision's ratio may move")
    entropy: float = Field(0.01, ge=0, description="weight of the entropy bonus")
    max_gradient: float = Field(0.5, gt=0, description="largest gradient norm, of policy and critic each")
    scale_values: bool = Field(False, description="learn values in running units of their targets, for huge rewards")


class Samples(NamedTuple):
    """The part of a batch that one gradient step sees, [L,S,…]; memories at the segments' start, [S,…]."""

    obs: Observation
    decision: Decision
    ended: Bool[Tensor, "L S"]
    advantage: Float[Tensor, "L S M"]
    acting: Bool[Tensor, "L S M"]
    target: Float[Tensor, "L S N K"]
    alive: Bool[Tensor, "L S N"]


class ActorCritic:
    """PPO for any joint policy and any critic: one log-probability a decider, one value an agent and channel.

    Values, advantages and their weighing are computed here, from raw rewards. Policy and critic may remember; their
    segments are replayed step by step from the stored memory, which restarts where an episode ended.
    """

    def __init__(
        self, policy: JointPolicy, critic: Critic, config: LearnerConfig, weighing: Weighing, streams: Streams
    ):
        self.policy, self.critic, self.config, self.weighing, self.streams = policy, critic, config, weighing, streams
        self.policies = len(streams)
        parameter = next(critic.parameters())
        channels = critic.channels
        self.scale = ValueScale(self.policies, channels, parameter.device) if config.scale_values else None
        self.discount = per_channel(config.discount, channels).to(parameter.device)
        self._groups = [list(policy.parameters()), list(critic.parameters())]
        everything = [p for group in self._groups for p in group]
        self.optimizer = torch.optim.Adam(everything, lr=config.learning_rate, eps=1e-5, fused=True)
        self._critic_memory: Tree = None

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Epochs of clipped gradient steps on one batch."""
        advantage, target, critic_memory = self._advantages(batch)
        weighed = self.weighing(advantage, batch.obs.alive, batch.outcome)
        weighed, acting = by_decider(weighed, batch.obs.alive, self.policy.members)
        weighed = normalize_by_policy(weighed, acting, self.policies)
        if self.scale is not None:
            self.scale.update(target, batch.obs.alive)
            target = self.scale.apply_to(target)
        samples = Samples(batch.obs, batch.decision, batch.ended, weighed, acting, target, batch.obs.alive)
        logged = []
        for _ in range(self.config.epochs):
            for rows, segments in minibatches(batch, self.config.minibatches, self.streams):
                memories = take_rows((batch.memory, critic_memory), segments)
                logged.append(self._step(take_rows(samples, rows), *memories))
        return {name: torch.stack([entry[name] for entry in logged]).mean(0) for name in logged[0]}

    def loss(self, samples: Samples, memory: Tree, critic_memory: Tree) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimize, summed over policies, and its terms, each [P]."""
        config = self.config
        log_prob, entropy, value = self._replay(samples, memory, critic_memory)
        old = samples.decision.log_prob
        assert old is not None
        log_prob = log_prob.where(samples.acting, old)  # the dead's ratio may overflow, and infinity times 0 is NaN
        surrogate = clipped_surrogate(log_prob, old, samples.advantage, config.clip)
        error = squared_error(value, samples.target)
        # Rows are policy-major along S, so S goes first.
        acting, alive = (mean_weights(mask.transpose(0, 1), self.policies) for mask in (samples.acting, samples.alive))
        objective = surrogate + config.entropy * entropy
        total = (error.transpose(0, 1) * alive).sum() - (objective.transpose(0, 1) * acting).sum()
        with torch.no_grad():
            shift = log_prob - old
            change = shift.expm1()
            clipped = (change.abs() > config.clip).to(shift.dtype)
            terms = torch.stack([surrogate, entropy, change - shift, clipped])  # k3 estimate of the divergence
            means = (terms.transpose(1, 2) * acting).reshape(4, self.policies, -1).sum(2)
            value_error = (error.transpose(0, 1) * alive).reshape(self.policies, -1).sum(1)
        named = dict(zip(("surrogate", "entropy", "kl", "clipped"), means.unbind()))
        return total, {**named, "value_error": value_error}

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizer, value scale, streams, and what a recurrent critic remembers."""
        return {
            "policy": self.policy.state_dict(),
            "critic": self.critic.state_dict(),
            "scale": {} if self.scale is None else self.scale.state_dict(),
            "optimizer": adam_state(self.optimizer),
            "streams": self.streams.state_dict(),
            "critic_memory": self._critic_memory,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly where `state` was taken."""
        self.policy.load_state_dict(state["policy"])
        self.critic.load_state_dict(state["critic"])
        if self.scale is not None:
            self.scale.load_state_dict(state["scale"])
        load_adam_state(self.optimizer, state["optimizer"])
        self.streams.load_state_dict(state["streams"])
        self._critic_memory = state["critic_memory"]

    def _step(self, samples: Samples, memory: Tree, critic_memory: Tree) -> dict[str, Tensor]:
        total, terms = self.loss(samples, memory, critic_memory)
        total.backward()
        for group in self._groups:
            clip_gradients(group, self.config.max_gradient, self.policies)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return terms

    def _replay(self, samples: Samples, memory: Tree, critic_memory: Tree) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities and entropies [L,S,M] and values [L,S,N,K] of the segments under today's parameters."""
        steps = []
        for t in range(len(samples.ended)):
            obs, decision, ended = tree_map(itemgetter(t), (samples.obs, samples.decision, samples.ended))
            distribution, memory = self.policy(obs, memory)
            value, critic_memory = self.critic(obs, critic_memory)
            steps.append((distribution.log_prob(decision), distribution.entropy(decision), value))
            memory, critic_memory = (
                tree_where(ended, tree_map(torch.zeros_like, m), m) for m in (memory, critic_memory)
            )
        if len(steps) == 1:
            return tree_map(lambda x: x.unsqueeze(0), steps[0])
        return tree_map(lambda *x: torch.stack(x), *steps)

    @torch.no_grad()
    def _advantages(self, batch: Batch) -> tuple[Float[Tensor, "B N K"], Float[Tensor, "B N K"], Tree]:
        """Advantages, value targets, and what the critic remembers at each segment's start."""
        value, next_value, memory = self._values(batch)
        if self.scale is not None:
            value, next_value = self.scale.restore(value), self.scale.restore(next_value)
        columns = (batch.reward, value, next_value, batch.terminated, batch.truncated, batch.obs.alive)
        advantage = gae(*batch.over_time(columns), self.discount, self.config.trace)
        advantage = advantage.transpose(0, 1).flatten(0, 2)
        return advantage, advantage + value, memory

    def _values(self, batch: Batch) -> tuple[Float[Tensor, "B N K"], Float[Tensor, "B N K"], Tree]:
        """Of the observations, of their true successors, and the critic's memory at each segment's start."""
        # final_obs still has those who just died, as they saw it; those who go on will not hear them at the next step.
        successor = dataclasses.replace(batch.final_obs, alive=batch.final_obs.alive & ~batch.terminated)
        start = self.critic.initial_memory(batch.policies * batch.rows)
        if start is None:
            return self.critic(batch.obs, None)[0], self.critic(successor, None)[0], None
        memory = start if self._critic_memory is None else self._critic_memory
        values, next_values, starts = [], [], []
        by_time = batch.over_time((batch.obs, successor, batch.ended))
        for t in range(batch.steps):
            obs, final_obs, ended = tree_map(lambda x: x.flatten(0, 1), tree_map(itemgetter(t), by_time))
            if t % batch.segment == 0:
                starts.append(memory)
            value, memory = self.critic(obs, memory)
            values.append(value)
            next_values.append(self.critic(final_obs, memory)[0])
            memory = tree_where(ended, tree_map(torch.zeros_like, memory), memory)
        self._critic_memory = memory
        value, next_value, starting = (join_steps(x, batch.policies) for x in (values, next_values, starts))
        return value, next_value, starting


def take_rows(tree: T, rows: Int[Tensor, "*R"]) -> T:
    """tree[rows], through the operation that is fastest on a CPU."""
    flat, shape = rows.flatten(), rows.shape
    return tree_map(lambda x: x.index_select(0, flat).unflatten(0, shape), tree)


def per_channel(discount: float | Sequence[float], channels: int) -> Float[Tensor, " K"]:
    """One discount for each reward channel. Raises InputError for a wrong number of them or one outside [0, 1]."""
    values = [discount] * channels if isinstance(discount, float | int) else list(discount)
    if len(values) != channels or not all(0 <= v <= 1 for v in values):
        raise InputError(
            f"learner.discount must be one number in [0, 1], or {channels} of them (one for each reward channel); "
            f"got {discount}."
        )
    return torch.tensor(values)


def clip_gradients(parameters: Sequence[nn.Parameter], largest: float, policies: int) -> None:
    """Scale each policy's gradient down to the norm `largest` where it is longer; parameters are policy-major."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    slices = [part for g in gradients for part in (g.chunk(policies) if policies > 1 else (g,))]
    norms = torch.stack(torch._foreach_norm(slices)).view(-1, policies).norm(dim=0)
    scale = (largest / (norms + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_(slices, list(scale.unbind()) * len(gradients))


def adam_state(optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Adam's moments and step counts, by parameter number; empty before the first step."""
    return {
        f"{number}.{name}": value
        for number, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }


def load_adam_state(optimizer: torch.optim.Adam, state: dict[str, Tensor]) -> None:
    """The inverse of `adam_state`."""
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        number, name = key.split(".")
        entries.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
