"""Small worlds and small training runs for the tests of the core."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from envs.core import Discrete, EnvSpec, Observation, Streams, Tree, tree_map
from envs.world import TensorEnv, Transition, World
from marl.learning.actor_critic import ActorCritic, LearnerConfig
from marl.learning.learner import Progress, per_channel
from marl.learning.rollout import OnPolicy
from marl.learning.scalarization import AdvantageConfig, Own, Scalarization
from marl.models.critics import Critic, CriticConfig, build_critic
from marl.models.policies import IndependentPolicy, PolicyConfig


class Lives(NamedTuple):
    """age [E], lifetime [E,N], and what each agent sees of the noise [E,N,2]."""

    age: Tensor
    lifetime: Tensor
    seen: Tensor


class Mortals(World[Lives]):
    """Agents with random lifetimes of 1 to `longest` steps who see noise and are paid in two channels.

    Where an agent's second feature is positive, its choice 2 is illegal. Dead agents see zeros.
    """

    def __init__(self, agents: int = 3, longest: int = 5, horizon: int | None = None):
        self.longest = longest
        self.spec = EnvSpec(
            agents=tuple(f"agent_{i}" for i in range(agents)),
            kind=(0,) * agents,
            channels=("bet", "age"),
            observation_sizes=(2,) * agents,
            actions=(Discrete((3,)),) * agents,
            state_size=1 + 2 * agents,
            horizon=horizon,
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shape, device = (num, len(self.spec.agents)), generator.device
        lifetime = torch.randint(1, self.longest + 1, shape, generator=generator, device=device)
        return lifetime, self.noise(num, generator)

    def initial(self, noise: tuple[Tensor, Tensor]) -> Lives:
        return Lives(torch.zeros(len(noise[0]), device=noise[0].device), *noise)

    def noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num, len(self.spec.agents), 2, generator=generator, device=generator.device)

    def transition(self, state: Lives, action: Tensor, noise: Tensor) -> Transition:
        age = state.age + 1
        bet = state.seen[..., 0] * (action.squeeze(-1) - 1)
        reward = torch.stack([bet, age.unsqueeze(-1).expand_as(bet)], -1)
        return Transition(Lives(age, state.lifetime, noise), reward, age.unsqueeze(-1) >= state.lifetime)

    def observe(self, state: Lives) -> Observation:
        alive = state.age.unsqueeze(-1) < state.lifetime
        seen = state.seen * alive.unsqueeze(-1)
        legal = torch.ones(*alive.shape, 3, dtype=torch.bool, device=alive.device)
        legal[..., 2] = seen[..., 1] <= 0
        return Observation(seen, torch.cat([state.age.unsqueeze(-1), seen.flatten(1)], -1), alive, legal)


class Small(NamedTuple):
    """Everything of one small training run."""

    env: TensorEnv
    policy: IndependentPolicy
    critic: Critic
    learner: ActorCritic
    source: OnPolicy

    def train(self, updates: int) -> dict[str, Tensor]:
        """The last update's terms."""
        terms = {}
        for _, batch in zip(range(updates), self.source):
            terms = self.learner.update(batch)
        return terms

    def parameters(self) -> list[Tensor]:
        return [*self.policy.parameters(), *self.critic.parameters()]


def build(
    world: World[Any],
    num_envs: int = 4,
    *,
    seeds: Sequence[int] = (0,),
    time_limit: int | None = None,
    select_rows: bool | None = None,
    policy: dict[str, Any] | None = None,
    critic: dict[str, Any] | None = None,
    weigh: type[Scalarization] = Own,
    advantage: dict[str, Any] | None = None,
    learner: type[ActorCritic] = ActorCritic,
    updates: int = 1,
    by_policy: Tensor | None = None,
    actor: IndependentPolicy | None = None,
    device: str = "cpu",
    **settings: Any,
) -> Small:
    """A run of one policy a seed, `num_envs` environments each, with networks of one layer of 8 unless told."""
    network = {"network": {"hidden": (8,)}}
    config = LearnerConfig(**{"steps": 8, "epochs": 2, "minibatches": 2, **settings})
    env = TensorEnv(world, num_envs * len(seeds), time_limit=time_limit, select_rows=select_rows, device=device)

    def streams(purpose: int) -> Streams:
        return Streams([100 * seed + purpose for seed in seeds], device)

    actor = actor or IndependentPolicy(env.spec, PolicyConfig(**{**network, **(policy or {})}), streams(1))
    values = build_critic(env.spec, CriticConfig(**{**network, **(critic or {})}), streams(2))
    source = OnPolicy(
        env,
        actor,
        steps=config.steps,
        segment=config.sequence_length,
        discount=(per_channel(config.discount, len(env.spec.channels)) if by_policy is None else by_policy).to(device),
        streams=streams(4),
        seeds=[100 * seed + 5 for seed in seeds],
    )
    progress = Progress(updates)
    weighing = weigh(env.spec.channels, AdvantageConfig(**(advantage or {})), policies=len(seeds), progress=progress)
    learning = learner(actor, values, config, weighing, streams(3), progress, discount=by_policy)
    return Small(env, actor, values, learning, source)


SMALL_CONFIG: dict[str, Any] = {
    "recipe": "marl.algorithms.mappo",
    "device": "cpu",
    "env": {"world": "small_runs:Mortals", "num_envs": 4},
    "policy": {"network": {"hidden": [8]}},
    "critic": {"network": {"hidden": [8]}},
    "learner": {"steps": 8},
    "train": {"env_steps": 64},
    "evaluation": {"episodes": 16, "film_episodes": 0},
}

GRU = {"network": {"kind": "gru", "hidden": (8,)}}
ATTENTION = {"network": {"kind": "attention", "hidden": (8,), "heads": 2}}
MESSAGES = {"network": {"kind": "message_passing", "hidden": (8,), "positions": (0,), "radius": 1.0}}
LOCAL = {"sees": "agent"}


def assert_close(one: Tree, other: Tree, tolerance: float = 0.0) -> None:
    """Trees of equal form whose tensors differ by at most `tolerance`, and as much again of their size."""

    def compare(a: Tensor, b: Tensor) -> Tensor:
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
        return a

    tree_map(compare, one, other)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond this many bytes, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
