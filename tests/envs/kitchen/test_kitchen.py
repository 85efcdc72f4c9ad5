"""The kitchen's rules by hand, its codes, views, starts and oracles."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import InputError, Streams, tree_map
from envs.kitchen import EVENTS, Kitchen, State, layout_names
from envs.kitchen.bound import LeastSteps
from envs.testing import check_env
from envs.world import RandomActor, TensorEnv
from tests.envs.kitchen.kitchen_states import drawn, named

NORTH, SOUTH, EAST, WEST, STAY, INTERACT = range(6)


def play(kitchen: Kitchen, *joint: tuple[int, ...]) -> tuple[State, Tensor]:
    """The state after joint choices from the layout's start, and all rewards [T,N,K]."""
    state, rewards = kitchen.first(), []
    for choices in joint:
        state, reward, _ = kitchen.transition(state, torch.tensor(choices).view(1, -1, 1), None)
        rewards.append(reward[0])
    return state, torch.stack(rewards)


def step(kitchen: Kitchen, state: State, *choices: int) -> State:
    return kitchen.transition(state, torch.tensor(choices).view(1, -1, 1), None).state


def test_a_soup_by_hand() -> None:
    """An onion, a pot, a dish and the desk in a kitchen of three cells, with everything that is earned on the way."""
    recipe = {"capacity": 1, "cook_time": 1}
    kitchen = Kitchen("XXPXX\nO1 2D\nXXSXX", recipe=recipe, horizon=None)
    fetch = [(WEST, EAST), (INTERACT, STAY), (EAST, STAY), (NORTH, STAY), (INTERACT, STAY), (INTERACT, STAY)]
    plate = [(WEST, INTERACT), (STAY, WEST), (STAY, NORTH), (STAY, INTERACT)]
    serve = [(STAY, SOUTH), (STAY, INTERACT)]
    state, rewards = play(kitchen, *fetch, *plate, *serve)
    earned = {
        (step, agent, channel): float(rewards[step, agent, channel])
        for step, agent, channel in rewards.nonzero().tolist()
    }
    assert earned == {(4, 0, 1): 3.0, (6, 1, 1): 3.0, (9, 1, 1): 5.0, (11, 0, 0): 20.0, (11, 1, 0): 20.0}
    assert state.held.tolist() == [[0, 0]]
    assert state.things.tolist() == [[0] * len(kitchen.geometry.slots)]


def test_both_onions_of_one_step_go_into_the_pot_in_order_of_the_cooks() -> None:
    kitchen = Kitchen("cramped_room", recipe={"capacity": 3})
    codes = kitchen.codes
    two = codes.pot(codes.menu.mixtures.index((2,)), None)
    pose = (((1, 2), NORTH), ((1, 3), NORTH))
    state = named(kitchen, pose=pose, held=(1, 1), things={(0, 2): two})
    after = step(kitchen, state, INTERACT, STAY)
    assert codes.in_pot(int(after.things[0, 0])) == (codes.menu.mixtures.index((3,)), None)
    assert after.held.tolist() == [[0, 1]]


def test_hands_come_before_feet_and_the_first_cook_before_the_second() -> None:
    """What one cook puts on a counter, the next takes in the same step; what the second puts, the first does not."""
    kitchen = Kitchen("XXXPX\nO1X2D\nXXXSX", horizon=None)
    pose = (((1, 1), EAST), ((1, 3), WEST))
    passed = step(kitchen, named(kitchen, pose=pose, held=(1, 0)), INTERACT, INTERACT)
    assert passed.held.tolist() == [[0, 1]]
    back = step(kitchen, named(kitchen, pose=pose, held=(0, 1)), INTERACT, INTERACT)
    assert back.held.tolist() == [[0, 0]]
    assert int(back.things[0, kitchen.geometry.slot[1, 2]]) == 1


def test_cooks_who_would_meet_or_swap_turn_and_stay_and_others_stay_with_them() -> None:
    kitchen = Kitchen("XXPXXX\nO1 23D\nX    X\nXXSXXX", horizon=None)
    cells = kitchen.geometry.floor_number

    def cell_and_way(state: State) -> list[tuple[int, int]]:
        return [(p // 4, p % 4) for p in state.pose[0].tolist()]

    meet = step(kitchen, kitchen.first(), EAST, WEST, SOUTH)
    assert cell_and_way(meet) == [(cells[1, 1], EAST), (cells[1, 3], WEST), (cells[1, 4], SOUTH)]
    swap = step(kitchen, kitchen.first(), STAY, EAST, WEST)
    assert cell_and_way(swap) == [(cells[1, 1], NORTH), (cells[1, 3], EAST), (cells[1, 4], WEST)]
    follow = step(kitchen, kitchen.first(), STAY, WEST, WEST)
    assert cell_and_way(follow) == [(cells[1, 1], NORTH), (cells[1, 2], WEST), (cells[1, 3], WEST)]


@pytest.mark.parametrize("old", [False, True])
def test_a_pot_cooks_from_the_step_in_which_it_starts(old: bool) -> None:
    kitchen = Kitchen("cramped_room", recipe={"cook_time": 2, "capacity": 1}, old_dynamics=old)
    codes = kitchen.codes
    state = named(kitchen, pose=(((1, 2), NORTH), ((2, 3), SOUTH)), held=(1, 0))
    steps = []
    for choice in (INTERACT, INTERACT, STAY):
        state = step(kitchen, state, choice, STAY)
        pot = codes.in_pot(int(state.things[0, 0]))
        assert pot is not None
        steps.append(pot[1])
    assert steps == ([1, 2, 2] if old else [None, 1, 2])


def test_no_more_than_so_many_things_lie_on_counters() -> None:
    kitchen = Kitchen("cramped_room", counter_items=1)
    state = named(kitchen, pose=(((1, 1), NORTH), ((1, 3), NORTH)), held=(1, 1))
    after = step(kitchen, state, INTERACT, INTERACT)
    assert after.held.tolist() == [[0, 1]], "the first cook's filled the last place"
    assert step(kitchen, after, INTERACT, INTERACT).held.tolist() == [[1, 0]], "one is taken, so that one can be put"


def test_orders_are_worth_what_the_menu_says() -> None:
    recipe = {"orders": ["onion onion", "onion"], "value": [7, 3], "bonus": ["onion"]}
    kitchen = Kitchen("cramped_room", recipe=recipe)
    codes = kitchen.codes
    worth = []
    for mixture in kitchen.menu.mixtures:
        soup = codes.soup(kitchen.menu.mixtures.index(mixture))
        state = named(kitchen, pose=(((2, 3), SOUTH), ((1, 1), NORTH)), held=(soup, 0))
        result = kitchen.transition(state, torch.tensor([INTERACT, STAY]).view(1, 2, 1), None)
        assert result.state.held.tolist() == [[0, 0]], "what nobody ordered is gone all the same"
        assert result.reward[0, 0, 0] == result.reward[0, 1, 0]
        worth.append(float(result.reward[0, 0, 0]))
    assert dict(zip(kitchen.menu.mixtures, worth)) == {(1,): 6.0, (2,): 7.0, (3,): 0.0}


def test_an_episode_ends_when_so_many_ordered_soups_were_served() -> None:
    kitchen = Kitchen("cramped_room", soups=2, recipe={"orders": ["onion onion"]})
    soups = [kitchen.codes.soup(i) for i in range(3)]
    pose = (((2, 3), SOUTH), ((1, 1), NORTH))
    over, state = [], named(kitchen, pose=pose)
    for soup in (soups[1], soups[0], soups[1]):
        state = state._replace(held=torch.tensor([[soup, 0]]))
        state, _, terminated = kitchen.transition(state, torch.tensor([INTERACT, STAY]).view(1, 2, 1), None)
        assert terminated is not None
        over.append(bool(terminated.all()))
    assert over == [False, False, True]


CODED: dict[str, dict[str, Any]] = {name: {"layout": name} for name in layout_names()} | {
    "counted": {"layout": "cramped_room", "soups": 3},
    "no horizon": {"layout": "cramped_room", "horizon": None},
    "board": {
        "layout": "XXPXX\nO1 2T\nX   X\nXDRSX",
        "recipe": {"orders": ["onion onion", "tomato"], "one_an_episode": True},
    },
}


@pytest.mark.parametrize("name", CODED)
def test_the_critics_state_is_lossless(name: str) -> None:
    """`state_of(obs.state)` is the state, for states drawn and played, clock or not."""
    kitchen = Kitchen(**CODED[name], starts="random")
    env = TensorEnv(kitchen, 500, time_limit=5)
    obs, streams, actor = env.reset(3), Streams([3]), RandomActor(env.spec)
    for _ in range(8):
        found = kitchen.state_of(obs.state)
        assert all(torch.equal(a, b) for a, b in zip(found, env.rows.state))
        obs = env.step(actor.act(obs, None, streams)[0].action).obs
    with pytest.raises(InputError, match="Row 0 is no state"):
        kitchen.state_of(obs.state + 0.01)
    with pytest.raises(InputError, match="numbers; got"):
        kitchen.state_of(obs.state[:, :-2])


def test_starts_are_uniform_over_legal_states() -> None:
    kitchen = Kitchen("XPXX\nO12S\nX  D\nXXXX", starts="random", recipe={"capacity": 1, "cook_time": 2})
    state = drawn(kitchen, 200_000)
    codes, counters = kitchen.codes, len(kitchen.geometry.counters)
    cells = state.pose // 4
    assert bool((cells[:, 0] != cells[:, 1]).all())
    for numbers, count in ((cells[:, 0], 4), (cells[:, 1], 4), (state.pose[:, 0] % 4, 4), (state.held[:, 1], 4)):
        share = numbers.bincount(minlength=count) / len(numbers)
        torch.testing.assert_close(share, torch.full((count,), 1 / count), atol=0.005, rtol=0)
    pots = state.things[:, 0].bincount(minlength=codes.count) / len(cells)
    legal = [0, codes.pot(0, None), codes.pot(0, 1), codes.pot(0, 2)]
    torch.testing.assert_close(pots[legal], torch.full((4,), 0.25), atol=0.005, rtol=0)
    on_counters = state.things[:, 1:]
    kinds = on_counters.flatten().bincount(minlength=codes.items) / on_counters.numel()
    torch.testing.assert_close(kinds, torch.full((codes.items,), 1 / codes.items), atol=0.005, rtol=0)
    lying = (on_counters > 0).sum(1).bincount(minlength=counters + 1) / len(cells)
    expected = [math.comb(counters, n) * 3**n / 4**counters for n in range(counters + 1)]
    torch.testing.assert_close(lying, torch.tensor(expected), atol=0.005, rtol=0)


def test_starts_with_a_limit_are_uniform_over_what_it_allows() -> None:
    kitchen = Kitchen("cramped_room", starts="random", counter_items=1)
    things = drawn(kitchen, 200_000).things[:, 1:]
    number, counters, items = (things > 0).sum(1), things.shape[1], kitchen.codes.items
    assert int(number.max()) == 1
    share = float((number == 0).float().mean())
    assert share == pytest.approx(1 / (1 + counters * (items - 1)), abs=0.003)
    where = (things > 0).float().mean(0)
    torch.testing.assert_close(where, torch.full_like(where, (1 - share) / counters), atol=0.005, rtol=0)


def test_cooks_start_where_they_can_walk_to() -> None:
    kitchen = Kitchen("forced_coordination", starts="random")
    cells = [kitchen.geometry.floor[c] for c in (drawn(kitchen, 500).pose[:, 0] // 4).tolist()]
    assert set(cells) == kitchen.layout.regions[0]


SHORT = {"horizon": 12, "recipe": {"cook_time": 1}}


@pytest.mark.parametrize(
    "options",
    [
        {"view": "overcooked"},
        {"view": "planes"},
        {"layout": "four_cooks", "radius": 2},
        {"starts": "random", "soups": 1},
        {"layout": CODED["board"]["layout"], "recipe": CODED["board"]["recipe"], "radius": 1, "starts": "random"},
    ],
    ids=str,
)
def test_the_kitchen_is_a_sound_environment(options: dict[str, Any]) -> None:
    check_env(lambda rows: TensorEnv(Kitchen(**{**SHORT, **options}), rows), steps=14)


def test_features_by_hand() -> None:
    """Cramped room: cook 0 at row 2, column 1 looks at the dish dispenser with an onion in hand."""
    kitchen = Kitchen("cramped_room", horizon=None)
    one = kitchen.codes.pot(kitchen.menu.mixtures.index((1,)), None)
    state = named(
        kitchen, pose=(((2, 1), SOUTH), ((1, 3), EAST)), held=(1, 0), things={(0, 2): one, (2, 0): kitchen.codes.dish}
    )
    seen = kitchen.observe(state).agent[0]
    own, other = seen.split([6 + 8 + 2 * 4 + 3 + 3, len(seen[0]) - 28], -1)
    row_column_way = [2 / 5, 1 / 5, 0, 1, 0, 0]
    dishes = [float(tile == "D") for tile in "XPOTDSR "]
    ways = [-1 / 5, -1 / 5, 1 / 5, 0, 1 / 5, 2 / 5, -2 / 5, 1 / 5]  # onions, dishes, desk, pot
    torch.testing.assert_close(own[0], torch.tensor([*row_column_way, *dishes, *ways, 1, 0, 0, 0, 0, 0]))
    partner = [-1 / 5, 2 / 5, 0, 0, 1, 0, 0, 0, 0]
    pot = [1 / 3, 0, 0, 0]
    counters = [float(cell == (2, 0)) for cell in kitchen.geometry.counters]
    lying = [number for lies in counters for number in (0.0, lies, 0.0)]
    torch.testing.assert_close(other[0], torch.tensor([*partner, *pot, *lying]))


@pytest.mark.parametrize("name", ["cramped_room", "counter_circuit"])
def test_a_cook_sees_no_further_than_its_radius(name: str) -> None:
    """States that differ only in what is far look alike; in what is near, not."""
    near, whole = (Kitchen(name, starts="random", horizon=None, radius=r) for r in (2, None))
    state = drawn(near, 2000)
    other = drawn(near, 2000, seed=1)
    places = torch.tensor([cell for cell, _ in near.geometry.poses])
    slots = torch.tensor(near.geometry.slots)
    own = places[state.pose[:, 0]]
    far_slot = ((slots - own.unsqueeze(1)).abs() > 2).any(-1)
    far_cook = ((places[state.pose[:, 1]] - own).abs() > 2).any(-1)
    still_far = ((places[other.pose[:, 1]] - own).abs() > 2).any(-1)
    swap = far_cook & still_far & (other.pose[:, 1] // 4 != state.pose[:, 0] // 4)
    pose, held = state.pose.clone(), state.held.clone()
    pose[swap, 1], held[swap, 1] = other.pose[swap, 1], other.held[swap, 1]
    changed = state._replace(pose=pose, held=held, things=torch.where(far_slot, other.things, state.things))
    assert torch.equal(near.observe(state).agent[:, 0], near.observe(changed).agent[:, 0])
    touched = (changed.things != state.things).any(1) | swap
    assert bool(touched.any())
    differs = (whole.observe(state).agent[:, 0] != whole.observe(changed).agent[:, 0]).any(1)
    assert bool(differs[(changed.things != state.things).any(1)].all())
    close = torch.where(far_slot, state.things, other.things)
    shows = (near.observe(state).agent[:, 0] != near.observe(state._replace(things=close)).agent[:, 0]).any(1)
    assert torch.equal(shows, (close != state.things).any(1))


def test_the_board_shows_the_order_to_those_who_see_it() -> None:
    kitchen = Kitchen(**CODED["board"], radius=1, horizon=None)
    poses = (((2, 2), NORTH), ((1, 1), NORTH))
    views = []
    for order in (0, 1):
        state = kitchen.initial(torch.tensor([[order * 0.5 + 0.25]]))
        assert state.order.tolist() == [order]
        pose = torch.tensor([[4 * kitchen.geometry.floor_number[cell] + way for cell, way in poses]])
        views.append(kitchen.observe(state._replace(pose=pose)).agent[0])
    assert not torch.equal(views[0][0], views[1][0]), "the board is next to it"
    assert torch.equal(views[0][1], views[1][1]), "and two cells away from the other"


@pytest.mark.parametrize(
    ("layout", "steps", "states"), [("cramped_room_small", 14, 46_616), ("forced_coordination_small", 21, None)]
)
def test_the_first_soup_takes_as_many_steps_as_exhaustive_search_says(
    layout: str, steps: int, states: int | None
) -> None:
    """14 and 21 by two other implementations (Zhang et al. say 22 for the second)."""
    kitchen = Kitchen(layout, horizon=None, soups=1)
    plan = kitchen.fewest_steps(steps)
    assert len(plan) == steps
    _, rewards = play(kitchen, *plan)
    assert rewards[-1, 0, 0] == 20
    assert float(rewards[:-1, :, 0].sum()) == 0
    if states is not None:
        with pytest.raises(InputError, match=f"within {steps - 1} steps"):
            kitchen.fewest_steps(steps - 1)
        table = Kitchen(layout, horizon=None, soups=1, counter_items=0).table()
        assert len(table) == states
        assert len(table.plan()) == steps
        assert float(table.values(0.97)[0]) == pytest.approx(20 * 0.97 ** (steps - 1), rel=1e-12)
        uniform = torch.full((states, 2, 6), 1 / 6)
        value = float(table.evaluate(table.joint(uniform), 0.97)[0])
        assert value / 20 == pytest.approx(8.1014e-5, rel=1e-4)


HANDED_ON = "XPXXXX\nO1X2 S\nXDXXXX"


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        (HANDED_ON, {"recipe": {"capacity": 1, "cook_time": 1}, "counter_items": 1}),
        (HANDED_ON, {"recipe": {"capacity": 1, "cook_time": 2}, "counter_items": 1, "old_dynamics": True}),
        ("XXPXX\nO1 2T\nXXDSX", {"recipe": {"capacity": 2, "orders": ["tomato tomato", "onion"], "cook_time": [9, 1]}}),
    ],
)
def test_the_bound_is_never_above_the_steps_that_are_needed(layout: str, options: dict[str, Any]) -> None:
    """A soup goes two cells in a step where one cook takes what another puts down."""
    kitchen = Kitchen(layout, horizon=None, soups=1, **{"counter_items": 0, **options})
    table = kitchen.table()
    shortest = table.shortest()
    assert bool((LeastSteps(kitchen.geometry, kitchen.codes)(table.states) <= shortest).all())
    assert len(kitchen.fewest_steps(int(shortest[0]))) == int(shortest[0]) == len(table.plan())


def test_too_many_states_to_tell_apart_are_refused() -> None:
    kitchen = Kitchen("counter_circuit", horizon=None)
    for search in (kitchen.table, lambda: kitchen.fewest_steps(20)):
        with pytest.raises(InputError, match="take 70 bits to tell apart"):
            search()


def test_starts_of_pots_that_start_by_themselves_have_full_soups_only() -> None:
    kitchen = Kitchen("forced_coordination", starts="random", old_dynamics=True)
    state, codes = drawn(kitchen, 2000), kitchen.codes
    for code in torch.cat([state.held, state.things], 1).unique().tolist():
        pot, full = codes.in_pot(code), sum(codes.mixture_of(code)) == 3
        assert pot is None or ((pot[1] is not None and pot[1] > 0) if full else pot[1] is None)
        assert codes.soup_of(code) is None or full


def test_events_have_the_names_of_overcooked() -> None:
    assert len(EVENTS) == len(set(EVENTS)) == 25


def test_interactions_do_not_depend_on_rows() -> None:
    kitchen = Kitchen("counter_circuit_tomato", starts="random")
    state = drawn(kitchen, 300)
    action = torch.randint(6, (300, 2, 1), generator=torch.Generator().manual_seed(0))
    whole = kitchen.transition(state, action, None)
    for row in (0, 7, 299):
        alone = kitchen.transition(tree_map(lambda x, row=row: x[row : row + 1], state), action[row : row + 1], None)
        assert all(torch.equal(a, b[row : row + 1]) for a, b in zip(alone.state, whole.state))
