"""Regression of a prefix critic on logged play."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from envs.core import InputError, Observation, Streams
from marl.config.schema import Section
from marl.learning.batch import Batch, advantages_of
from marl.learning.learner import Learner, Progress, Stateful, per_channel
from marl.learning.losses import mean_weights, squared_error
from marl.learning.moving_average import follow
from marl.learning.offline_batch import Logged
from marl.learning.optimizers import Stacked, build_optimizer
from marl.learning.state_log import StateLog
from marl.learning.value_scale import ValueScale


class RegressionConfig(Section):
    """Regression of a prefix critic on logged play."""

    rows: int = Field(2048, ge=1, description="logged rows of an update, for each member of the ensemble")
    steps: int = Field(16, ge=1, description="rows that follow one another, over which returns are added up")
    target: Literal["return", "bootstrap"] = Field(
        "bootstrap",
        description="return: all rewards that followed in the episode; bootstrap: those of a few steps, and the moving "
        "average's value of where they led",
    )
    gae_lambda: float = Field(0.95, ge=0, le=1, description="of bootstrap, at first: 0 looks one step ahead, 1 all")
    gae_lambda_end: float | None = Field(0.0, ge=0, le=1, description="of the last update; null: the same all along")
    discount: float | tuple[float, ...] = Field(0.97, description="γ in [0, 1], or one for each reward channel")
    learning_rate: float = Field(1e-3, gt=0, description="of Adam")
    learning_rate_end: float | None = Field(None, gt=0, description="of the last update; null: the same all along")
    averaging: float = Field(0.01, gt=0, le=1, description="how far the moving average goes at each update")
    max_grad_norm: float = Field(1.0, gt=0, description="largest gradient norm of each network")

    @model_validator(mode="after")
    def _whole_segments(self) -> RegressionConfig:
        if self.rows % self.steps:
            raise ValueError(f"rows must be a multiple of steps; got rows={self.rows}, steps={self.steps}")
        return self


def source(log: StateLog, config: RegressionConfig, streams: Streams) -> Logged:
    """Minibatches of a log as the target wants them: segments of it, or single steps with their returns."""
    if config.target == "bootstrap":
        return Logged(log, rows=config.rows, steps=config.steps, streams=streams)
    discount = per_channel(config.discount, log.reward.shape[-1]).to(log.reward.device)
    return Logged(log.returns(discount), rows=config.rows, streams=streams)


@runtime_checkable
class PrefixValues(Protocol):
    """Values of prefixes of joint decisions, as `marl.models.prefix_critic.PrefixCritic` has them, or one's own.

    needs_behavior: whether it must be told the probabilities by which agents chose; then the joint decision alone is
    fitted. policies: P. copies: C networks a policy that share no parameter; each parameter holds P·C of them on its
    first axis.
    """

    needs_behavior: bool
    policies: int
    channels: int
    copies: int

    def __call__(
        self,
        obs: Observation,
        action: Int[Tensor, "B N 1"] | None = None,
        given: Bool[Tensor, "*U B N"] | None = None,
        behavior: Float[Tensor, "B N A"] | None = None,
    ) -> Float[Tensor, "*U B N K"]:
        """Values where the choices of some agents are given; of the state alone where none are.

        behavior: probabilities of each agent's choices, given those before it; None where nobody knows them.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """Parameters that are fitted."""

    def state_dict(self) -> dict[str, Any]:
        """State that is saved."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """The inverse."""


class Regression(Learner):
    """A prefix critic fitted to what logged joint decisions led to.

    Every row is learned from with each prefix of a random order of its agents, from nobody given to all:

        loss = mean over prefixes G of (Q^G(s_t, a_t) - y_t)²
        y_t = r_t + γ (1 - terminated_t) ((1 - λ) V'(s_t+1) + λ y_t+1),    to the end of the segment, where λ is 0

    As the choices of those not given are the log's, Q^G averages over the policy that played. V' is the critic's moving
    average. λ falls from first to last: values spread over many steps at once at first, and where they are known, what
    one choice changes is not lost in the noise of all that follow. With `target: return` y is the return, which is the
    regression of Zhang et al., 2025 (arXiv 2405.14314, algorithm 1). Values are learned in units of their targets'
    deviation. Batches are those of `source`.

    A critic that needs the behavior μ that played (`OrderedCritic`) is fitted on the joint decision alone:

        loss = (V(s_t) + Σ_k A^k(s_t, a_t) - y_t)²,    A^k = f^k[a_k] - Σ_b μ(b | s_t, a_{<k}) f^k[b]

    so that the mean over choices is μ's own, and none that samples of it average to: what expected Sarsa is to Sarsa
    (van Seijen et al., ADPRL 2009, "A Theoretical and Empirical Analysis of Expected Sarsa"), with the advantages of a
    dueling network (Wang et al., ICML 2016, arXiv 1511.06581) centered by the known policy. As V = E_μ Q by
    construction, bootstrapping from V' is that of expected Sarsa with the learned Q' and the known μ.

    P policies, as many as there are streams, are P members of an ensemble, each of which draws its rows and orders by
    itself. Raises InputError for a critic that needs behavior where the log has none (`behavior_of`).
    """

    def __init__(self, critic: PrefixValues, config: RegressionConfig, streams: Streams, updates: int):
        self.critic, self.config, self.streams, self.policies = critic, config, streams, len(streams)
        policies = self.policies
        if critic.policies != policies:
            raise InputError(
                f"An ensemble has one stream for each member; got {policies} streams for a critic of "
                f"{critic.policies} members."
            )
        device = next(critic.parameters()).device
        self.discount = per_channel(config.discount, critic.channels).to(device)
        self.target_critic = copy.deepcopy(critic) if config.target == "bootstrap" else None
        self.scale = ValueScale(policies, critic.channels, device)
        self.progress = Progress(updates)
        self.optimizer = build_optimizer(config, Stacked(critic.parameters(), policies * critic.copies))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step."""
        self.progress.advance()
        self.optimizer.learning_rate = self.progress.along(self.config.learning_rate, self.config.learning_rate_end)
        target = self._target(batch)
        self.scale.update(target, batch.obs.alive)
        loss, terms = self.loss(batch, target)
        self.optimizer.descend(loss)
        if self.target_critic is not None:
            follow(self.target_critic, self.critic, self.config.averaging)
        return terms

    def loss(self, batch: Batch, target: Float[Tensor, "B N K"]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimize, summed over policies, and its terms, each [P]."""
        if self.critic.needs_behavior:
            given, behavior = self._nobody_and_all(batch), behavior_of(batch)
        else:
            given, behavior = self._prefixes(batch), None
        value = self.critic(batch.obs, batch.decision.action, given, behavior)  # [U,B,N,K]
        error = squared_error(value, self.scale.apply_to(target).expand_as(value))
        share = mean_weights(batch.obs.alive, self.policies)
        by_prefix = (error * share).view(len(given), self.policies, -1).sum(-1)
        terms = {"value_error": by_prefix[0].detach(), "joint_error": by_prefix[-1].detach()}
        fitted = by_prefix[-1:] if self.critic.needs_behavior else by_prefix
        return fitted.mean(0).sum(), terms

    def values(
        self,
        obs: Observation,
        action: Int[Tensor, "B N 1"] | None = None,
        given: Bool[Tensor, "*U B N"] | None = None,
        behavior: Float[Tensor, "B N A"] | None = None,
    ) -> Float[Tensor, "*U B N K"]:
        """The critic's values as returns."""
        value = self.critic(obs, action, given, behavior)
        by_prefix = value.reshape(-1, *value.shape[-3:])
        return torch.stack([self.scale.restore(each) for each in by_prefix]).view_as(value)

    def parts(self) -> dict[str, Stateful | None]:
        """The critic, its moving average where there is one, units, optimizer, random numbers and place in training."""
        return {
            "critic": self.critic,
            "target_critic": self.target_critic,
            "scale": self.scale,
            "optimizer": self.optimizer,
            "streams": self.streams,
            "progress": self.progress,
        }

    @torch.no_grad()
    def _target(self, batch: Batch) -> Float[Tensor, "B N K"]:
        if self.target_critic is None:
            return batch.reward
        gae_lambda = self.progress.along(self.config.gae_lambda, self.config.gae_lambda_end)
        value, following = (self.scale.restore(self.target_critic(obs)) for obs in (batch.obs, batch.final_obs))
        return (value + advantages_of(batch, value, following, self.discount, gae_lambda)).contiguous()

    def _prefixes(self, batch: Batch) -> Bool[Tensor, "U B N"]:
        """Agents who are given, in each prefix of a random order in each row: nobody first, everybody last."""
        rows, agents = batch.obs.alive.shape
        device = self.streams.device

        def draw(count: int, generator: torch.Generator) -> Float[Tensor, "count N"]:
            return torch.rand(count, agents, generator=generator, device=device)

        place = self.streams.draw(draw, rows).argsort(-1)
        given = place < torch.arange(agents + 1, device=device).view(-1, 1, 1)
        return given & batch.obs.alive  # who is gone chooses nothing

    def _nobody_and_all(self, batch: Batch) -> Bool[Tensor, "2 B N"]:
        """Nobody given, and everybody who is there."""
        alive = batch.obs.alive
        return torch.stack([torch.zeros_like(alive), alive])


def behavior_of(batch: Batch) -> Float[Tensor, "B N A"]:
    """Probabilities of each agent's choices given those before it, as whoever played told them in `Decision.latent`.

    Raises InputError where nothing of the kind was logged.
    """
    behavior = batch.decision.latent
    agents = batch.obs.alive.shape
    if isinstance(behavior, Tensor) and behavior.is_floating_point() and behavior.shape[:-1] == agents:
        return behavior
    came = f"a tensor {list(behavior.shape)}" if isinstance(behavior, Tensor) else type(behavior).__name__
    raise InputError(
        "This critic learns from the probabilities by which agents chose, a real tensor [B,N,A] in Decision.latent; "
        f"the log has {came}. Record an actor that tells them, such as planners.read.behavior.Behavior, or fit a "
        "PrefixCritic, which needs none."
    )
