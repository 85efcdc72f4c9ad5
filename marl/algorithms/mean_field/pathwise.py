"""Exact gradients through a swarm's world: the discounted return, differentiated along the paths that were drawn.

    ∇J = E[∇ Σ_t γ^t r(s_t(θ, ε), u_t(θ, ε))]   with all noise ε given

so that physics, rule, the agents' draws and, with explore: rule, that of xi each pass the gradient on. The alternative
to the score function ∇ log π, which needs no differentiable world.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import Actor, Continuous, InputError, Streams, VectorEnv, tree_map
from envs.world import TensorEnv
from marl.learning.actor_critic import LearnerConfig
from marl.learning.batch import Batch
from marl.learning.learner import Learner, Progress, Stateful, per_channel
from marl.learning.optimizers import Stacked, build_optimizer, gradients
from marl.learning.returns import episode_age
from marl.learning.rollout import OnPolicy
from marl.models.policies import JointPolicy

WHAT_CAN = (
    "LinearQuadratic, QuadraticAggregation, Aggregation, Kuramoto and Vicsek of envs.swarm can be differentiated, and "
    "so can any native world with real actions whose reward follows smoothly from them. Set gradient=score for others."
)


class Pathwise(Learner):
    """Ascends the mean discounted return of the pieces of episodes in a batch, whose rewards carry their graph.

    Nothing is bootstrapped: of an episode that goes on beyond the batch, what comes later does not count, and an
    episode under way counts from the batch's first step. Batches of whole episodes give the exact gradient, others a
    truncated one. One gradient step a batch. updates: how many there will be.
    """

    def __init__(self, policy: JointPolicy, config: LearnerConfig, channels: int, policies: int, updates: int = 1):
        self.policy, self.config, self.policies = policy, config, policies
        self.optimizer = build_optimizer(config, Stacked(policy.parameters(), policies))
        self.discount = per_channel(config.discount, channels).to(next(policy.parameters()).device)
        self.progress = Progress(updates)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step; gives each policy's mean discounted return and the length of its gradient before clipping, [P]."""
        self.progress.advance()
        config = self.config
        self.optimizer.learning_rate = self.progress.along(config.learning_rate, config.learning_rate_end)
        value = discounted_return(batch, self.discount)
        (gradient,) = gradients(value.sum().neg(), self.optimizer)
        length = self.optimizer.norms(gradient)
        self.optimizer.step(gradient)
        return {"discounted_return": value.detach(), "gradient": length}

    def parts(self) -> dict[str, Stateful | None]:
        """The policy, the optimizer, and the clock."""
        return {"policy": self.policy, "optimizer": self.optimizer, "done": self.progress}


class Differentiable(OnPolicy):
    """The same batches, whose rewards carry the graph of actions and physics, back to the batch's first step.

    There the graph ends: where a batch begins within an episode, the state is taken for given. Raises InputError for an
    environment that is no native world.
    """

    env: TensorEnv

    def __init__(self, env: VectorEnv, actor: Actor, **options: Any):
        if not isinstance(env, TensorEnv):
            raise InputError(
                f"Gradients through the physics need a native world (env.world); a {type(env).__name__} gives numbers "
                "without a graph."
            )
        super().__init__(env, actor, **options)

    def _collect(self, **options: Any) -> Batch:
        batch = super()._collect(mode=torch.enable_grad, **options)
        self._obs, self._memory = self.env.detach(), tree_map(Tensor.detach, self._memory)
        return batch


def discounted_return(batch: Batch, discount: Float[Tensor, " K"]) -> Float[Tensor, " P"]:
    """Σ_k Σ_t γ_k^t r_tk, t from each piece's first step; the mean over agents and over the pieces in the batch."""
    reward, ended = batch.over_time((batch.reward.mean(1), batch.ended))
    age, _ = episode_age(ended.flatten(1), reward.new_zeros(ended[0].numel()))
    age = age.view(ended.shape)
    faded = reward * discount ** age.unsqueeze(-1)
    return faded.sum((0, 2, 3)) / (age == 0).sum((0, 2))


def require_differentiable(env: TensorEnv, policy: JointPolicy, steps: int) -> None:
    """Raise InputError where the return of `steps` steps passes no gradient on to the policy."""
    if not isinstance(env.spec.action, Continuous):
        raise InputError(f"gradient=pathwise needs real actions; these agents choose among finitely many. {WHAT_CAN}")
    source = Differentiable(env, policy, steps=steps, streams=Streams([0], env.device), seeds=[0])
    reward = next(iter(source)).reward
    parameters = list(policy.parameters())
    found: tuple[Tensor | None, ...] = ()
    if reward.requires_grad:
        found = torch.autograd.grad(reward.sum(), parameters, allow_unused=True)
    if not any(gradient is not None and bool((gradient != 0).any()) for gradient in found):
        raise InputError(
            f"gradient=pathwise needs a reward that follows smoothly from the actions; that of "
            f"{type(env.world).__name__} carries no gradient over learner.steps={steps}. {WHAT_CAN}"
        )
