"""Critics of every single action, for what is learned from logs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from envs.core import Continuous, Discrete, EnvSpec, InputError, Observation, Streams
from marl.models.layers import NetworkConfig
from marl.models.policies import AgentNetwork


class Judged(NamedTuple):
    """Values of single actions: of the logged one by channel, and of all actions weighed, which carry no gradient."""

    logged: Float[Tensor, "B N K"]
    weighed: Float[Tensor, "B N A"]


class ActionValues(nn.Module, ABC):
    """Q(s, ·) of every single action and channel, such as `ActionCritic`, or a table, or what a user has.

    A subclass defines `forward`, and parameters of which each channel's lie one after the other on the first axis. It
    may also give single values and sums without ever making all values.
    """

    channels: int
    actions: int

    @abstractmethod
    def forward(self, obs: Observation) -> Float[Tensor, "B N A K"]:
        """All values."""

    def judged(self, obs: Observation, action: Int[Tensor, "B N 1"], weights: Float[Tensor, "P K"]) -> Judged:
        """Values of the logged actions, and of all actions Σ_k w_k q_k with the weights of each row's policy."""
        q = self(obs)
        logged = q.gather(2, action.unsqueeze(-1).expand(-1, -1, -1, q.shape[-1])).squeeze(2)
        return Judged(logged, weigh(q.detach(), weights))

    def expected(self, obs: Observation, probability: Float[Tensor, "B N A"]) -> Float[Tensor, "B N K"]:
        """Σ_a π(a) q(s,a)."""
        return torch.einsum("bna,bnak->bnk", probability, self(obs))


class ActionCritic(ActionValues):
    """A network of its own for each channel that sees what the agent sees; its outputs begin near 0.

    Where the last layer is affine, values of single actions and sums over actions are taken from the hidden units: of
    A = 150 actions and K = 7 channels that costs half of what an array of all values does. Raises InputError for
    actions of several components or of real numbers, and for networks that remember.
    """

    def __init__(self, spec: EnvSpec, network: NetworkConfig, streams: Streams):
        super().__init__()
        self.actions, self.channels = only_choice(spec.action), len(spec.channels)
        self.network = AgentNetwork(
            spec, self.actions, network, streams, share="kind", agent_id=False, gain=0.01, copies=self.channels
        )
        if self.network.memory_shape is not None:
            raise InputError(f"Values of logged actions need a network without memory; {network.kind} remembers.")

    def forward(self, obs: Observation) -> Float[Tensor, "B N A K"]:
        """Values."""
        y, _ = self.network(obs, None)  # [B,N,K·A]
        return y.unflatten(-1, (self.channels, self.actions)).transpose(-1, -2)

    def judged(self, obs: Observation, action: Int[Tensor, "B N 1"], weights: Float[Tensor, "P K"]) -> Judged:
        """Values of the logged actions and weighed ones of all."""
        halves = self.network.body.halves(self.network.inputs(obs))
        if halves is None:
            return super().judged(obs, action, weights)
        hidden, weight, bias = (x.unflatten(0, (-1, self.channels)) for x in halves)  # P K first
        # The rows of the last layer that belong to the logged actions, [Q·X,H], in one list of all copies' rows.
        first = self.actions * torch.arange(weight.shape[0] * self.channels, device=action.device)
        place = action.view(len(weight), 1, -1) + first.view(len(weight), -1, 1)
        own = weight.mT.flatten(0, 2).index_select(0, place.flatten()).view_as(hidden)
        logged = torch.linalg.vecdot(hidden, own) + bias.flatten()[place]
        with torch.no_grad():
            scale = weights[..., None, None]
            side_by_side = hidden.transpose(1, 2).flatten(2)  # [P,X,K·H]
            weighed = torch.baddbmm((scale * bias).sum(1), side_by_side, (scale * weight).flatten(1, 2))
        rows = action.shape[:2]
        return Judged(logged.movedim(1, -1).reshape(*rows, -1), weighed.view(*rows, -1))

    def expected(self, obs: Observation, probability: Float[Tensor, "B N A"]) -> Float[Tensor, "B N K"]:
        """Σ_a π(a) q(s,a): the hidden units times the policy's mean of the last layer."""
        halves = self.network.body.halves(self.network.inputs(obs))
        if halves is None:
            return super().expected(obs, probability)
        hidden, weight, bias = (x.unflatten(0, (-1, self.channels)) for x in halves)
        chances = probability.reshape(len(weight), 1, -1, self.actions)
        value = torch.linalg.vecdot(hidden, chances @ weight.mT) + (chances @ bias.mT).squeeze(-1)  # [P,K,X]
        return value.movedim(1, -1).reshape(*probability.shape[:2], -1)


def weigh(x: Float[Tensor, "*B K"], weights: Float[Tensor, "P K"]) -> Float[Tensor, "*B"]:
    """Weighted sum over the channels, with the weights of each row's policy; rows are policy-major."""
    by_policy = x.unflatten(0, (len(weights), -1))
    return (by_policy * weights.view(len(weights), *[1] * (x.dim() - 1), -1)).sum(-1).flatten(0, 1)


def only_choice(space: Discrete | Continuous) -> int:
    """A, of an action that is one choice among A. Raises InputError for any other."""
    if isinstance(space, Continuous) or space.size != 1:
        kind = "real numbers" if isinstance(space, Continuous) else f"{space.size} choices at once"
        raise InputError(f"An action must be one choice among finitely many here; it is {kind}.")
    return space.choices[0]
