"""A critic of joint choices of which only some agents' are known."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from envs.core import EnvSpec, InputError, Observation, Streams
from marl.models.action_critic import only_choice
from marl.models.critics import CriticConfig
from marl.models.layers import Network, NetworkConfig
from marl.models.networks import build_network, check_network
from marl.models.policies import join_copies, stack_copies


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

    def __init__(self, spec: EnvSpec, config: CriticConfig, streams: Streams):
        super().__init__()
        if config.sees != "state":
            raise InputError("A prefix critic judges joint decisions, so it sees the state; set sees: state.")
        self.agents, self.channels = len(spec.agents), len(spec.channels)
        self.actions = only_choice(spec.action)
        self.policies, self.copies = len(streams), 1 if config.share_trunk else self.channels
        self._values = 1 if config.output == "team" else self.agents
        self.value = self._build(config.network, spec.state_size, streams)
        self.advantage = self._build(config.network, spec.state_size + self.agents * self.actions, streams)

    def forward(
        self,
        obs: Observation,
        action: Int[Tensor, "B N 1"] | None = None,
        given: Bool[Tensor, "*U B N"] | None = None,
    ) -> Float[Tensor, "*U B N K"]:
        """Values Q^G of every agent and channel; V where nothing is given.

        given: the agents G whose choices in `action` are known; with axes U before B, several G in one pass.
        """
        value = self._run(self.value, obs.state)
        if action is None and given is None:
            return value
        if action is None or given is None:
            raise InputError("A prefix critic takes both what is chosen and whose choices are given, or neither.")
        chosen = nn.functional.one_hot(action.squeeze(-1), self.actions).to(obs.state.dtype)
        known = (chosen * given.unsqueeze(-1)).flatten(-2)
        state = obs.state.expand(*given.shape[:-2], *obs.state.shape)
        advantage = self._run(self.advantage, torch.cat([state, known], -1))
        return value + advantage * given.any(-1)[..., None, None]

    def _build(self, network: NetworkConfig, inputs: int, streams: Streams) -> Network:
        outputs = self._values * self.channels // self.copies
        body = build_network(network, inputs, outputs, gain=0.01, copies=self.copies, streams=streams)
        sizes = {"agents": 1, "inputs": inputs, "outputs": outputs}
        check_network(body, network.kind, policies=self.policies, copies=self.copies, **sizes)
        if body.memory_shape is not None:
            raise InputError(f"A prefix critic needs a network without memory; {network.kind} remembers.")
        return body

    def _run(self, body: Network, x: Float[Tensor, "*U B inputs"]) -> Float[Tensor, "*U B N K"]:
        """Outputs of a network, rows policy-major whatever axes come first."""
        before = x.shape[:-2]
        by_policy = x.reshape(-1, self.policies, x.shape[-2] // self.policies, x.shape[-1]).transpose(0, 1)
        rows = stack_copies(by_policy.flatten(0, 2), self.policies, self.copies).unsqueeze(2)
        alive = torch.ones(by_policy.flatten(0, 2).shape[0], 1, dtype=torch.bool, device=x.device)
        y, _ = body(rows, alive, None)
        y = join_copies(y, self.copies).squeeze(1)
        if self.copies == 1:
            y = y.unflatten(-1, (self._values, self.channels))
        else:
            y = y.unflatten(-1, (self.channels, self._values)).transpose(-1, -2)
        y = y.unflatten(0, by_policy.shape[:3]).transpose(0, 1).flatten(1, 2)
        return y.reshape(*before, x.shape[-2], *y.shape[-2:]).expand(*before, x.shape[-2], self.agents, self.channels)
