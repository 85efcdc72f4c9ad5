"""The most probable decisions of a policy."""

from __future__ import annotations

from envs.core import Decision, Observation, Streams, Tree
from marl.models.policies import JointActor


class Greedy:
    """A policy that always takes its most probable decision."""

    def __init__(self, policy: JointActor):
        self.policy = policy

    def initial_memory(self, num_envs: int) -> Tree:
        """Memory at the start of an episode."""
        return self.policy.initial_memory(num_envs)

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """The most probable decision."""
        distribution, memory = self.policy(obs, memory)
        return distribution.mode(), memory
