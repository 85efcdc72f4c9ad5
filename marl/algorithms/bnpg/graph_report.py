"""Graphs of a team in its report: the edges along which agents listen, and their worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from envs.core import Actor, VectorEnv
from marl.algorithms.bnpg.graphs import edge_list
from marl.algorithms.bnpg.policy import BayesianPolicy, WithoutEdges
from marl.config.schema import EvaluationConfig
from marl.evaluation.policy_report import played
from marl.learning.rollout import rollout
from marl.output.report import Metric
from marl.training.run import Run

LOOK = 32  # steps over which the report looks at the graphs


class GraphEvaluationConfig(EvaluationConfig):
    """Configuration of evaluation for teams that act along a graph, and for those distilled from one."""

    team: Literal["network", "empty", "distilled"] = Field(
        "network",
        description="whom evaluate, render and the twin see: the team with its graph, without any edge, or distilled; "
        "the report has the others too",
    )
    ablation_episodes: int = Field(
        0, ge=0, description="episodes, at least, that tell what each edge is worth: with it and without; 0 plays none"
    )


def findings(run: Run, policy: Actor, env: VectorEnv) -> tuple[dict[str, Metric], dict[str, list[dict[str, Any]]]]:
    """Density of the graphs, and the team's return without any edge; a table of edges, most frequent first.

    Nothing of a team that has no graph.
    share: of steps at which the edge is there. worth, low, high: see `worth_of_edges`, where episodes are given for it.
    """
    config = run.config.evaluation
    assert isinstance(config, GraphEvaluationConfig)
    if isinstance(policy, WithoutEdges):
        policy = policy.policy  # whoever is judged, the graph is the network's
    if not isinstance(policy, BayesianPolicy):
        return {}, {}
    alone = played(run, env, WithoutEdges(policy), config.episodes, "evaluation")
    edges = sampled_edges(run, policy, env)
    shares = edge_shares(edges)
    # One number for each environment: its steps are not independent of one another.
    count = edges.sum((-2, -1)).view(LOOK, -1).float().mean(0).cpu().numpy()
    metrics = {
        **alone.metrics(env.spec.channels, "empty/"),
        "graph/edges": Metric.mean(count),
        "graph/density": Metric.mean(count / max(1, policy.pairs)),
    }
    seen = edge_list(shares > 0)
    worth = worth_of_edges(run, policy, env, seen, config.ablation_episodes) if config.ablation_episodes else {}
    return metrics, {"edges": edge_table(env.spec.agents, shares, worth)}


def sampled_edges(run: Run, policy: BayesianPolicy, env: VectorEnv) -> Bool[Tensor, "B N N"]:
    """The edges that were there, i -> j at [i,j], at each of some steps from the start of episodes on."""
    obs = env.reset(run.stage_seeds("graphs"))
    batch, _, _ = rollout(env, policy, obs, policy.initial_memory(env.num_envs), run.streams("graphs"), LOOK)
    return batch.decision.latent.edges


def edge_shares(edges: Bool[Tensor, "B N N"]) -> Float[Tensor, "N N"]:
    """The share of steps at which each edge is there: sender rows, receiver columns."""
    return edges.float().mean(0).cpu()


def worth_of_edges(
    run: Run, policy: BayesianPolicy, env: VectorEnv, edges: Iterable[tuple[int, int]], episodes: int
) -> dict[tuple[int, int], Metric]:
    """Return per agent with the graphs as they are drawn, less that with one edge cut from them at every step.

    Nobody learns anew, so this tells what the trained team does with the message, not what it could do without. Both
    play from the same random numbers, and the interval is that of the mean difference between paired episodes; where
    episodes last differently long, later ones no longer agree, which widens the interval and biases nothing.
    """
    whole = played(run, env, policy, episodes, "ablation").per_agent

    def without(edge: tuple[int, int]) -> Any:
        return played(run, env, WithoutEdges(policy, [edge]), episodes, "ablation").per_agent

    return {edge: Metric.mean(whole - without(edge)) for edge in edges}


def edge_table(
    names: Sequence[str], shares: Float[Tensor, "N N"], worth: Mapping[tuple[int, int], Metric] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """A row for each ordered pair, the most frequent first. An edge that was never there has no worth."""
    pairs = [(i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    rows = []
    for i, j in sorted(pairs, key=lambda pair: -float(shares[pair])):
        row: dict[str, Any] = {"from": names[i], "to": names[j], "share": float(shares[i, j])}
        if (i, j) in worth:
            metric = worth[i, j]
            row |= {"worth": metric.value, "low": metric.low, "high": metric.high}
        rows.append(row)
    return rows
