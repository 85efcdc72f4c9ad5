"""Distributions over graphs against enumeration and long samples."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import networkx as nx
import pytest
import torch
from torch import Tensor

from envs.core import InputError
from envs.dags import named_edges
from marl.algorithms.bnpg.graphs import (
    Graph,
    GraphDistribution,
    among_living,
    edge_list,
    fixed_graph,
    levels,
)


def distribution(agents: int, rows: int | None = None, alive: Tensor | None = None) -> GraphDistribution:
    """One distribution, or the same in each of `rows` rows."""
    generator = torch.Generator().manual_seed(agents)
    scores, logits = torch.randn(agents, generator=generator), torch.randn(agents, agents, generator=generator)
    alive = torch.ones(agents, dtype=torch.bool) if alive is None else alive
    if rows is None:
        return GraphDistribution(scores, logits, alive)
    return GraphDistribution(*(x.expand(rows, *x.shape) for x in (scores, logits, alive)))


def draw(graphs: GraphDistribution, seed: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    rows, agents = graphs.scores.shape
    clocks = torch.empty(rows, agents).exponential_(generator=generator)
    return graphs.choose(clocks, torch.rand(rows, agents, agents, generator=generator))


def every_graph(agents: int) -> Iterator[Graph]:
    """All n! orders with all 2^(n(n-1)/2) sets of edges along each."""
    for order in itertools.permutations(range(agents)):
        pairs = list(itertools.combinations(order, 2))
        for chosen in itertools.product([False, True], repeat=len(pairs)):
            edges = torch.zeros(agents, agents, dtype=torch.bool)
            for (i, j), edge in zip(pairs, chosen):
                edges[i, j] = edge
            yield Graph(torch.tensor(order), edges)


@pytest.mark.parametrize("agents", [2, 3, 5, 10])
def test_ten_thousand_graphs_are_acyclic_and_parents_come_first(agents: int) -> None:
    graph = draw(distribution(agents, 10_000))
    place = graph.order.argsort(-1)
    backward = place.unsqueeze(-1) >= place.unsqueeze(-2)
    assert not bool((graph.edges & backward).any())
    assert torch.equal(graph.order.sort(-1).values, torch.arange(agents).expand(10_000, -1))
    for edges in graph.edges[:50]:
        assert nx.is_directed_acyclic_graph(nx.DiGraph(edge_list(edges)))


@pytest.mark.parametrize("agents", [1, 2, 3])
def test_probability_entropy_and_expected_edges_are_those_of_all_graphs_added_up(agents: int) -> None:
    graphs = distribution(agents)
    listed = [(graphs.log_prob(graph), graph) for graph in every_graph(agents)]
    assert float(sum(log_p.exp() for log_p, _ in listed)) == pytest.approx(1, abs=1e-5)
    edges = sum(log_p.exp() * graph.edges.sum() for log_p, graph in listed)
    assert float(edges) == pytest.approx(float(graphs.expected_edges()), abs=1e-5)
    entropy = -sum(log_p.exp() * log_p for log_p, _ in listed)
    given_order = sum(log_p.exp() * graphs.entropy(graph) for log_p, graph in listed)
    assert float(given_order) == pytest.approx(float(entropy), abs=1e-5)


@pytest.mark.parametrize("agents", [1, 2, 3])
def test_the_mean_divergence_of_choices_is_that_of_all_graphs_added_up(agents: int) -> None:
    one, whole = distribution(agents), distribution(agents)
    other = GraphDistribution(-whole.scores, whole.logits.T + 0.3, whole.alive)
    listed = [(one.log_prob(graph), graph) for graph in every_graph(agents)]
    wanted = sum(log_p.exp() * (log_p - other.log_prob(graph)) for log_p, graph in listed)
    found = sum(log_p.exp() * one.kl(other, graph) for log_p, graph in listed)
    assert float(found) == pytest.approx(float(wanted), abs=1e-5)
    assert agents == 1 or float(found) > 0.01


def test_the_order_s_pairwise_marginal_is_plackett_and_luce_s() -> None:
    rows = 100_000
    scores = torch.tensor([1.0, 0.0, -1.0]).expand(rows, -1)
    graph = draw(GraphDistribution(scores, torch.zeros(rows, 3, 3), torch.ones(rows, 3, dtype=torch.bool)))
    place = graph.order.argsort(-1)
    assert float((place[:, 0] < place[:, 1]).float().mean()) == pytest.approx(0.731, abs=0.005)
    assert float((place[:, 0] < place[:, 2]).float().mean()) == pytest.approx(0.881, abs=0.005)


def test_samples_have_the_frequencies_that_log_prob_says() -> None:
    rows, graphs = 200_000, distribution(3, 200_000)
    graph = draw(graphs)
    for row in range(5):
        wanted = Graph(graph.order[row], graph.edges[row])
        same = (graph.order == wanted.order).all(-1) & (graph.edges == wanted.edges).flatten(1).all(-1)
        p = float(distribution(3).log_prob(wanted).exp())
        assert float(same.float().mean()) == pytest.approx(p, abs=4 * (p / rows) ** 0.5)


def test_the_dead_come_last_and_have_no_edges_and_change_nothing_for_the_living() -> None:
    alive = torch.tensor([True, False, True, True])
    graphs = distribution(4, 1000, alive)
    graph = draw(graphs)
    assert bool((graph.order[:, -1] == 1).all())
    assert not bool(graph.edges[:, 1].any() | graph.edges[:, :, 1].any())
    living = [0, 2, 3]
    fewer = GraphDistribution(
        graphs.scores[:, living], graphs.logits[:, living][:, :, living], torch.ones(1000, 3, dtype=torch.bool)
    )
    names = torch.tensor([0, -1, 1, 2])
    same = Graph(names[graph.order[:, :3]], graph.edges[:, living][:, :, living])
    for mine, other in (
        (graphs.log_prob(graph), fewer.log_prob(same)),
        (graphs.entropy(graph), fewer.entropy(same)),
        (graphs.density(), fewer.density()),
    ):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)


def test_the_mode_follows_scores_and_keeps_likely_edges() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0], [1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
    graphs = GraphDistribution(torch.tensor([0.0, 2.0, 1.0]), logits, torch.ones(3, dtype=torch.bool))
    graph = graphs.mode()
    assert graph.order.tolist() == [1, 2, 0]
    assert edge_list(graph.edges) == [(1, 0), (1, 2), (2, 0)]


def test_levels_are_the_longest_paths() -> None:
    for graph in every_graph(4):
        directed = nx.DiGraph(edge_list(graph.edges))
        directed.add_nodes_from(range(4))
        wanted = [
            max(len(nx.dag_longest_path(directed.subgraph({*nx.ancestors(directed, j), j}))) - 1, 0) for j in range(4)
        ]
        assert levels(graph.edges).tolist() == wanted


def test_fixed_graphs_are_checked_and_lose_the_edges_of_the_dead() -> None:
    assert named_edges("line", 2) == [(0, 1)]
    assert named_edges("line", 4) == [(0, 1), (1, 2), (2, 3)]
    graph = fixed_graph([(2, 0), (0, 1)], 3)
    assert graph.order.tolist() == [2, 0, 1]
    assert edge_list(among_living(graph, torch.tensor([True, True, False])).edges) == [(0, 1)]
    for wrong in ([(0, 1), (1, 0)], [(0, 3)], [(1, 1)]):
        with pytest.raises(InputError):
            fixed_graph(wrong, 3)
