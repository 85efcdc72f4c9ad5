"""Off-policy learning from logs: a policy by gradients of IPS or DR, beside a critic of all actions."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from envs.core import InputError, Observation
from marl.config.schema import Section
from marl.learning.batch import Batch
from marl.learning.learner import Learner, Progress, Stateful, per_channel
from marl.learning.losses import mean_weights, squared_error
from marl.learning.moving_average import follow
from marl.learning.offline_losses import doubly_robust, importance_weighted
from marl.learning.optimizers import Stacked, build_optimizer, gradients
from marl.learning.returns import discount_by_row
from marl.models.action_critic import ActionValues, only_choice, weigh
from marl.models.policies import JointPolicy

LARGEST_LOG_WEIGHT = 20.0  # weights beyond e^20 are as hopeless as that, and their squares would not fit a float


class LoggedLearnerConfig(Section):
    """Off-policy policy gradients from a log."""

    rows: int = Field(512, ge=1, description="logged rows of an update, for each policy")
    gradient: Literal["ips", "dr"] = Field(
        "dr", description="of inverse propensity scoring, or of doubly robust evaluation"
    )
    baseline: Literal["none", "mean", "value"] = Field(
        "mean", description="of ips: what rewards are compared with; mean of the minibatch, or value of the critic"
    )
    weights: float | tuple[float, ...] = Field(
        1.0, description="what one unit of each reward channel is worth; negative for what should be rare"
    )
    clip: float | None = Field(10.0, gt=0, description="largest importance weight; null clips none")
    learning_rate: float = Field(3e-3, gt=0, description="of the policy's Adam, at first")
    learning_rate_end: float | None = Field(None, gt=0, description="of the last update; null: the same all along")
    critic_learning_rate: float = Field(3e-3, gt=0, description="of the critic's Adam, at first")
    critic_learning_rate_end: float | None = Field(
        None, gt=0, description="of the last update; null: the same all along"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="largest gradient norm, of the policy and of each critic")
    discount: float | tuple[float, ...] = Field(
        0.0, description="γ in [0, 1], or one for each reward channel; 0 for bandits"
    )
    averaging: float = Field(
        0.005, gt=0, le=1, description="how far the target critic moves at each update, where γ > 0"
    )
    entropy: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    temperature: float = Field(
        0.0, ge=0, description="τ of soft values, of one channel: what KL(policy || uniform) costs in the return"
    )
    kl: float = Field(0.0, ge=0, description="weight of KL(logging policy || policy), which keeps close to the log")
    least_ess: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="effective sample size of the weights, as a share of the rows, below which a step goes back to the "
        "log; 0 never",
    )

    @model_validator(mode="after")
    def _nothing_idle(self) -> LoggedLearnerConfig:
        if self.gradient == "dr" and self.baseline != "mean":
            raise ValueError("baseline is for gradient=ips; dr compares rewards with its model")
        return self


class Estimated(NamedTuple):
    """Estimates of each row that an objective sees. Channels are weighed into one; only the first two carry gradients.

    log_probs: log π(a|x) of every action. weight: π/π_b of the logged action, clipped. q: what each action is expected
    to earn. target: what the logged one earned, r + γ V(s').
    """

    log_probs: Float[Tensor, "B N A"]
    weight: Float[Tensor, "B N"]
    q: Float[Tensor, "B N A"]
    q_logged: Float[Tensor, "B N"]
    target: Float[Tensor, "B N"]

    @property
    def probability(self) -> Float[Tensor, "B N A"]:
        """π(a|x) of every action."""
        return self.log_probs.exp()


@runtime_checkable
class Objective(Protocol):
    """Objective that a policy maximizes, row by row; the batch says where each row was."""

    def __call__(self, batch: Batch, rows: Estimated) -> Float[Tensor, "B N"]:
        """One number a row, whose mean by policy is maximized."""


def dr(batch: Batch, rows: Estimated) -> Float[Tensor, "B N"]:
    """Doubly robust."""
    return doubly_robust(rows.probability, rows.q, rows.weight, rows.target, rows.q_logged)


def ips(batch: Batch, rows: Estimated) -> Float[Tensor, "B N"]:
    """Inverse propensity scoring."""
    return importance_weighted(rows.weight, rows.target, torch.zeros_like(rows.target))


def ips_above_mean(batch: Batch, rows: Estimated) -> Float[Tensor, "B N"]:
    """IPS of rewards less their mean over the policy's n rows: the expected gradient of plain IPS times 1 - 1/n."""
    mean = rows.target.view(batch.policies, -1).mean(1, keepdim=True)
    return importance_weighted(rows.weight, rows.target, mean.expand(-1, batch.rows).reshape(rows.target.shape))


def ips_above_value(batch: Batch, rows: Estimated) -> Float[Tensor, "B N"]:
    """IPS of the advantage, target - Σ_a π(a|x) q(x,a): an actor-critic with corrected action probabilities."""
    return importance_weighted(rows.weight, rows.target, torch.linalg.vecdot(rows.probability, rows.q).detach())


IPS = {"none": ips, "mean": ips_above_mean, "value": ips_above_value}


class LoggedActorCritic(Learner):
    """Policy and critic learned from logged transitions, one gradient step each a batch.

    The critic regresses on r + γ (1 - terminated) V(s'), V(s) = Σ_a π(a|s) q'(s,a), by channel and with each channel's
    own γ; q' follows it as a moving average (there is none where all γ are 0, as for bandits). With a temperature τ,
    for critics of one channel, values are soft: V is less by τ KL(π || uniform). Of the policy that is best by these,
    π ∝ exp(q/τ) as an entropy bonus of τ makes it, V is τ log mean exp(q/τ). The policy ascends the mean of
    `objective`, with sums over actions exact and importance weights min(π/π_b, clip); weights are of single steps,
    without a ratio of states. weights [P,K] say what a unit of each channel is worth to each policy, so that P policies
    may want different things from one log; discount is γ by channel, or by policy and channel, where it is not that of
    the config. updates: how many there will be, along which learning rates go to their ends.

    Where the weights' effective sample size is below `least_ess` rows of one, a policy's step is that which makes the
    mean squared weight smaller, and nothing else (Polyak's switching between objective and constraint, 1967).
    """

    def __init__(
        self,
        policy: JointPolicy,
        critic: ActionValues,
        config: LoggedLearnerConfig,
        policies: int = 1,
        *,
        weights: Float[Tensor, "P K"] | None = None,
        discount: Float[Tensor, "*P K"] | None = None,
        objective: Objective | None = None,
        updates: int | None = None,
    ):
        actions = only_choice(policy.space)
        if policy.initial_memory(1) is not None or policy.members is not None or actions != critic.actions:
            raise InputError(
                f"Logs are learned from by agents that decide alone and remember nothing, among the {critic.actions} "
                f"actions of the critic; this {type(policy).__name__} is another kind, or has {actions} actions."
            )
        self.policy, self.critic, self.config, self.policies = policy, critic, config, policies
        device = next(critic.parameters()).device
        if weights is None:
            weights = channel_weights(config.weights, critic.channels).expand(policies, -1)
        self.weights = weights.to(device)
        if config.temperature > 0 and (critic.channels > 1 or not bool(self.weights.all())):
            raise InputError(
                "learner.temperature is of returns of one reward channel that counts; the critic has "
                f"{critic.channels}, weights are {self.weights.tolist()}. Take learner.entropy, which is of policies "
                "alone."
            )
        self.objective = objective or (dr if config.gradient == "dr" else IPS[config.baseline])
        self.discount = (per_channel(config.discount, critic.channels) if discount is None else discount).to(device)
        bootstraps = bool((self.discount > 0).any())
        self.target_critic = copy.deepcopy(critic) if bootstraps else None
        self._log_clip = min(LARGEST_LOG_WEIGHT, math.inf if config.clip is None else math.log(config.clip))
        self.policy_optimizer = build_optimizer(config, Stacked(policy.parameters(), policies))
        critics = Stacked(critic.parameters(), policies * critic.channels)
        self.critic_optimizer = build_optimizer(config, critics, learning_rate=config.critic_learning_rate)
        self.progress = self._progress(updates)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of each."""
        if self.progress is not None:
            self.progress.advance()
            along, config = self.progress.along, self.config
            self.policy_optimizer.learning_rate = along(config.learning_rate, config.learning_rate_end)
            self.critic_optimizer.learning_rate = along(config.critic_learning_rate, config.critic_learning_rate_end)
        total, terms = self.loss(batch)
        optimizers = self.policy_optimizer, self.critic_optimizer
        for optimizer, gradient in zip(optimizers, gradients(total, *optimizers)):
            optimizer.step(gradient)
        if self.target_critic is not None:
            follow(self.target_critic, self.critic, self.config.averaging)
        return terms

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimize, summed over policies, and its terms, each [P]."""
        config, action, logger = self.config, batch.decision.action, batch.decision.log_prob
        assert logger is not None
        judged = self.critic.judged(batch.obs, action, self.weights)
        target = self._target(batch)
        distribution, _ = self.policy(batch.obs, None)
        log_probs = distribution.log_probs()
        log_weight = log_probs.gather(-1, action).squeeze(-1) - logger
        weight = log_weight.clamp(max=self._log_clip).exp()
        earned = (weigh(x, self.weights) for x in (judged.logged.detach(), target))
        gain = self.objective(batch, Estimated(log_probs, weight, judged.weighed, *earned))
        share = mean_weights(batch.obs.alive, self.policies)
        with torch.set_grad_enabled(config.entropy > 0):
            entropy = -torch.linalg.vecdot(log_probs.exp(), log_probs)
        wanted, ess = self._unless_scattered(gain + config.entropy * entropy, log_weight)
        error = squared_error(judged.logged, target) * share
        loss = error.sum() - (wanted * share).sum()
        with torch.no_grad():
            clipped = (log_weight > self._log_clip).to(gain.dtype)
            means = [(x * share).view(self.policies, -1).sum(1) for x in (gain, entropy, -log_weight, clipped)]
            means.append(error.view(self.policies, -1).sum(1))
        names = ("objective", "entropy", "kl_from_logging", "clipped", "value_error")
        return loss, {**dict(zip(names, means)), "ess": ess}

    def parts(self) -> dict[str, Stateful | None]:
        """Networks, the target critic where there is one, optimizers, and where rates move the place in training."""
        return {
            "policy": self.policy,
            "critic": self.critic,
            "target_critic": self.target_critic,
            "policy_optimizer": self.policy_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "progress": self.progress,
        }

    def _progress(self, updates: int | None) -> Progress | None:
        """The place in training, where learning rates go by it. Raises InputError where nobody says how long it is."""
        ends = (self.config.learning_rate_end, self.config.critic_learning_rate_end)
        if ends == (None, None):
            return None
        if updates is None:
            raise InputError("Learning rates that move to an end need the number of updates, updates=….")
        return Progress(updates)

    @torch.no_grad()
    def _target(self, batch: Batch) -> Float[Tensor, "B N K"]:
        """Target of the critic: the reward of the logged actions, and the return expected to follow, discounted."""
        if self.target_critic is None:
            return batch.reward
        distribution, _ = self.policy(batch.final_obs, None)
        log_probs = distribution.log_probs()
        following = self.target_critic.expected(batch.final_obs, log_probs.exp())
        if self.config.temperature > 0:
            worth = self.weights.repeat_interleave(batch.rows, 0).unsqueeze(1)
            following = following - self.config.temperature * _divergence(log_probs, batch.final_obs) / worth
        faded = discount_by_row(self.discount, len(following)) * following
        return batch.reward + faded * (~batch.terminated).unsqueeze(-1)

    def _unless_scattered(
        self, gain: Float[Tensor, "B N"], log_weight: Float[Tensor, "B N"]
    ) -> tuple[Float[Tensor, "B N"], Float[Tensor, " P"]]:
        """The gain and closeness to the log, or less scatter where a policy's weights are scattered; and their ESS."""
        raw = log_weight.clamp(max=LARGEST_LOG_WEIGHT).exp()
        ess = self._ess(raw.detach())
        if self.config.kl > 0:
            gain = gain + self.config.kl * log_weight
        if self.config.least_ess > 0:
            scattered = (ess < self.config.least_ess).repeat_interleave(len(gain) // self.policies).unsqueeze(1)
            gain = torch.where(scattered, -0.5 * raw.square(), gain)
        return gain, ess

    def _ess(self, weight: Float[Tensor, "B N"]) -> Float[Tensor, " P"]:
        """(Σ w)² / Σ w², as a share of each policy's rows."""
        rows = weight.view(self.policies, -1)
        return rows.sum(1).square() / rows.square().sum(1).clamp(min=1e-30) / rows.shape[1]


def _divergence(log_probs: Float[Tensor, "B N A"], obs: Observation) -> Float[Tensor, "B N 1"]:
    """KL(π || uniform over what is legal)."""
    choices = log_probs.shape[-1] if obs.legal is None else obs.legal.sum(-1, keepdim=True).clamp(min=1)
    entropy = -torch.linalg.vecdot(log_probs.exp(), log_probs).unsqueeze(-1)
    return torch.as_tensor(choices, dtype=log_probs.dtype, device=log_probs.device).log() - entropy


def channel_weights(weights: float | Sequence[float], channels: int) -> Float[Tensor, " K"]:
    """Weight of one unit of each channel. Raises InputError for a wrong number of them, or none that counts."""
    values = [weights] * channels if isinstance(weights, float | int) else list(weights)
    if len(values) != channels or not any(values):
        raise InputError(
            f"learner.weights must be one number, or {channels} of them (one for each reward channel), not all 0; got "
            f"{weights}."
        )
    return torch.tensor(values, dtype=torch.float32)
