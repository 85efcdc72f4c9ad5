"""The joint policy of a swarm: one choice of a rule for all agents, who then follow it, each by what it sees."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from envs.core import Decision, EnvSpec, InputError, Observation, Streams, Tree
from marl.algorithms.mean_field.rules import Rule, RuleConfig, build_rule
from marl.models.distributions import ActionUnits, IndependentGaussian, require_same_kind
from marl.models.networks import build_network, check_network
from marl.models.policies import PolicyConfig, stack_copies

CLOCK = slice(0, 1)  # where TensorEnv puts the elapsed share of the horizon in `Observation.state`


class SwarmPolicyConfig(PolicyConfig):
    """The upper level, which chooses rules, and the rules. `network` is the upper level's."""

    sees: Literal["swarm", "time", "nothing"] = Field(
        "swarm",
        description="what the choice of a rule depends on: swarm, the mean-field features and the clock (closed loop); "
        "time, the clock alone (open loop: no communication); nothing, one rule for all times",
    )
    explore: Literal["rule", "agent"] = Field(
        "rule", description="rule: draw xi, one decider; agent: xi is certain, the agents' own actions are the deciders"
    )
    rule: RuleConfig = RuleConfig()
    rule_std: float = Field(
        0.2, gt=0, description="the unit of xi: its deviation at first, where rules are explored, and of what moves it"
    )
    initial_std: float = Field(0.1, gt=0, description="deviation of an agent's real actions at first, in half-ranges")

    @model_validator(mode="after")
    def _one_rule_for_all(self) -> SwarmPolicyConfig:
        if self.agent_id or self.share == "none":
            raise ValueError("all agents of a swarm follow one rule: share must not be none, nor agent_id true")
        if self.network.kind == "message_passing":
            raise ValueError("the choice of a rule is one decider's, who has nobody to tell: take network.kind=mlp")
        return self


class SwarmPolicy(nn.Module):
    """π̂(xi | state) and the rule: at every step a swarm has one xi, which all its N agents follow.

    explore: rule. xi is drawn from a diagonal normal distribution; it is the one decision of the one decider (M = 1),
    who decides for all agents. What agents then do is part of the world's response, so that PPO never asks for its
    probability. explore: agent. xi is a function of the state, and the deciders are the agents (M = N), each with the
    probability of its own action; the gradient reaches xi through the rule that they share.

    The mean of xi is the rule's start plus `rule_std` times what the network puts out, so that a gradient step moves it
    by a share of its deviation, however small that is; PPO's ratios would explode otherwise.

    Parameters do not depend on N: what was trained with 200 agents plays with any number. Source: Cui et al., ICLR 2024
    (arXiv 2307.06175). Raises InputError for a rule that does not fit the world, or for a world that lacks what the
    choice of rules shall see.
    """

    draws_alike = True

    def __init__(self, spec: EnvSpec, config: SwarmPolicyConfig, streams: Streams):
        super().__init__()
        self.space, self.agents, self.policies = spec.action, len(spec.agents), len(streams)
        self.sees, self.explores_rules = config.sees, config.explore == "rule"
        self.rule: Rule = build_rule(spec, config.rule, config.initial_std, streams.device)
        self.device, self._unit = streams.device, config.rule_std
        inputs, size = _inputs(spec, config.sees), self.rule.size
        self.network = build_network(config.network, inputs, size, gain=0.01, streams=streams)
        sizes = {"agents": 1, "inputs": inputs, "outputs": size}
        check_network(self.network, config.network.kind, policies=self.policies, copies=1, **sizes)
        self.start: Tensor
        self.register_buffer("start", self.rule.start(streams))
        if self.explores_rules:
            self.log_std = nn.Parameter(torch.full_like(self.start, config.rule_std).log())

    @property
    def members(self) -> Bool[Tensor, "M N"] | None:
        """One decider for all, or None where every agent decides for itself."""
        return torch.ones(1, self.agents, dtype=torch.bool, device=self.device) if self.explores_rules else None

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory of the upper level, [E,C,1,H], or None; agents remember nothing."""
        shape = self.network.memory_shape
        return None if shape is None else self.start.new_zeros(num_envs, shape[0], 1, shape[1])

    def forward(self, obs: Observation, memory: Tree) -> tuple[OneRule | FollowingAgents, Tree]:
        """The joint distribution in each row, and what is remembered."""
        xi, memory = self.mean_rule(obs, memory)
        if not self.explores_rules:
            return FollowingAgents(self.rule, obs, xi), memory
        log_std = self.log_std.expand(-1, len(xi) // self.policies, -1).flatten(0, 1)
        return OneRule(self.rule, obs, xi, log_std), memory

    def mean_rule(self, obs: Observation, memory: Tree) -> tuple[Float[Tensor, "B R"], Tree]:
        """The mean of xi in each row, and what is remembered."""
        x = stack_copies(self._seen(obs), self.policies, 1).unsqueeze(2)
        y, memory = self.network(x, obs.alive.any(-1, keepdim=True), memory)
        return (self._unit * y.squeeze(2) + self.start).flatten(0, 1), memory

    def _seen(self, obs: Observation) -> Float[Tensor, "B inputs"]:
        if self.sees == "nothing":
            # The network of a constant is a constant, which learns as fast as with anything to see.
            return torch.ones(len(obs.alive), 1, device=obs.alive.device)
        return obs.state[:, CLOCK] if self.sees == "time" else obs.state

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Draw a rule for each swarm, and what its agents do by it."""
        distribution, memory = self(obs, memory)
        return distribution.sample(streams), memory


class OneRule:
    """A swarm's xi is drawn, one for all its agents, and is the only decision that counts: M = 1.

    mean, log_std: of xi. A decision's `latent` is xi [B,R], its `action` what the agents drew from that rule.
    """

    def __init__(self, rule: Rule, obs: Observation, mean: Float[Tensor, "B R"], log_std: Float[Tensor, "B R"]):
        self.rule, self.obs = rule, obs
        # As one agent whose action has R components, in units of their own.
        self._xi = IndependentGaussian(mean.unsqueeze(1), log_std.unsqueeze(1), _plain_units(mean.device))
        self._shape = mean.unsqueeze(1).shape

    def sample(self, streams: Streams) -> Decision:
        """Draw one xi a swarm, then every agent's action from that rule."""
        drawn = self._xi.choose(streams.normal(self._shape))
        xi = drawn.action.squeeze(1)
        return Decision(self.rule.draw(xi, self.obs, streams), xi, drawn.log_prob)

    def mode(self) -> Decision:
        """The mean xi, and by that rule every agent's mean action or most probable choice.

        Nothing is random here, neither the rule nor the agents: a rule whose agents must differ by chance is worth less
        than it earns. The team as it is executed, with the mean rule and agents who draw, is `MeanRule`.
        """
        drawn = self._xi.mode()
        xi = drawn.action.squeeze(1)
        return Decision(FollowingAgents(self.rule, self.obs, xi).mode().action, xi, drawn.log_prob)

    def log_prob(self, decision: Decision) -> Float[Tensor, "B 1"]:
        """Of xi; what agents then drew does not matter."""
        return self._xi.log_prob(Decision(decision.latent.unsqueeze(1)))

    def entropy(self, decision: Decision) -> Float[Tensor, "B 1"]:
        """Of xi."""
        return self._xi.entropy(decision)

    def kl(self, other: OneRule, decision: Decision | None = None) -> Float[Tensor, "B 1"]:
        """KL(self || other) of xi; agents then draw from a rule alike under both."""
        require_same_kind(self, other)
        return self._xi.kl(other._xi)

    def price(self, decision: Decision) -> None:
        """A swarm pays nothing."""

    def log_probs(self) -> Float[Tensor, "B N A"]:
        """Agents who follow a random rule together are not independent."""
        raise TypeError(
            "log_probs lists the choices of independent agents; these follow one random rule together: use log_prob, "
            "or MeanRule(policy), whose agents are independent."
        )


class FollowingAgents:
    """Agents who all follow a rule that is given, each by what it sees: M = N.

    A decision's `latent` is xi [B,R].
    """

    def __init__(self, rule: Rule, obs: Observation, xi: Float[Tensor, "B R"]):
        self.rule, self.obs, self.xi = rule, obs, xi
        self._agents = rule.apply(xi, obs.agent, obs.legal)

    def sample(self, streams: Streams) -> Decision:
        """Every agent draws by itself; P policies' agents from P generators."""
        return self._with_rule(self._agents.sample(streams))

    def mode(self) -> Decision:
        """Every agent's mean action, or most probable choice."""
        return self._with_rule(self._agents.mode())

    def log_prob(self, decision: Decision) -> Float[Tensor, "B N"]:
        """Of each agent's action."""
        return self._agents.log_prob(decision)

    def entropy(self, decision: Decision) -> Float[Tensor, "B N"]:
        """Of each agent's choice."""
        return self._agents.entropy(decision)

    def kl(self, other: FollowingAgents, decision: Decision | None = None) -> Float[Tensor, "B N"]:
        """KL(self || other) of each agent's choice."""
        require_same_kind(self, other)
        return self._agents.kl(other._agents)  # type: ignore[arg-type]

    def price(self, decision: Decision) -> None:
        """A swarm pays nothing."""

    def log_probs(self) -> Float[Tensor, "B N A"]:
        """Of every choice, where they are finite."""
        return self._agents.log_probs()

    def _with_rule(self, decision: Decision) -> Decision:
        return Decision(decision.action, self.xi, decision.log_prob)


class MeanRule:
    """A trained swarm as it is executed: at every step all follow the mean rule, and each draws its own action from it.

    With `sees: time` or `nothing` nobody needs to hear of anybody. All randomness is the agents' own, drawn from the
    streams that `act` is given.
    """

    draws_alike = True

    def __init__(self, policy: SwarmPolicy):
        self.policy = policy

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory at the start of an episode."""
        return self.policy.initial_memory(num_envs)

    def __call__(self, obs: Observation, memory: Tree) -> tuple[FollowingAgents, Tree]:
        """The joint distribution in each row, and what is remembered."""
        xi, memory = self.policy.mean_rule(obs, memory)
        return FollowingAgents(self.policy.rule, obs, xi), memory

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """The mean rule, and what each agent draws by it; how probable that was nobody asks."""
        xi, memory = self.policy.mean_rule(obs, memory)
        return Decision(self.policy.rule.draw(xi, obs, streams), xi), memory


def _inputs(spec: EnvSpec, sees: str) -> int:
    """Number of inputs of the choice of a rule. Raises InputError where the world lacks what `sees` asks for."""
    if sees == "time" and spec.horizon is None:
        raise InputError(
            "policy.sees=time needs a clock, and this world has none: its episodes have no horizon. Give it one, or "
            "set policy.sees=nothing (one rule for all times)."
        )
    if sees == "swarm" and not spec.state_size:
        raise InputError("policy.sees=swarm needs a state to see, and this world's is empty; set policy.sees=nothing.")
    return spec.state_size if sees == "swarm" else 1


def _plain_units(device: torch.device) -> ActionUnits:
    one = torch.ones(1, 1, device=device)
    return ActionUnits(torch.zeros_like(one), one, one)
