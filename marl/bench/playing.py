"""Cost of an evaluation whose rows finish at different times."""

from __future__ import annotations

import time

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from envs.core import Actor, Decision, Discrete, EnvSpec, Observation, Streams, Tree
from envs.world import TensorEnv, Transition, World
from marl.bench.timing import Effort, Findings, over_rounds
from marl.evaluation.episodes import Episodes, play
from marl.models.policies import IndependentPolicy, PolicyConfig
from marl.output.report import Metric

ROWS, LONGEST, OBSERVED = 256, 64, 64


class Lifetimes(World[Tensor]):
    """Episodes of 1 to `LONGEST` steps, any alike, in which agents see noise: physics that costs next to nothing."""

    def __init__(self, agents: int = 4):
        self.spec = EnvSpec(
            agents=tuple(f"agent_{i}" for i in range(agents)),
            kind=(0,) * agents,
            channels=("team",),
            observation_sizes=(OBSERVED,) * agents,
            actions=(Discrete((5,)),) * agents,
            state_size=1,
        )
        self._seen = torch.randn(1, agents, OBSERVED, generator=torch.Generator().manual_seed(0))

    def initial_noise(self, num: int, generator: torch.Generator) -> Float[Tensor, "E 1"]:
        """Uniform."""
        return torch.rand(num, 1, generator=generator)

    def initial(self, noise: Float[Tensor, "E 1"]) -> Float[Tensor, "E 1"]:
        """Steps that are left."""
        return (noise * LONGEST).floor() + 1

    def transition(self, state: Float[Tensor, "E 1"], action: Tensor, noise: None) -> Transition:
        """One step less; 1 for everybody."""
        agents = len(self.spec.agents)
        left = state - 1
        return Transition(left, state.new_ones(len(state), agents, 1), (left <= 0).expand(-1, agents))

    def observe(self, state: Float[Tensor, "E 1"]) -> Observation:
        """Always the same."""
        shape = (len(state), len(self.spec.agents))
        return Observation(self._seen.expand(len(state), -1, -1), state, torch.ones(shape, dtype=torch.bool))


class Asked:
    """Acts as another actor, and counts the rows that it decided for and the processor time that this took."""

    def __init__(self, actor: Actor, keeps_rows: bool):
        self.actor, self.keeps_rows = actor, keeps_rows
        self.decisions, self.seconds = 0, 0.0

    def initial_memory(self, num_envs: int) -> Tree:
        """As the actor's."""
        return self.actor.initial_memory(num_envs)

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """As the actor."""
        start = time.process_time()
        result = self.actor.act(obs, memory, streams)
        self.seconds += time.process_time() - start
        self.decisions += len(obs.alive)
        return result


def playing(effort: Effort) -> Findings:
    """An evaluation of one episode in each of 256 rows of unequal length, against one that asks every row always.

    acting_share: processor time of decisions; cost_share: of everything, the stepping of all rows included, which no
    evaluation can spare, since rows are stepped together.
    """
    env = TensorEnv(Lifetimes(), ROWS)
    config = PolicyConfig.model_validate({"network": {"hidden": [256, 256]}})
    policy = IndependentPolicy(env.spec, config, Streams([0]))
    _timed(env, policy, False)
    rounds = [(_timed(env, policy, False), _timed(env, policy, True)) for _ in range(effort.rounds)]
    (asked, _, episodes), (always, _, _) = rounds[0]
    useful = float(episodes.lengths.sum())
    share = useful / always.decisions
    costs = np.array([few[1] / whole[1] for few, whole in rounds])
    acting = np.array([few[0].seconds / whole[0].seconds for few, whole in rounds])
    return Findings(
        {
            "playing/useful_share": Metric.exact(share),
            "playing/decisions_per_useful": Metric.exact(asked.decisions / useful),
            "playing/acting_share": over_rounds(acting),
            "playing/acting_above_useful_share": over_rounds(acting - share),
            "playing/cost_share": over_rounds(costs),
        }
    )


def _timed(env: TensorEnv, policy: Actor, keeps_rows: bool) -> tuple[Asked, float, Episodes]:
    """An evaluation, and the processor time that it took in all."""
    actor = Asked(policy, keeps_rows)
    start = time.process_time()
    episodes = play(env, actor, env.num_envs, 0)
    return actor, time.process_time() - start, episodes
