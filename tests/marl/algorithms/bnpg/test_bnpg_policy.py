"""The joint policy: a probability over joint actions, drawn along the graph, the same when it is learned from."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from small_runs import GRU, LOCAL, Mortals, assert_close
from torch import Tensor
from worlds import Walk

from envs.core import Decision, InputError, Observation, Streams, tree_map
from envs.games import Identity, WhoIsInformed
from envs.world import TensorEnv, World
from marl.algorithms.bnpg.graphs import Graph, GraphDistribution, edge_list, levels
from marl.algorithms.bnpg.policy import BayesianPolicy, BayesianPolicyConfig, WithoutEdges
from marl.algorithms.bnpg.relaxed import assign, sinkhorn
from marl.algorithms.bnpg.sampling_order import SamplingOrder
from marl.evaluation.greedy import Greedy
from marl.learning.actor_critic import ActorCritic, LearnerConfig
from marl.learning.losses import clipped_surrogate
from marl.learning.rollout import OnPolicy
from marl.learning.scalarization import Team
from marl.models.critics import CriticConfig, build_critic

SMALL = {"network": {"hidden": (8,)}}
LEARNED = {"kind": "learned", "network": {"kind": "attention", "hidden": (8,), "heads": 2}}
GRAPHS: dict[str, dict[str, Any]] = {
    "empty": {"kind": "empty"},
    "line": {"kind": "line"},
    "complete": {"kind": "complete"},
    "edges": {"kind": "edges", "edges": ((2, 0), (0, 1))},
    "random": {"kind": "random", "density": 0.5},
    "learned": LEARNED,
    "straight through": {**LEARNED, "estimator": "straight_through"},
}


def make(
    graph: dict[str, Any], world: World[Any] | None = None, rows: int = 6, **config: Any
) -> tuple[BayesianPolicy, Observation]:
    """A policy with weights far from zero, and what it sees in the middle of things."""
    env = TensorEnv(world or Mortals(), rows, time_limit=9)
    settings = BayesianPolicyConfig.model_validate({**SMALL, "graph": graph, **config})
    policy = BayesianPolicy(env.spec, settings, Streams([0]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.5 * torch.randn(p.shape, generator=generator)
        obs, streams, memory = env.reset(0), Streams([2]), policy.initial_memory(rows)
        for _ in range(2):
            decision, memory = policy.act(obs, memory, streams)
            obs = env.step(decision.action).obs
    return policy, obs


def forget(policy: BayesianPolicy, obs: Observation) -> Any:
    """The distribution at the start of an episode."""
    return policy(obs, policy.initial_memory(len(obs.alive)))[0]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("world", [Mortals(), Walk()], ids=["choices", "reals"])
def test_what_was_drawn_has_the_log_probability_that_was_stored(graph: str, world: World[Any]) -> None:
    agents = len(world.spec.agents)
    policy, obs = make({"kind": "edges", "edges": ((1, 0),)} if graph == "edges" else GRAPHS[graph], world)
    with torch.no_grad():
        decision = forget(policy, obs).sample(Streams([3]))
        again = forget(policy, obs)
    assert decision.log_prob is not None
    assert decision.log_prob.shape[1] == agents + (graph == "learned")
    torch.testing.assert_close(again.log_prob(decision), decision.log_prob, atol=1e-5, rtol=0)
    assert again.entropy(decision).shape == decision.log_prob.shape


@pytest.mark.parametrize("graph", [name for name in GRAPHS if name != "learned"])
def test_the_probabilities_of_all_joint_actions_add_up_to_1(graph: str) -> None:
    policy, obs = make(GRAPHS[graph], rows=5)
    with torch.no_grad():
        distribution = forget(policy, obs)
        latent = distribution.sample(Streams([3])).latent
        total = torch.zeros(5)
        for joint in itertools.product(range(3), repeat=3):
            decision = Decision(torch.tensor(joint).view(1, 3, 1).expand(5, -1, -1), latent)
            total += distribution.log_prob(decision).sum(-1).exp()
    torch.testing.assert_close(total, torch.ones(5), atol=1e-5, rtol=0)


def test_actions_are_drawn_with_the_frequencies_of_the_joint_probability() -> None:
    """Level by level, agents hear what their parents really did."""
    policy, obs = make(GRAPHS["complete"], rows=1)
    alive = torch.ones(1, 3, dtype=torch.bool)
    obs = dataclasses.replace(obs, alive=alive, legal=None, agent=torch.randn(1, 3, 2))
    rows = 40_000
    many = tree_map(lambda x: x.expand(rows, *x.shape[1:]), obs)
    with torch.no_grad():
        decision = forget(policy, many).sample(Streams([3]))
        number = (decision.action.squeeze(-1) * torch.tensor([9, 3, 1])).sum(-1)
        found = torch.bincount(number, minlength=27) / rows
        for place, joint in enumerate(itertools.product(range(3), repeat=3)):
            latent = tree_map(lambda x: x[:1], decision.latent)
            p = float(forget(policy, obs).log_prob(Decision(torch.tensor(joint).view(1, 3, 1), latent)).sum().exp())
            assert float(found[place]) == pytest.approx(p, abs=4 * (p / rows) ** 0.5 + 1e-4)


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_dead_are_heard_by_nobody_and_hear_nobody(graph: str) -> None:
    policy, obs = make(GRAPHS[graph])
    alive = torch.tensor([[True, False, True]] * 3 + [[True, True, True]] * 3)
    obs = dataclasses.replace(obs, alive=alive)
    with torch.no_grad():
        latent = forget(policy, obs).sample(Streams([3])).latent
    assert not bool(latent.edges[:3, 1].any() | latent.edges[:3, :, 1].any())


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_row_decides_the_same_alone_as_in_a_batch(graph: str) -> None:
    policy, obs = make(GRAPHS[graph])
    with torch.no_grad():
        decision = forget(policy, obs).sample(Streams([3]))
        other = dataclasses.replace(obs, agent=torch.cat([obs.agent[:1], torch.randn(5, 3, 2)]))
        whole, changed = forget(policy, obs), forget(policy, other)
        torch.testing.assert_close(changed.log_prob(decision)[0], whole.log_prob(decision)[0], atol=1e-6, rtol=0)
        assert_close(changed.mode().latent.edges[0], whole.mode().latent.edges[0])


def test_as_many_passes_as_levels_not_as_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    star = {"kind": "edges", "edges": ((0, 1), (0, 2))}
    policy, obs = make(star)
    passes: list[int] = []
    conditionals = BayesianPolicy.conditionals

    def counted(*given: Any) -> Any:
        passes.append(1)
        return conditionals(*given)

    monkeypatch.setattr(BayesianPolicy, "conditionals", counted)
    with torch.no_grad():
        policy.act(obs, None, Streams([0]))
    assert len(passes) == 2


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("groups", [(0, 0, 0, 0), (1, 0, 1, 0)])
@pytest.mark.parametrize("policies", [1, 2])
def test_everybody_has_one_turn_after_all_whom_it_hears(fixed: bool, groups: tuple[int, ...], policies: int) -> None:
    rows, group = 6, torch.tensor(groups)
    graphs = GraphDistribution(torch.zeros(rows, 4), torch.zeros(rows, 4, 4), torch.ones(rows, 4, dtype=torch.bool))
    graph = graphs.draw(Streams([3]))
    if fixed:
        graph = tree_map(lambda x: x[:1].expand_as(x), graph)
    one = Graph(graph.order[0], graph.edges[0]) if fixed else None
    turn_of = torch.full((rows, 4), -1)
    for number, (of, places) in enumerate(SamplingOrder(group, policies, one)(graph)):
        assert (turn_of.flatten()[places] == -1).all()
        turn_of.flatten()[places] = number
        assert of is None or (group[places % 4] == of).all()
        per_policy = (places // (rows // policies * 4)).bincount(minlength=policies)
        assert policies == 1 or (per_policy == per_policy[0]).all()
    assert (turn_of >= 0).all()
    assert (~graph.edges | (turn_of.unsqueeze(-1) < turn_of.unsqueeze(-2))).all()


def test_a_compiled_order_has_as_many_turns_whatever_the_graphs_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many levels a drawn graph has is known only to its numbers, which a compiled step cannot look at."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    rows, nobody = 6, torch.zeros(6, 4, 4, dtype=torch.bool)
    graph = Graph(torch.arange(4).expand(rows, 4), nobody)
    turns = list(SamplingOrder(torch.zeros(4, dtype=torch.long), 1, None)(graph))
    assert [len(turn.places) for turn in turns] == [rows] * 4


def test_a_random_graph_has_some_of_its_edges_and_no_others() -> None:
    policy, obs = make({"kind": "random", "density": 0.5, "edges": ((2, 0), (0, 1))}, rows=400)
    obs = dataclasses.replace(obs, alive=torch.ones(400, 3, dtype=torch.bool))
    edges = forget(policy, obs).sample(Streams([3])).latent.edges
    share = edges.float().mean(0)
    assert policy.pairs == 2
    assert edge_list(share > 0) == [(0, 1), (2, 0)]
    assert share[share > 0].tolist() == pytest.approx([0.5, 0.5], abs=0.1)
    for density, wanted in ((0.4, []), (0.6, [(0, 1), (2, 0)])):
        policy.density.fill_(density)
        most_probable = forget(policy, obs).mode().latent.edges
        assert edge_list(most_probable[0]) == wanted
        assert bool((most_probable == most_probable[0]).all())


def test_the_most_probable_decision_hears_parents_and_the_team_without_edges_hears_nobody() -> None:
    policy, obs = make(GRAPHS["complete"])
    with torch.no_grad():
        mode, _ = Greedy(policy).act(obs, None, Streams([0]))
        alone, _ = WithoutEdges(policy).act(obs, None, Streams([0]))
        again, _ = Greedy(policy).act(obs, None, Streams([1]))
    assert torch.equal(mode.action, again.action)
    assert not bool(alone.latent.edges.any())
    assert bool(mode.latent.edges.any())


# What the graph may depend on


def edge_probabilities(policy: BayesianPolicy, obs: Observation) -> Tensor:
    """P(i before j) and P(edge) for all pairs: all that a graph's distribution is."""
    assert policy.generator is not None
    with torch.no_grad():
        graphs = policy.generator(obs)
    order = (graphs.scores.unsqueeze(-1) - graphs.scores.unsqueeze(-2)).sigmoid()
    return torch.stack([order, graphs.logits.sigmoid()], 1)


def informed(context: str) -> tuple[BayesianPolicy, Observation, Observation]:
    """Agent 0 knows the bit in every row; the same rows with the bit flipped."""
    graph = {**LEARNED, "context": context, "public": (0, 1, 2)}
    policy, obs = make(graph, WhoIsInformed(3), rows=8)
    seen = obs.agent.clone()
    seen[..., :3] = torch.tensor([1.0, 0.0, 0.0])
    seen[..., 3] = 0
    seen[:, 0, 3] = 1
    flipped = seen.clone()
    flipped[:, 0, 3] = -1
    return policy, dataclasses.replace(obs, agent=seen), dataclasses.replace(obs, agent=flipped)


def test_no_agent_can_read_a_private_bit_off_its_parents_under_public_and_local_context() -> None:
    for context in ("public", "local"):
        policy, one, other = informed(context)
        before, after = edge_probabilities(policy, one), edge_probabilities(policy, other)
        # The uninformed agents' sets of parents: columns 1 and 2, and the order.
        assert_close(before[..., 1:], after[..., 1:], 1e-7)
        assert_close(before[:, 0], after[:, 0], 1e-7)
    policy, one, other = informed("all")
    assert not torch.allclose(edge_probabilities(policy, one), edge_probabilities(policy, other), atol=1e-3)


def test_under_local_context_a_receiver_s_own_view_decides_whom_it_asks() -> None:
    policy, one, other = informed("local")
    before, after = edge_probabilities(policy, one)[:, 1], edge_probabilities(policy, other)[:, 1]
    assert not torch.allclose(before[..., 0], after[..., 0], atol=1e-3)


def test_a_public_context_must_be_named_and_exist() -> None:
    with pytest.raises(ValueError, match=r"graph\.public"):
        BayesianPolicyConfig.model_validate({"graph": {"kind": "learned", "context": "public"}})
    with pytest.raises(InputError, match="numbered 0 to 3"):
        make({**LEARNED, "context": "public", "public": (4,)}, WhoIsInformed(3))
    learned = BayesianPolicyConfig.model_validate({"graph": LEARNED})
    with pytest.raises(InputError, match="one policy at a time"):
        BayesianPolicy(Mortals().spec, learned, Streams([0, 1]))


def test_renaming_agents_renames_the_learned_graph() -> None:
    """Without labels the generator is permutation-equivariant."""
    policy, obs = make({**LEARNED, "agent_id": False})
    obs = dataclasses.replace(obs, alive=torch.ones(6, 3, dtype=torch.bool), agent=torch.randn(6, 3, 2))
    order = [2, 0, 1]
    moved = dataclasses.replace(obs, agent=obs.agent[:, order])
    wanted = edge_probabilities(policy, obs)[:, :, order][..., order]
    assert_close(edge_probabilities(policy, moved), wanted, 1e-6)


# Learning


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("memory", [False, True], ids=["feed-forward", "recurrent"])
def test_the_first_minibatch_has_ratio_1_for_every_decider(
    graph: str, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios: list[Tensor] = []

    def spied(log_prob: Tensor, old: Tensor, *rest: Any) -> Tensor:
        ratios.append((log_prob - old).detach().exp())
        return clipped_surrogate(log_prob, old, *rest)

    monkeypatch.setattr("marl.learning.actor_critic.clipped_surrogate", spied)
    env = TensorEnv(Mortals(), 4)
    settings = BayesianPolicyConfig.model_validate({**(GRU if memory else SMALL), "graph": GRAPHS[graph]})
    policy = BayesianPolicy(env.spec, settings, Streams([0]))
    critic = build_critic(env.spec, CriticConfig.model_validate({**SMALL, **LOCAL}), Streams([1]))
    config = LearnerConfig(steps=8, sequence_length=4 if memory else 1, epochs=1, minibatches=2)
    learner = ActorCritic(policy, critic, config, Team(env.spec.channels), Streams([2]))
    source = OnPolicy(env, policy, steps=8, segment=config.sequence_length, streams=Streams([3]), seeds=[4])
    for _, batch in zip(range(2), source):
        ratios.clear()
        learner.update(batch)
        torch.testing.assert_close(ratios[0], torch.ones_like(ratios[0]), atol=1e-6, rtol=0)
        assert not torch.allclose(ratios[1], torch.ones_like(ratios[1]), atol=1e-6, rtol=0), "the policy has moved"
        assert ratios[0].shape[-1] == 3 + (graph == "learned")


def test_straight_through_the_generator_learns_from_actions_alone_and_the_graph_stays_as_it_was_drawn() -> None:
    policy, obs = make({**LEARNED, "estimator": "straight_through", "price": 0.1}, WhoIsInformed(3))
    assert policy.members is None
    decision = policy.act(obs, None, Streams([5]))[0]
    graph, network = decision.latent, policy(obs, None)[0]
    place = graph.order.argsort(-1)
    assert not (graph.edges & (place.unsqueeze(-1) >= place.unsqueeze(-2))).any(), "parents come first"
    torch.testing.assert_close(network.log_prob(decision), decision.log_prob, atol=1e-6, rtol=0)
    torch.testing.assert_close(network.graphs.incoming(graph), graph.edges.transpose(1, 2).float(), atol=1e-6, rtol=0)
    network.log_prob(decision).sum().backward()
    assert policy.generator is not None
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in policy.generator.parameters())


def test_one_agent_alone_may_have_a_learned_graph_either_way() -> None:
    for estimator in ("likelihood", "straight_through"):
        policy, obs = make({**LEARNED, "estimator": estimator}, Identity())
        decision = policy.act(obs, None, Streams([5]))[0]
        deciders = 1 if policy.members is None else len(policy.members)
        assert policy(obs, None)[0].log_prob(decision).shape == (len(obs.alive), deciders)


def test_sixty_four_agents_draw_a_learned_graph_act_along_it_and_learn() -> None:
    policy, obs = make({**LEARNED, "context": "public", "public": tuple(range(64))}, WhoIsInformed(64), rows=16)
    decision = policy.act(obs, None, Streams([5]))[0]
    assert 0 < int(levels(decision.latent.edges).max()) < 64
    log_prob = forget(policy, obs).log_prob(decision)
    torch.testing.assert_close(log_prob, decision.log_prob, rtol=1e-5, atol=1e-3)
    log_prob.sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in policy.parameters())


def test_a_sinkhorn_matrix_is_doubly_stochastic_and_the_assignment_is_the_best() -> None:
    scores = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0))
    soft = sinkhorn(scores)
    torch.testing.assert_close(soft.sum(-1), torch.ones(5, 4))
    torch.testing.assert_close(soft.sum(-2), torch.ones(5, 4), atol=1e-3, rtol=0)
    for row, order in zip(scores, assign(scores)):
        totals = {p: sum(float(row[a, k]) for k, a in enumerate(p)) for p in itertools.permutations(range(4))}
        assert tuple(order.tolist()) == max(totals, key=lambda p: totals[p])


def test_graphs_are_ordered_by_levels() -> None:
    policy, obs = make(GRAPHS["edges"])
    with torch.no_grad():
        graph: Graph = forget(policy, dataclasses.replace(obs, alive=torch.ones(6, 3, dtype=torch.bool))).mode().latent
    assert edge_list(graph.edges[0]) == [(0, 1), (2, 0)]
    assert levels(graph.edges)[0].tolist() == [1, 2, 0]


@pytest.mark.parametrize("name", GRAPHS)
def test_the_divergence_given_a_decision_is_one_number_a_decider_and_0_from_itself(name: str) -> None:
    policy, obs = make(GRAPHS[name])
    torch.manual_seed(0)
    with torch.no_grad():
        decision = policy.act(obs, policy.initial_memory(6), Streams([3]))[0]
        here, again = (policy(obs, policy.initial_memory(6))[0] for _ in range(2))
        still = here.kl(again, decision)
        for p in policy.parameters():
            p += 0.1
        moved = here.kl(policy(obs, policy.initial_memory(6))[0], decision)
    assert still.shape == here.log_prob(decision).shape
    torch.testing.assert_close(still, torch.zeros_like(still), atol=1e-6, rtol=0)
    assert bool((moved > -1e-6).all())
    assert float(moved.sum()) > 0
    with pytest.raises(TypeError, match="given what the parents did"):
        here.kl(again)
