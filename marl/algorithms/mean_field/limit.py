"""A trained swarm in the exact limit of infinitely many agents."""

from __future__ import annotations

import torch

from envs.core import Observation, Tree, VectorEnv
from envs.swarm.finite import FiniteSwarm
from envs.swarm.finite_limit import Course, FiniteLimit
from envs.world import TensorEnv
from marl.algorithms.mean_field.policy import MeanRule
from marl.evaluation.known_returns import regret, whole_episodes
from marl.output.report import Metric


def in_the_limit(actor: MeanRule, limit: FiniteLimit) -> Course:
    """Course of infinitely many agents who follow the mean rule, from `limit.start` on."""
    everything = torch.eye(limit.world.observations, device=actor.policy.device)
    alive = torch.ones_like(everything[:1], dtype=torch.bool)
    memory: Tree = actor.initial_memory(1)

    def rule(t: int, mu: torch.Tensor) -> torch.Tensor:
        nonlocal memory
        clock = mu.new_tensor([t / limit.horizon])
        state = torch.cat([clock, mu]).unsqueeze(0).to(everything)
        # One agent for each thing there is to see.
        following, memory = actor(Observation(everything.unsqueeze(0), state, alive), memory)
        return following.log_probs()[0].cpu().double().softmax(-1)

    with torch.inference_mode():
        return limit.follow(rule)


def limit_metrics(actor: MeanRule, env: VectorEnv) -> dict[str, Metric]:
    """The mean rule in the limit of a finite swarm, averaged over its starts; empty for other worlds.

    limit/return_per_agent   the mean rule's exact return
    limit/unrolled           that of the same rules written down in advance, for each start: the same number
    limit/best               the best that deterministic rules reach who know the start, where it can be found
    limit/regret             (best - return) / |best|; rules with chance may bring it below 0
    limit/best_open          the best one sequence of deterministic rules for all starts, where there are several
    limit/above_best_open    what the mean rule earns beyond that, which only a closed loop can
    """
    if not (isinstance(env, TensorEnv) and isinstance(env.world, FiniteSwarm) and whole_episodes(env)):
        return {}
    limits = [FiniteLimit(env.world, start=start) for start in range(len(env.world.starts))]
    courses = [in_the_limit(actor, limit) for limit in limits]
    value = _mean([course.value for course in courses])
    unrolled = _mean([float(limit.value(course.rules)) for limit, course in zip(limits, courses)])
    found = {"return_per_agent": value, "unrolled": unrolled}
    reached = [course.value for limit in limits if (course := limit.best()) is not None]
    if len(reached) == len(limits):
        found |= {"best": _mean(reached), "regret": regret(value, _mean(reached))}
    if len(limits) > 1 and limits[0].countable:
        found["best_open"] = float(torch.stack([limit.all_values() for limit in limits]).mean(0).max())
        found["above_best_open"] = value - found["best_open"]
    return {f"limit/{name}": Metric.exact(value) for name, value in found.items()}


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)
