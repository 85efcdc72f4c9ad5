"""Exact values against brute force that shares no code with them, and policies that reach them."""

from __future__ import annotations

import itertools
import math

import networkx as nx
import pytest
import torch

from envs.core import InputError, Observation, Streams
from envs.games import (
    Constant,
    CoordinationGame,
    CopyGame,
    Identity,
    MatrixGame,
    OneShot,
    PermutationGame,
    WhoIsInformed,
    climbing,
    coordination,
    penalty,
    xor,
)
from envs.world import RandomActor, Scripted, TensorEnv, World

Graph = tuple[tuple[int, int], ...]


def graphs(agents: int) -> list[Graph]:
    """All labelled directed acyclic graphs."""
    pairs = list(itertools.permutations(range(agents), 2))
    subsets = itertools.chain.from_iterable(itertools.combinations(pairs, k) for k in range(len(pairs) + 1))
    return [edges for edges in subsets if nx.is_directed_acyclic_graph(nx.DiGraph(edges))]


def complete(agents: int) -> Graph:
    return tuple(itertools.combinations(range(agents), 2))


def order_of(graph: Graph, agents: int) -> list[int]:
    directed = nx.DiGraph(graph)
    directed.add_nodes_from(range(agents))
    return list(nx.topological_sort(directed))


def parents_of(graph: Graph, agent: int) -> tuple[int, ...]:
    return tuple(sorted(i for i, j in graph if j == agent))


def reward_of(world: OneShot, state: torch.Tensor, joint: list[tuple[int, ...]]) -> list[float]:
    """What each joint action earns in one state, asked of the world itself."""
    action = torch.tensor(joint).unsqueeze(-1)
    reward = world.transition(state.expand(len(joint), -1), action, None).reward
    assert torch.equal(reward, reward[:, :1].expand_as(reward)), "a team reward is the same for everybody"
    return reward[:, 0, 0].tolist()


@pytest.mark.parametrize(
    ("world", "best"), [(climbing(), 11), (penalty(), 10), (penalty(-3.0), 10), (coordination(), 2.45)]
)
def test_a_matrix_game_s_value_is_its_largest_payoff_under_every_graph(world: MatrixGame, best: float) -> None:
    joint = list(itertools.product(*(range(count) for count in world.payoff.shape)))
    state = world.initial(world.initial_noise(1, torch.Generator()))
    brute_force = max(reward_of(world, state, joint))
    for graph in graphs(2):
        assert world.optimal_value(graph) == best == pytest.approx(brute_force)


def test_a_matrix_game_takes_any_number_of_agents_and_choices() -> None:
    world = MatrixGame(torch.arange(24.0).view(2, 3, 4))
    env = TensorEnv(world, 5)
    legal = env.reset(0).legal
    assert legal is not None
    assert legal[0].sum(-1).tolist() == [2, 3, 4]
    step = env.step(torch.tensor([1, 2, 3]).view(1, 3, 1).expand(5, -1, -1))
    assert step.reward.tolist() == [[[23.0]] * 3] * 5
    assert step.terminated.all()
    assert not step.truncated.any()
    assert step.ended.all()


def test_penalty_has_the_named_payoffs() -> None:
    assert penalty(-7.0).payoff.tolist() == [[-7, 0, 10], [0, 2, 0], [10, 0, -7]]


@pytest.mark.parametrize("payoff", [[[1, 2], [3]], [1.0, 2.0], [[float("nan"), 1.0]], [["a", "b"]]])
def test_a_payoff_that_is_no_table_is_an_input_error(payoff: list[object]) -> None:
    with pytest.raises(InputError, match="payoff is a full table"):
        MatrixGame(payoff)


def permutation_by_enumeration(agents: int, graph: Graph, grid: int = 12) -> float:
    """The best shared policy among all with probabilities that are multiples of 1/grid.

    P(all differ) splits into a sum over what one group of twins may see, so that group's answer to each sight is chosen
    separately; all other groups' tables are enumerated. A single agent's best answer is deterministic.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for agent in range(agents):
        groups.setdefault(parents_of(graph, agent), []).append(agent)
    corners = [tuple(float(a == b) for b in range(agents)) for a in range(agents)]
    mixed = [
        tuple(part / grid for part in parts)
        for parts in itertools.product(range(grid + 1), repeat=agents)
        if sum(parts) == grid
    ]
    answers = {seen: corners if len(members) == 1 else mixed for seen, members in groups.items()}
    *first, last = sorted(groups, key=len)
    sights = {seen: list(itertools.product(range(agents), repeat=len(seen))) for seen in groups}
    tables = [
        [dict(zip(sights[seen], choice)) for choice in itertools.product(answers[seen], repeat=len(sights[seen]))]
        for seen in first
    ]
    wins = list(itertools.permutations(range(agents)))
    best = 0.0
    for policy in itertools.product(*tables):
        value = 0.0
        for sight in sights[last]:
            weighed = [
                (
                    win,
                    math.prod(
                        table[tuple(win[i] for i in seen)][win[j]]
                        for seen, table in zip(first, policy)
                        for j in groups[seen]
                    ),
                )
                for win in wins
                if tuple(win[i] for i in last) == sight
            ]
            value += max(
                sum(weight * math.prod(p[win[j]] for j in groups[last]) for win, weight in weighed)
                for p in answers[last]
            )
        best = max(best, value)
    return best


@pytest.mark.parametrize("agents", [2, 3])
def test_permutation_values_agree_with_brute_force_on_every_graph(agents: int) -> None:
    world = PermutationGame(agents)
    for graph in graphs(agents):
        assert world.optimal_value(graph) == pytest.approx(permutation_by_enumeration(agents, graph), abs=1e-9), graph


@pytest.mark.parametrize("agents", [2, 3, 4, 5, 6])
def test_permutation_without_edges_is_uniform_play_and_an_order_or_a_line_solves_it(agents: int) -> None:
    world = PermutationGame(agents)
    assert world.optimal_value(()) == pytest.approx(math.factorial(agents) / agents**agents)
    assert world.optimal_value(complete(agents)) == 1
    assert world.optimal_value([(i, i + 1) for i in range(agents - 1)]) == 1


def test_permutation_by_hand_for_four_agents() -> None:
    world = PermutationGame(4)
    # 0 and 1 differ with probability 3/4; 2 sees both and, by which free action it takes, tells 3 the other one.
    told = ((0, 2), (0, 3), (1, 2), (2, 3))
    won = 0
    for a, b in itertools.product(range(4), repeat=2):
        c = (a + (b - a) % 4 % 3 + 1) % 4
        won += {a, b, c, (a + (c - a) % 4 % 3 + 1) % 4} == {0, 1, 2, 3}
    assert world.optimal_value(told) == pytest.approx(won / 16) == pytest.approx(3 / 4)
    # 2 and 3 see both: after 3/4 two are free, and twins split two with probability 1/2.
    assert world.optimal_value([(0, 2), (1, 2), (0, 3), (1, 3)]) == pytest.approx(3 / 8)
    # One root, three twins on the other three actions.
    assert world.optimal_value([(0, 1), (0, 2), (0, 3)]) == pytest.approx(6 / 27)


def test_a_value_that_is_not_known_is_an_input_error_with_its_bounds() -> None:
    with pytest.raises(InputError, match=r"between 0\.09375 and 0\.192"):
        PermutationGame(5).optimal_value([(0, 4), (1, 4), (2, 4)])


def test_xor_and_permutation_agents_cannot_be_told_apart() -> None:
    for world in (xor(), PermutationGame(4)):
        obs = TensorEnv(world, 3).reset(0)
        assert set(world.spec.kind) == {0}
        assert torch.equal(obs.agent, obs.agent[:, :1].expand_as(obs.agent))
    assert xor().optimal_value([]) == 0.5
    assert xor().optimal_value([(0, 1)]) == xor().optimal_value([(1, 0)]) == 1


@pytest.mark.parametrize("agents", [2, 3, 4])
def test_permutation_pays_exactly_for_permutations(agents: int) -> None:
    world = PermutationGame(agents)
    joint = list(itertools.product(range(agents), repeat=agents))
    state = world.initial(world.initial_noise(1, torch.Generator()))
    assert reward_of(world, state, joint) == [float(len(set(a)) == agents) for a in joint]


def best_deterministic(world: OneShot, graph: Graph, states: torch.Tensor) -> float:
    """The best mean reward over equally likely states, of all deterministic policies of view and parents' actions."""
    agents, views = len(world.spec.agents), world.observe(states).agent
    joint = list(itertools.product(range(2), repeat=agents))
    rewards = [dict(zip(joint, reward_of(world, state.unsqueeze(0), joint))) for state in states]
    own = [sorted({tuple(view) for view in views[:, agent].tolist()}) for agent in range(agents)]
    seen = [list(itertools.product(range(2), repeat=len(parents_of(graph, agent)))) for agent in range(agents)]
    inputs = [[(view, *actions) for view in own[agent] for actions in seen[agent]] for agent in range(agents)]
    order = order_of(graph, agents)
    best = -math.inf
    for tables in itertools.product(*(itertools.product(range(2), repeat=len(rows)) for rows in inputs)):
        policies = [dict(zip(rows, table)) for rows, table in zip(inputs, tables)]
        total = 0.0
        for state, reward in enumerate(rewards):
            action = [0] * agents
            for j in order:
                action[j] = policies[j][(tuple(views[state, j].tolist()), *(action[i] for i in parents_of(graph, j)))]
            total += reward[tuple(action)]
        best = max(best, total / len(rewards))
    return best


def test_copy_values_agree_with_brute_force_and_depend_on_the_edge_s_direction() -> None:
    world = CopyGame()
    values = {}
    for graph in graphs(2):
        values[graph] = world.optimal_value(graph)
        assert values[graph] == best_deterministic(world, graph, torch.tensor([[-1.0], [1.0]]))
    assert values == {(): 0.5, ((0, 1),): 1.0, ((1, 0),): 0.5}


@pytest.mark.parametrize("agents", [2, 3])
def test_who_is_informed_agrees_with_brute_force_on_every_graph(agents: int) -> None:
    world = WhoIsInformed(agents)
    # Policies see the context, so the best one is found for each context apart.
    contexts = [world.initial((torch.tensor([c, c]), torch.tensor([0, 1]))) for c in range(agents)]
    for graph in graphs(agents):
        by_context = [best_deterministic(world, graph, states) for states in contexts]
        assert world.optimal_value(graph) == pytest.approx(sum(by_context) / agents), graph
        for context, value in enumerate(by_context):
            edges = [graph if c == context else () for c in range(agents)]
            gain = (value - 0.5) / agents
            assert world.optimal_value(lambda c, edges=edges: edges[c]) == pytest.approx(0.5 + gain)


@pytest.mark.parametrize("agents", [2, 3, 4, 7])
def test_who_is_informed_by_hand(agents: int) -> None:
    world = WhoIsInformed(agents)
    assert world.optimal_value(()) == 0.5
    for order in itertools.islice(itertools.permutations(range(agents)), 10):
        assert world.optimal_value(itertools.combinations(order, 2)) == pytest.approx(0.75)
    assert world.optimal_value(lambda c: [(c, j) for j in range(agents) if j != c]) == 1
    line = [(i, i + 1) for i in range(agents - 1)]
    assert world.optimal_value(line) == pytest.approx(0.75), "a line relays as well as a complete order tells"


@pytest.mark.parametrize("agents", [2, 3, 5])
def test_relaying_along_a_complete_order_earns_three_quarters_in_who_is_informed(agents: int) -> None:
    world = WhoIsInformed(agents)
    noise = torch.cartesian_prod(torch.arange(agents), torch.arange(2)).unbind(-1)
    state = world.initial(noise)
    obs = world.observe(state)
    bits = obs.agent[:, :, -1]
    assert torch.equal((bits != 0).sum(-1), torch.ones(2 * agents)), "one agent is informed"
    # Each agent repeats the bit it sees or heard of; whoever comes before the informed one plays 1.
    action = (bits.cumsum(-1) >= 0).long().unsqueeze(-1)
    reward = world.transition(state, action, None).reward
    assert reward.mean().item() == pytest.approx(world.optimal_value(complete(agents)))


def test_public_context_and_private_bit_are_all_that_is_seen() -> None:
    world = WhoIsInformed(3)
    obs = world.observe(world.initial((torch.tensor([1, 2]), torch.tensor([0, 1]))))
    assert obs.agent.tolist() == [
        [[0, 1, 0, 0], [0, 1, 0, -1], [0, 1, 0, 0]],
        [[0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 1]],
    ]
    assert obs.state.tolist() == [[0, 1, 0, -1], [0, 0, 1, 1]]


def test_an_agent_without_signal_sees_the_context_alone() -> None:
    for world in (climbing(), PermutationGame(3), Constant(2)):
        obs = world.observe(world.initial(world.initial_noise(4, torch.Generator())))
        assert obs.agent.tolist() == [[[1, 0]] * len(world.spec.agents)] * 4
    copy = CopyGame()
    assert copy.observe(torch.tensor([[1.0], [-1.0]])).agent.tolist() == [[[1, 1], [1, 0]], [[1, -1], [1, 0]]]


def played(world: World[object], rule: object, rows: int, steps: int, seed: int = 0) -> torch.Tensor:
    """Mean team return of the first `steps` steps."""
    env, actor, streams = TensorEnv(world, rows), Scripted(rule), Streams([seed])
    obs, total = env.reset(seed), torch.zeros(rows)
    for _ in range(steps):
        step = env.step(actor.act(obs, None, streams)[0].action)
        obs, total = step.obs, total + step.reward[:, 0, 0]
    return total.mean()


def zeros(obs: Observation, streams: Streams) -> torch.Tensor:
    return torch.zeros(*obs.alive.shape, 1, dtype=torch.int64)


def copied(obs: Observation, streams: Streams) -> torch.Tensor:
    return (obs.agent[:, :1, -1:] > 0).long().expand(-1, 2, -1)


def all_different(obs: Observation, streams: Streams) -> torch.Tensor:
    return torch.arange(obs.alive.shape[1]).view(1, -1, 1).expand(len(obs.alive), -1, -1)


def named(obs: Observation, streams: Streams) -> torch.Tensor:
    return obs.agent.argmax(-1, keepdim=True)


@pytest.mark.parametrize(
    ("world", "rule", "value"),
    [
        (climbing(), zeros, climbing().optimal_value(())),
        (coordination(), zeros, coordination().optimal_value(())),
        (CopyGame(), copied, CopyGame().optimal_value([(0, 1)])),
        (PermutationGame(4), all_different, PermutationGame(4).optimal_value(complete(4))),
        (Identity(5, agents=2), named, 1.0),
    ],
)
def test_the_optimal_policy_reaches_the_optimal_value(world: World[object], rule: object, value: float) -> None:
    assert played(world, rule, rows=50, steps=1).item() == pytest.approx(value)


@pytest.mark.parametrize("agents", [2, 3])
@pytest.mark.parametrize("flip", [0.1, 0.4])
def test_coordination_agrees_with_value_iteration(agents: int, flip: float) -> None:
    horizon, discount = 6, 0.9
    world = CoordinationGame(agents, flip=flip, horizon=horizon)
    states = list(itertools.product((0, 1), repeat=agents))
    margin = {2: 1, 3: 1}[agents]

    def reward(s: tuple[int, ...]) -> float:
        ones, nulls = sum(s), agents - sum(s)
        if abs(nulls - ones) <= margin:
            return 1.0 if nulls < ones else 0.0
        return 3.0 if nulls > ones else 2.0

    def chance(s: tuple[int, ...], a: tuple[int, ...]) -> float:
        return math.prod(1 - flip if x == y else flip for x, y in zip(s, a))

    value = dict.fromkeys(states, 0.0)
    endless = None
    for sweep in range(1, 400):
        ahead = max(sum(chance(s, a) * value[s] for s in states) for a in states)
        value = {s: reward(s) + discount * ahead for s in states}
        start = sum(math.prod(1 / agents if x == 0 else 1 - 1 / agents for x in s) * value[s] for s in states)
        if sweep == horizon:
            assert world.optimal_value((), discount) == pytest.approx(start)
        endless = start
    assert CoordinationGame(agents, flip=flip, horizon=None).optimal_value((), discount) == pytest.approx(endless)


def test_coordination_s_expected_rewards_are_the_published_ones() -> None:
    by_ones = {
        2: [2.45, 0.45, 1.65],
        3: [2.216, 0.424, 0.936, 1.704],
        5: [2.7646, 2.1066, 0.6702, 0.9850, 1.6478, 1.9114],
    }
    for agents, expected in by_ones.items():
        world = CoordinationGame(agents)
        assert [world.expected_reward(k) for k in range(agents + 1)] == pytest.approx(expected, abs=5e-5)
    assert coordination().payoff.flatten().tolist() == pytest.approx(
        [CoordinationGame(2).expected_reward(k) for k in (0, 1, 1, 2)]
    )


@pytest.mark.parametrize("agents", [2, 10])
def test_always_zero_earns_the_value_of_the_sampled_coordination_game(agents: int) -> None:
    world = CoordinationGame(agents)
    assert played(world, zeros, rows=20_000, steps=25).item() == pytest.approx(world.optimal_value(()), abs=0.1)


def test_coordination_s_bits_are_the_actions_flipped_by_the_noise_and_the_old_state_is_paid() -> None:
    world = CoordinationGame(3)
    state = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]])
    noise = torch.tensor([[0.0, 0.5, 0.5]]).expand(4, -1)
    out = world.transition(state, torch.ones(4, 3, 1, dtype=torch.int64), noise)
    assert out.state.tolist() == [[0, 1, 1]] * 4
    assert out.reward[:, 0, 0].tolist() == [3, 2, 1, 0]
    assert world.observe(out.state).agent[0].tolist() == [[-1, 1, 1]] * 3


def test_coordination_starts_with_each_bit_zero_once_in_n() -> None:
    world = CoordinationGame(5)
    state = world.initial(world.initial_noise(20_000, torch.Generator().manual_seed(0)))
    assert (state == 0).float().mean().item() == pytest.approx(1 / 5, abs=0.01)


@pytest.mark.parametrize(
    ("horizon", "discount", "match"),
    [(None, 1.0, "horizon=None"), (25, 1.5, "between 0 and 1"), (25, -0.1, "got -0.1")],
)
def test_an_endless_return_needs_a_discount(horizon: int | None, discount: float, match: str) -> None:
    with pytest.raises(InputError, match=match):
        CoordinationGame(2, horizon=horizon).optimal_value((), discount)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CoordinationGame(4),
        lambda: CoordinationGame(2, flip=1.5),
        lambda: CoordinationGame(2, horizon=0),
        lambda: PermutationGame(1),
        lambda: WhoIsInformed(1),
        lambda: Constant(0),
        lambda: Identity(choices=1),
    ],
)
def test_impossible_games_are_input_errors(make: object) -> None:
    with pytest.raises(InputError, match="got"):
        make()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("graph", "edge"),
    [
        ([(0, 0)], r"Edge \(0, 0\)"),
        ([(0, 1), (1, 3)], r"Edge \(1, 3\)"),
        ([(-1, 0)], r"Edge \(-1, 0\)"),
        ([(0, 1, 2)], r"Edge \(0, 1, 2\)"),
        ([[2, 2]], r"Edge \[2, 2\]"),
        ([(0, 1), (1, 2), (2, 0)], r"Edge \(\d, \d\) closes the cycle"),
    ],
)
@pytest.mark.parametrize(
    "world", [MatrixGame(torch.zeros(2, 2, 2)), PermutationGame(3), WhoIsInformed(3), CoordinationGame(3)]
)
def test_a_graph_that_no_one_can_act_along_is_an_input_error_that_names_the_edge(
    world: OneShot, graph: Graph, edge: str
) -> None:
    with pytest.raises(InputError, match=edge):
        world.optimal_value(graph)
    with pytest.raises(InputError, match=edge):
        WhoIsInformed(3).optimal_value(lambda context: graph)


def test_who_is_informed_takes_an_iterator_of_edges() -> None:
    assert WhoIsInformed(3).optimal_value(iter([(0, 1), (1, 2)])) == pytest.approx(0.75)


def test_constant_pays_one_for_ever_and_ends_only_at_its_horizon() -> None:
    for horizon, steps in ((None, 50), (4, 4)):
        env = TensorEnv(Constant(2, horizon), 3)
        actor, streams = RandomActor(env.spec), Streams([0])
        obs = env.reset(0)
        for t in range(1, steps + 1):
            step = env.step(actor.act(obs, None, streams)[0].action)
            obs = step.obs
            assert (step.reward == 1).all()
            assert bool(step.terminated.all()) == (t == horizon) == bool(step.ended.all())
            assert not step.truncated.any()
