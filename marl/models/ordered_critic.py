"""A critic of agents who choose one after the other, each by probabilities that are known."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from envs.core import EnvSpec, InputError, Observation, Streams
from marl.models.action_critic import only_choice
from marl.models.critics import CriticConfig
from marl.models.prefix_critic import require_state
from marl.models.row_network import RowNetwork


class OrderedCritic(nn.Module):
    """Values of a state in which the first agents have chosen, and the others will by known probabilities μ:

        Q^{1:k}(s, a) = V(s) + Σ_{j<=k} A^j(s, a_{<j}, a_j)
        A^j(s, a_{<j}, a_j) = f(s, a_{<j}, j)[a_j] - Σ_b μ_j(b | s, a_{<j}) f(s, a_{<j}, j)[b]

    The mean of A^j over μ_j is 0 by construction, hence V = E_μ Q, and one error of the joint Q fits every prefix: a
    prefix critic must learn from samples what the others' choices average to, this one knows. The decomposition is that
    of Kuba et al. (ICLR 2022, arXiv 2109.11251, lemma 1); the advantages are those of a dueling network (Wang et al.,
    ICML 2016, arXiv 1511.06581, equation 9), which centers them by the plain mean over choices, centered by the policy.

    Agents choose in the order of the spec. Who is gone adds 0, and its choice is seen by nobody. Sees the state. A
    channel has networks of its own, unless `share_trunk`. Raises InputError for actions that are no single choice,
    `sees: agent`, and networks that remember.
    """

    needs_behavior = True

    def __init__(self, spec: EnvSpec, config: CriticConfig, streams: Streams):
        super().__init__()
        require_state(config)
        self.agents, self.channels = len(spec.agents), len(spec.channels)
        self.actions = only_choice(spec.action)
        sizes = {"agents": self.agents, "channels": self.channels}
        self.value = RowNetwork(config, spec.state_size, 1, **sizes, streams=streams)
        inputs = spec.state_size + self.agents * self.actions + self.agents
        self.advantage = RowNetwork(config, inputs, self.actions, **sizes, streams=streams)
        self.policies, self.copies = self.value.policies, self.value.copies
        device = streams.device
        self._who = torch.eye(self.agents, device=device)
        self._before = torch.ones(self.agents, self.agents, device=device).tril(-1)

    def forward(
        self,
        obs: Observation,
        action: Int[Tensor, "B N 1"] | None = None,
        given: Bool[Tensor, "*U B N"] | None = None,
        behavior: Float[Tensor, "B N A"] | None = None,
    ) -> Float[Tensor, "*U B N K"]:
        """Values Q^{1:k} of every agent and channel; V where nothing is given.

        given: the agents 1..k whose choices in `action` are known, of those alive the first in the order; with axes U
        before B, several k in one pass. behavior: probabilities of the choices of each agent, given the choices of
        those before it in `action`. Raises InputError for agents who are no prefix of the order, and probabilities that
        lack or do not add up to 1.
        """
        value = self.value(obs.state).squeeze(-1)
        if action is None and given is None and behavior is None:
            return value
        if action is None or given is None or behavior is None:
            raise InputError(
                "An ordered critic takes what is chosen, whose choices are given, and the probabilities by which they "
                "were chosen (behavior), all three or none. Where nobody knows the probabilities, take a PrefixCritic."
            )
        given = given & obs.alive
        self._require_prefix(obs, given, behavior)
        advantage = self.advantages(obs, action, behavior)
        return value + torch.einsum("...bj,jbnk->...bnk", given.to(advantage.dtype), advantage)

    def advantages(
        self, obs: Observation, action: Int[Tensor, "B N 1"], behavior: Float[Tensor, "B N A"]
    ) -> Float[Tensor, "J B N K"]:
        """Advantage A^j of what each of the J = N agents chooses after those before it, for every agent and channel."""
        chosen = nn.functional.one_hot(action.squeeze(-1), self.actions).to(obs.state.dtype)  # [B,N,A]
        seen = (chosen * obs.alive.unsqueeze(-1)) * self._before[:, None, :, None]  # [J,B,N,A]
        state = obs.state.expand(self.agents, *obs.state.shape)
        who = self._who.unsqueeze(1).expand(-1, len(obs.state), -1)
        f = self.advantage(torch.cat([state, seen.flatten(-2), who], -1))  # [J,B,N,K,A]
        weight = (chosen - behavior.to(f.dtype)).transpose(0, 1)  # [J,B,A]
        return torch.einsum("jbnka,jba->jbnk", f, weight)

    def _require_prefix(
        self, obs: Observation, given: Bool[Tensor, "*U B N"], behavior: Float[Tensor, "B N A"]
    ) -> None:
        """Raise InputError unless the first of those alive are given, and the probabilities of each are some."""
        shape = (*obs.alive.shape, self.actions)
        if tuple(behavior.shape) != shape:
            raise InputError(
                f"An ordered critic needs probabilities of every agent's choices, {list(shape)}; got "
                f"{list(behavior.shape)}."
            )
        skipped = (obs.alive & ~given).cumsum(-1) > 0
        total = behavior.sum(-1)
        off = ~((total - 1).abs() <= 1e-3)  # NaN is off, too
        if not bool((given & (skipped | off)).any()):  # one question, so that a GPU is waited for once
            return
        if bool((given & skipped).any()):
            raise InputError(
                "An ordered critic knows choices in the order of the agents, and those given in some row are not the "
                "first of those alive. Give agents 0 to k-1, or take a PrefixCritic, which knows any subset."
            )
        wrong = total.expand(given.shape)[given & off]
        raise InputError(
            f"The probabilities of an agent's choices add up to 1 where its choice is given; here to {wrong[0]:.4g}."
        )
