"""Details of the kitchen: each test stands for a mistake that others would let pass."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import Decision, InputError
from envs.kitchen import EVENTS, Kitchen, State
from envs.kitchen.bound import LeastSteps
from envs.tabular import Table, fewest_steps
from tests.envs.kitchen.kitchen_states import drawn, named

NORTH, SOUTH, EAST, WEST, STAY, INTERACT = range(6)
BOARD: dict[str, Any] = {
    "layout": "XXPXX\nO1 2T\nX   X\nXDRSX",
    "recipe": {"orders": ["onion onion", "tomato"], "value": [7, 3], "one_an_episode": True},
}


def both(*choices: int) -> Tensor:
    return torch.tensor(choices).view(1, -1, 1)


# ------------------------------------------------------------------ tables


def ladder() -> Table:
    """Two agents of two choices; 0 -> 1 only by (0, 1), which earns 1; in 1, (1, 0) earns 10 and ends; others stay."""
    return Table(
        states=(torch.arange(2),),
        steps=torch.tensor([0, 1]),
        successor=torch.tensor([[0, 1, 0, 0], [1, 1, 2, 1]]),
        reward=torch.tensor([[0.0, 1, 0, 0], [0, 0, 10, 0]], dtype=torch.float64),
        choices=2,
        agents=2,
    )


def test_a_table_of_two_states_by_hand() -> None:
    table = ladder()
    assert [table.choices_of(j) for j in range(4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert table.values(0.5).tolist() == [6, 10]
    assert [table.most(steps).tolist() for steps in (0, 1, 2, 3)] == [[0, 0], [1, 10], [11, 10], [11, 10]]
    assert (table.steps_to(1.0), table.steps_to(2.0), table.steps_to(11.0), table.steps_to(11.0, limit=2)) == (
        1,
        2,
        2,
        2,
    )
    with pytest.raises(InputError, match="11 cannot be earned within 1 steps from the start; the most is 1"):
        table.steps_to(11.0, limit=1)
    assert table.shortest().tolist() == [1, 1]
    assert table.plan() == [(0, 1)]
    policy = torch.tensor([[[0.75, 0.25], [0.5, 0.5]], [[0.5, 0.5], [0.2, 0.8]]])
    joint = table.joint(policy)
    torch.testing.assert_close(joint, torch.tensor([[0.375, 0.375, 0.125, 0.125], [0.1, 0.4, 0.1, 0.4]]))
    # Start: 0.375 earns 1 and goes on to a state in which 0.1 earns 10.
    torch.testing.assert_close(table.within(joint, 1), torch.tensor([0.375, 1.0]).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        table.within(joint, 2), torch.tensor([0.375 * 2 + 0.625 * 0.375, 1.9]).double(), rtol=1e-6, atol=0
    )
    later = 1 / (1 - 0.9 * 0.5)
    first = 0.375 * (1 + 0.5 * later) / (1 - 0.625 * 0.5)
    torch.testing.assert_close(table.evaluate(joint, 0.5), torch.tensor([first, later]).double(), rtol=1e-6, atol=0)
    for sums in (joint * 0.5, joint * 2):
        with pytest.raises(InputError, match="Probabilities"):
            table.within(sums, 1)
    for discount in (1.0, -0.1):
        with pytest.raises(InputError, match="A discount is"):
            table.values(discount)


def test_a_plan_ends_with_what_earns_in_the_last_state() -> None:
    table = ladder()
    table.reward[0, 1] = 0.0
    assert table.plan() == [(0, 1), (1, 0)]
    assert table.shortest().tolist() == [2, 1]


@pytest.mark.parametrize("agent", [0, 1])
def test_a_best_response_beside_a_partner_by_hand(agent: int) -> None:
    """Partner is 0 with 0.8 in the first state, 0.3 in the second; the own row of `partners` says nothing."""
    partners = torch.tensor([[[0.8, 0.2]] * 2, [[0.3, 0.7]] * 2])
    partners[:, agent] = torch.tensor([0.9, 0.1])
    value, choices = ladder().best_response(partners, agent, 2)
    # In state 1, joint (1, 0) earns 10; in state 0, joint (0, 1) earns 1 and goes on.
    ends = 10 * (0.3 if agent == 0 else 0.7)
    go = 0.2 if agent == 0 else 0.8
    expected = [go * (1 + ends) + (1 - go) * go, ends + (1 - ends / 10) * ends]
    torch.testing.assert_close(value, torch.tensor(expected).double(), rtol=1e-6, atol=0)
    assert choices.tolist() == ([[0, 0], [1, 1]] if agent == 0 else [[1, 1], [0, 0]])


def test_choices_of_a_best_response_are_by_steps_left() -> None:
    """With one step left 1 earns 1 now; with two left 0 leads to 10."""
    table = Table(
        (torch.arange(2),),
        torch.tensor([0, 1]),
        torch.tensor([[1, 2], [2, 2]]),
        torch.tensor([[0.0, 1], [10, 0]], dtype=torch.float64),
        2,
        1,
    )
    value, choices = table.best_response(torch.full((2, 1, 2), 0.5), 0, 2)
    assert choices.tolist() == [[1, 0], [0, 0]]
    assert value.tolist() == [10, 10]


TINY: dict[str, Any] = {
    "layout": "XXPXX\nO1 2D\nXXSXX",
    "recipe": {"capacity": 1, "cook_time": 1},
    "horizon": None,
    "soups": 1,
    "counter_items": 0,
}


def test_a_table_of_another_channel_and_its_limit() -> None:
    kitchen = Kitchen(**TINY)
    table = kitchen.table()
    assert len(kitchen.table(most=len(table))) == len(table)
    with pytest.raises(InputError, match=f"More than {len(table) - 1:,} states"):
        kitchen.table(most=len(table) - 1)
    shaping = kitchen.table(channel=1)
    assert len(shaping.plan()) == 5, "an onion is in the pot after the fifth step, 3 for one of two cooks"
    assert float(shaping.reward.max()) == 2.5
    assert len(kitchen.fewest_steps(10, channel=1)) == 5
    state, plan = kitchen.first(), table.plan()
    for choices in plan:
        state, reward, _ = kitchen.transition(state, both(*choices), None)
    assert float(reward[0, 0, 0]) == 20.0, "the plan of a table, played, ends with a soup"


def test_worlds_with_too_many_states_for_a_key_are_refused() -> None:
    with pytest.raises(InputError, match="bits to tell apart"):
        Kitchen("counter_circuit", horizon=None).table(most=10)


def test_a_search_says_nothing_of_more_steps_than_its_limit() -> None:
    kitchen = Kitchen(**TINY)
    least = len(kitchen.table().plan())
    args = (kitchen, kitchen.first(), kitchen.digits)
    with pytest.raises(InputError, match=f"within {least - 1} steps"):
        fewest_steps(*args, limit=least - 1)
    assert len(fewest_steps(*args, limit=least)) == least


# ------------------------------------------------------------------- bound

BOUNDED: dict[str, dict[str, Any]] = {
    "tiny": {"layout": TINY["layout"], "recipe": {"capacity": 2, "cook_time": 1, "orders": ["onion onion"]}},
    "one order of two": {"layout": TINY["layout"], "recipe": {"capacity": 2, "cook_time": 2, "orders": ["onion"]}},
    "two orders": {
        "layout": TINY["layout"],
        "recipe": {"capacity": 2, "orders": ["onion onion", "onion"], "cook_time": [1, 30]},
    },
    "old": {"layout": TINY["layout"], "recipe": {"capacity": 2, "cook_time": 2}, "old_dynamics": True},
}


@pytest.mark.parametrize("name", BOUNDED)
def test_no_state_needs_fewer_steps_than_the_bound_says(name: str) -> None:
    kitchen = Kitchen(**BOUNDED[name], horizon=None, soups=1, counter_items=1)
    table = kitchen.table()
    bound = LeastSteps(kitchen.geometry, kitchen.codes)
    left = table.shortest()
    can = left.isfinite()
    assert bool(can.any())
    assert bool((bound(table.states)[can] <= left[can]).all())
    assert bound.from_start() <= float(left[0])


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("four_cooks", {"recipe": {"capacity": 4, "cook_time": 2}}),
        ("four_cooks", {"recipe": {"capacity": 4, "cook_time": 2}, "old_dynamics": True}),
        ("XXPXPXX\nO1 2 3D\nX     S\nXXXXXXX", {"recipe": {"orders": ["onion onion", "onion"], "cook_time": 3}}),
        ("coordination_ring", {}),
    ],
)
def test_a_step_lowers_the_bound_by_one_at_most_however_many_cooks(layout: str, options: dict[str, Any]) -> None:
    kitchen = Kitchen(layout, starts="random", horizon=None, **options)
    bound = LeastSteps(kitchen.geometry, kitchen.codes)
    state = drawn(kitchen, 20_000)
    choice = torch.randint(6, (len(state.pose), state.pose.shape[1], 1), generator=torch.Generator().manual_seed(0))
    choice = torch.where(torch.rand(choice.shape, generator=torch.Generator().manual_seed(1)) < 0.5, INTERACT, choice)
    then, reward, _ = kitchen.transition(state, choice, None)
    served = reward[:, 0, 0] > 0
    assert int(served.sum()) > 20
    assert bool((bound(state)[served] == 1).all())
    assert bool((bound(state) <= 1 + bound(then))[~served].all())


def test_numbers_between_codes_are_no_state() -> None:
    kitchen = Kitchen("cramped_room", soups=2)
    code = kitchen.observe(kitchen.first()).state
    assert int(kitchen.state_of(code).served) == 0
    for column in range(code.shape[1]):
        wrong = code.clone()
        wrong[:, column] += 0.01
        with pytest.raises(InputError):
            kitchen.state_of(wrong)


def test_no_warning_where_the_shortest_of_two_orders_fits_or_starts_are_anywhere() -> None:
    two = {"orders": ["onion onion", "onion"], "cook_time": [30, 1]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Kitchen("cramped_room", recipe=two, horizon=20)
        Kitchen("cramped_room", starts="random", horizon=20)
        Kitchen("cramped_room", horizon=26)
    with pytest.warns(UserWarning, match="at least 26"):
        Kitchen("cramped_room", horizon=25)


# ----------------------------------------------------------------- the world


def test_two_soups_served_in_one_step_count_twice() -> None:
    kitchen = Kitchen("XXPXX\nO1 2D\nXSXSX", soups=2, horizon=None)
    soup = kitchen.codes.soup(kitchen.menu.mixtures.index((3,)))
    state = named(kitchen, pose=(((1, 1), SOUTH), ((1, 3), SOUTH)), held=(soup, soup))
    state, reward, over = kitchen.transition(state, both(INTERACT, INTERACT), None)
    assert over is not None
    assert (int(state.served[0]), bool(over.all()), float(reward[0, 0, 0])) == (2, True, 40.0)


def test_the_order_that_was_drawn_is_the_one_that_pays_and_has_events() -> None:
    kitchen = Kitchen(**BOARD, horizon=None)
    two, tomato = (kitchen.codes.soup(kitchen.menu.mixtures.index(m)) for m in ((2, 0), (0, 1)))
    paid = []
    for order in (0, 1):
        for soup in (two, tomato):
            state = named(kitchen, pose=(((2, 3), SOUTH), ((1, 1), NORTH)), held=(soup, 0), order=order)
            paid.append(float(kitchen.transition(state, both(INTERACT, STAY), None).reward[0, 0, 0]))
    assert paid == [7.0, 0.0, 0.0, 3.0]


def test_events_of_potting_are_those_of_the_order_that_was_drawn() -> None:
    kitchen = Kitchen(**BOARD, horizon=None)
    for order, expected in ((0, True), (1, False)):
        state = named(kitchen, pose=(((1, 2), NORTH), ((1, 1), NORTH)), held=(1, 0), order=order)
        found = kitchen.events(state, both(INTERACT, STAY))[0, 0]
        assert bool(found[EVENTS.index("viable_onion_potting")]) == expected
        assert bool(found[EVENTS.index("catastrophic_onion_potting")]) != expected


def test_shaping_that_is_given_is_what_is_earned() -> None:
    kitchen = Kitchen("cramped_room", shaping={"potting": 7}, horizon=None)
    state = named(kitchen, pose=(((1, 2), NORTH), ((1, 3), NORTH)), held=(1, 0))
    assert kitchen.transition(state, both(INTERACT, STAY), None).reward[0, :, 1].tolist() == [7.0, 0.0]


def test_a_drawn_order_has_no_table() -> None:
    for call in (lambda: Kitchen(**BOARD).table(), lambda: Kitchen(**BOARD).fewest_steps(3)):
        with pytest.raises(InputError, match="no one start"):
            call()


def test_numbers_by_order_leave_other_soups_at_their_usual_time() -> None:
    kitchen = Kitchen("cramped_room", recipe={"orders": ["onion onion", "onion"], "cook_time": [3, 5]})
    assert dict(zip(kitchen.menu.mixtures, kitchen.menu.times)) == {(1,): 5, (2,): 3, (3,): 20}


def test_drawn_starts_of_old_dynamics_have_no_full_pot_that_is_off() -> None:
    kitchen = Kitchen("cramped_room", starts="random", old_dynamics=True, recipe={"cook_time": 2})
    full = kitchen.codes.pot(kitchen.menu.mixtures.index((3,)), None)
    pots = drawn(kitchen, 5000).things[:, 0]
    assert full not in pots.tolist()
    assert kitchen.codes.pot(kitchen.menu.mixtures.index((2,)), None) in pots.tolist()


def test_every_cook_starts_where_it_can_walk_to() -> None:
    kitchen = Kitchen("forced_coordination", starts="random")
    pose = drawn(kitchen, 500).pose
    for cook, region in enumerate(kitchen.layout.regions):
        assert {kitchen.geometry.floor[c] for c in (pose[:, cook] // 4).tolist()} == region


def test_drawn_starts_draw_every_order_alike() -> None:
    share = drawn(Kitchen(**BOARD, starts="random"), 20_000).order.float().mean()
    assert float(share) == pytest.approx(0.5, abs=0.02)


# ------------------------------------------------------------------ features


def test_ways_lead_to_the_nearest_dispenser_of_each_kind() -> None:
    kitchen = Kitchen("cramped_room", horizon=None)
    state = named(kitchen, pose=(((1, 1), NORTH), ((1, 3), NORTH)))
    seen = kitchen.observe(state).agent[0]
    onion = slice(6 + 8, 6 + 8 + 2)
    torch.testing.assert_close(seen[:, onion], torch.tensor([[0, -1 / 5], [0, 1 / 5]]))


def test_others_are_seen_from_the_next_cook_on() -> None:
    """Cook 2 of four sees cook 3 first, then 0 and 1."""
    kitchen = Kitchen("four_cooks", horizon=None)
    state = kitchen.first()
    cell = torch.tensor([kitchen.geometry.poses[p][0] for p in state.pose[0].tolist()])
    seen = kitchen.observe(state).agent[0]
    see, scale = kitchen._see, max(kitchen.geometry.height, kitchen.geometry.width)
    begin, width = sum(see._widths[:3]), see._widths[3]
    for cook in range(4):
        for place, other in enumerate((cook + 1 + i) % 4 for i in range(3)):
            at = begin + place * width
            torch.testing.assert_close(seen[cook, at : at + 2], (cell[other] - cell[cook]) / scale)


# ------------------------------------------------------------------- errands


def test_steer_is_not_open_where_another_cook_stands_in_the_only_way() -> None:
    kitchen = Kitchen("XXPXX\nO1 2D\nXXSXX", horizon=None)
    dish = next(i for i, e in enumerate(kitchen.errands.list) if e.cell == (1, 4))
    steer = kitchen.errands.steer(kitchen.first(), torch.tensor([[dish, 0]]))
    assert (steer.open[0, 0].item(), steer.choice[0, 0].item(), steer.last[0, 0].item()) == (False, STAY, False)


# --------------------------------------------------------------------- words


def told(kitchen: Kitchen, state: State, cook: int | None = None) -> str:
    return kitchen.words(kitchen.observe(state), 0, cook)


def test_sentences_by_hand() -> None:
    kitchen = Kitchen("cramped_room", horizon=None, soups=3, recipe={"cook_time": 20})
    codes, three = kitchen.codes, kitchen.menu.mixtures.index((3,))
    pose = (((2, 1), SOUTH), ((1, 3), EAST))
    state = named(kitchen, pose=pose, held=(1, 0), things={(0, 2): codes.pot(three, 5), (2, 0): codes.dish})
    state = state._replace(served=torch.tensor([1]))
    said = told(kitchen, state)
    assert "The pot at row 0, column 2 holds 3 onions and cooks; 15 more steps." in said
    assert "On the counters: a clean dish at row 2, column 0." in said
    assert "Cook 0 is at row 2, column 1, facing south (dish dispenser), holding an onion." in said
    assert said.endswith("To be served: 3. Served: 1.")
    assert "You are at row 1, column 3 (cook 1), facing east (onion dispenser), holding nothing." in told(
        kitchen, state, 1
    )
    state.things[0, 0] = codes.pot(three, 20)
    assert "holds 3 onions; the soup is ready." in told(kitchen, state)
    state.things[0, 0] = codes.pot(three, None)
    assert "holds 3 onions and is not cooking." in told(kitchen, state)


def test_tomatoes_and_the_order_that_was_drawn_in_words() -> None:
    kitchen = Kitchen(**BOARD, horizon=None)
    pot = kitchen.codes.pot(kitchen.menu.mixtures.index((1, 2)), None)
    for order, wanted in enumerate(("2 onions (7)", "1 tomato (3)")):
        said = told(kitchen, named(kitchen, things={(0, 2): pot}, order=order))
        assert f"Ordered, and worth: {wanted}." in said
        assert "holds 1 onion and 2 tomatoes and is not cooking" in said


def test_a_pot_out_of_sight_is_told_so() -> None:
    kitchen = Kitchen("counter_circuit", horizon=None, radius=1)
    state = kitchen.first()
    for cook, pose in enumerate(state.pose[0].tolist()):
        (row, column), said = kitchen.geometry.poses[pose][0], told(kitchen, state, cook)
        for r, c in kitchen.geometry.pots:
            near = max(abs(r - row), abs(c - column)) <= 1
            what = "is empty" if near else "is out of sight"
            assert f"The pot at row {r}, column {c} {what}." in said


def test_plans_name_what_is_in_the_hands_of_who_has_them() -> None:
    kitchen = Kitchen("cramped_room", horizon=None)
    state = named(kitchen, pose=(((1, 1), NORTH), ((1, 3), NORTH)), held=(1, kitchen.codes.dish))
    first, second = kitchen.plans(kitchen.observe(state), 0)
    assert "put an onion in the pot at row 0, column 2" in first
    assert "put down an onion on the counter at row 0, column 1" in first
    assert "put down a clean dish on the counter at row 0, column 3" in second


def test_each_cooks_plan_becomes_its_own_step_in_its_own_row() -> None:
    kitchen = Kitchen("cramped_room", horizon=None, starts="random")
    state = drawn(kitchen, 2)
    pose = [[4 * kitchen.geometry.floor_number[1, 1] + 0, 4 * kitchen.geometry.floor_number[1, 3] + 0]] * 2
    hands = [[0, 0], [1, 0]]
    obs = kitchen.observe(
        State(torch.tensor(pose), torch.tensor(hands), torch.zeros_like(state.things), state.order, state.served)
    )
    text = "cook_0: put   an onion in the pot at row 0, column 2\ncook_1: take an onion at row 1, column 4"
    decision = kitchen.parse(text, obs, 1)
    assert isinstance(decision, Decision)
    assert decision.action.flatten().tolist() == [EAST, EAST]
    refused = kitchen.parse(text, obs, 0)
    assert isinstance(refused, str)
    assert refused.startswith("cook_0 cannot")
    one = kitchen.parse("cook_0: wait\ncook_1: take an onion at row 1, column 4", obs, 0)
    assert isinstance(one, Decision)
    assert one.action.flatten().tolist() == [STAY, EAST]


def test_the_step_of_a_plan_does_not_tell_where_a_cook_out_of_sight_stands() -> None:
    """Cook 0's way around the ring is the same wherever the other is, so long as it does not see it."""
    kitchen = Kitchen("counter_circuit", horizon=None, radius=1)
    answers: list[list[tuple[str, int]]] = []
    for cell in kitchen.geometry.floor:
        if max(abs(cell[0] - 1), abs(cell[1] - 1)) > 1:
            state = named(kitchen, pose=(((1, 1), SOUTH), (cell, NORTH)))
            obs = kitchen.observe(state)
            answers.append([])
            for plan in kitchen.plans(obs, 0)[0]:
                decision = kitchen.parse(f"cook_0: {plan}\ncook_1: stay", obs, 0)
                assert isinstance(decision, Decision), decision
                answers[-1].append((plan, int(decision.action[0, 0, 0])))
    assert len(answers) > 10
    assert all(answer == answers[0] for answer in answers)


def test_a_cook_out_of_sight_stands_in_no_way() -> None:
    """Others out of sight are taken to be where no cook's way is, even one in the first cell of the floor."""
    kitchen = Kitchen("XXPXXXX\nD  1  O\nXXXXX X\nXXXXX2S\nXXXXXXX", horizon=None, radius=1)
    plans = kitchen.plans(kitchen.observe(kitchen.first()), 0)[0]
    assert "take a clean dish at row 1, column 0" in plans


def test_three_rooms_that_share_counters_are_one_team() -> None:
    """The third cook joins two rooms that share nothing with each other."""
    kitchen = Kitchen("XOXXXXX\nX1X3X2D\nXXXPXSX", horizon=None)
    assert len(kitchen.layout.teams()) == 1
