"""A critic of joint choices of which only some agents' are known."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from envs.core import EnvSpec, InputError, Observation, Streams
from marl.models.action_critic import only_choice
from marl.models.critics import CriticConfig
from marl.models.row_network import RowNetwork


class PrefixCritic(nn.Module):
    """Values of a state in which some agents have chosen and the others will, as the policy learned from does:

        Q^G(s, a) = E[Q(s, a) | the choices of the agents G] = V(s) + A^G(s, a),    A^∅ = 0

    With no agent given it is V, with all of them Q, with a subset the value of that prefix of a joint decision
    (multi-agent value functions of Kuba et al., ICLR 2022, arXiv 2109.11251, definition 1; for language models Zhang et
    al., 2025, arXiv 2405.14314, section 3). V and A are networks of their own, and A is 0 by construction where nobody
    is given: what a choice changes is small beside the value of the state, and would be lost in its error.

    Sees the state. A channel has networks of its own, unless `share_trunk`. Raises InputError for actions that are no
    single choice, `sees: agent`, and networks that remember.
    """

    needs_behavior = False

    def __init__(self, spec: EnvSpec, config: CriticConfig, streams: Streams):
        super().__init__()
        require_state(config)
        self.agents, self.channels = len(spec.agents), len(spec.channels)
        self.actions = only_choice(spec.action)
        sizes = {"agents": self.agents, "channels": self.channels}
        self.value = RowNetwork(config, spec.state_size, 1, **sizes, streams=streams)
        inputs = spec.state_size + self.agents * self.actions
        self.advantage = RowNetwork(config, inputs, 1, **sizes, streams=streams)
        self.policies, self.copies = self.value.policies, self.value.copies

    def forward(
        self,
        obs: Observation,
        action: Int[Tensor, "B N 1"] | None = None,
        given: Bool[Tensor, "*U B N"] | None = None,
        behavior: Float[Tensor, "B N A"] | None = None,
    ) -> Float[Tensor, "*U B N K"]:
        """Values Q^G of every agent and channel; V where nothing is given.

        given: the agents G whose choices in `action` are known; with axes U before B, several G in one pass. behavior:
        not needed, as V and A are both learned.
        """
        value = self.value(obs.state).squeeze(-1)
        if action is None and given is None:
            return value
        if action is None or given is None:
            raise InputError("A prefix critic takes both what is chosen and whose choices are given, or neither.")
        chosen = nn.functional.one_hot(action.squeeze(-1), self.actions).to(obs.state.dtype)
        known = (chosen * given.unsqueeze(-1)).flatten(-2)
        state = obs.state.expand(*given.shape[:-2], *obs.state.shape)
        advantage = self.advantage(torch.cat([state, known], -1)).squeeze(-1)
        return value + advantage * given.any(-1)[..., None, None]


def require_state(config: CriticConfig) -> None:
    """Raise InputError for a critic that would not see the state."""
    if config.sees != "state":
        raise InputError("A critic of prefixes judges joint decisions, so it sees the state; set sees: state.")
