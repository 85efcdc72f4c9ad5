"""The kitchen in words, and errands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import Decision, Describes, InputError, Observation, tree_map
from envs.kitchen import ACTIONS, Kitchen, State, layout_names
from envs.kitchen.words.errands import FAR, Verb
from envs.world import TensorEnv
from tests.envs.kitchen.kitchen_states import drawn

STAY = ACTIONS.index("stay")
BOARD: dict[str, Any] = {
    "layout": "XXPXX\nO1 2T\nX   X\nXDRSX",
    "recipe": {"orders": ["onion onion", "tomato"], "one_an_episode": True},
}


def row_of(state: State, row: int) -> State:
    return tree_map(lambda leaf: leaf[row : row + 1], state)


def test_a_kitchen_describes_itself() -> None:
    assert isinstance(Kitchen(), Describes)


@pytest.mark.parametrize("options", [{"layout": name} for name in layout_names()] + [BOARD, {"soups": 3}], ids=str)
def test_the_map_read_back_is_the_state(options: dict[str, Any]) -> None:
    kitchen = Kitchen(**options, starts="random", horizon=None)
    state = drawn(kitchen, 10)
    obs = kitchen.observe(state)
    for row in range(10):
        text = kitchen.words(obs, row).split("\n\n")[0]
        assert all(torch.equal(a, b) for a, b in zip(kitchen.read_map(text), row_of(state, row)))


@pytest.mark.slow
@pytest.mark.parametrize("name", layout_names())
def test_10_000_maps_read_back_are_the_states(name: str) -> None:
    kitchen = Kitchen(name, starts="random", horizon=None)
    state = drawn(kitchen, 10_000)
    obs = kitchen.observe(state)
    for row in range(10_000):
        text = kitchen.words(obs, row).split("\n\n")[0]
        assert all(torch.equal(a, b) for a, b in zip(kitchen.read_map(text), row_of(state, row)))


def test_words_by_hand() -> None:
    kitchen = Kitchen("cramped_room_small")
    env = TensorEnv(kitchen, 1)
    said = kitchen.words(env.reset(0), 0)
    assert "X  X  P  X  X\nO  .  .  ^1 O\nX  ^0 .  .  X\nX  D  X  S  X" in said
    assert "Cook 0 is at row 2, column 1, facing north (floor), holding nothing." in said
    assert "The pot at row 0, column 2 is empty." in said
    assert "Ordered, and worth: 2 onions (20)." in said
    plans = kitchen.plans(env.reset(0), 0)
    assert plans[0] == [*ACTIONS, "wait", "take an onion at row 1, column 0", "take a clean dish at row 3, column 1"]


NO_MAP = {
    "another tile": ("P", "X"),
    "a missing row": ("\nX  D  X  S  X", ""),
    "a cook twice": ("^1", "^0"),
    "a cook on the wall": ("O  ", "^0 "),
    "a strange thing": ("^1", "^1q"),
    "an arrow alone": ("^1", "^"),
    "a line too many": ("S  X", "S  X\norder: 7"),
}


def test_what_is_no_map_is_refused_and_all_words_can_be_read_back() -> None:
    kitchen = Kitchen("cramped_room_small")
    said = kitchen.words(TensorEnv(kitchen, 1).reset(0), 0)
    assert all(torch.equal(a, b) for a, b in zip(kitchen.read_map(said), kitchen.first()))
    drawing = said.split("\n\n")[0]
    for old, new in NO_MAP.values():
        assert old in drawing
        with pytest.raises(InputError, match="no map of this kitchen"):
            kitchen.read_map(drawing.replace(old, new, 1))
    with pytest.raises(InputError, match="no map of this kitchen"):
        kitchen.read_map("")


def test_a_cook_is_not_told_how_many_soups_were_served() -> None:
    kitchen = Kitchen("cramped_room", soups=2)
    obs = TensorEnv(kitchen, 1).reset(0)
    assert "Served: 0" in kitchen.words(obs, 0)
    assert "served" not in kitchen.words(obs, 0, 0).lower().replace("to be served", "")


def test_long_plans_are_refused_at_once_and_briefly() -> None:
    kitchen = Kitchen("cramped_room")
    obs = TensorEnv(kitchen, 1).reset(0)
    for plan in ("." * 100_000 + "x", ". " * 50_000, "x" * 100_000):
        answer = kitchen.parse(f"cook_0: {plan}\ncook_1: wait", obs, 0)
        assert isinstance(answer, str)
        assert len(answer) < 500


def test_a_plan_in_words_is_a_decision_and_others_are_refused_with_a_reason() -> None:
    kitchen = Kitchen("cramped_room")
    obs = TensorEnv(kitchen, 2).reset(0)
    decision = kitchen.parse("cook_0: take an onion at row 1, column 0\n- Cook_1 = NORTH.", obs, 1)
    assert isinstance(decision, Decision)
    onions = next(i for i, e in enumerate(kitchen.errands.list) if e.verb == Verb.TAKE and e.cell == (1, 0))
    assert decision.latent.tolist() == [[onions, -1]]
    assert decision.action.tolist() == [[[ACTIONS.index("north")], [ACTIONS.index("north")]]]
    refused = {
        "cook_0: fly\ncook_1: wait": "cook_0 cannot 'fly' now. It can: north",
        "cook_0: take an onion at row 1, column 4\ncook_1: wait": "Did you mean 'take an onion at row 1, column 0'",
        "cook_0: wait": "No plan for cook_1",
        "cook_0: wait\ncook_0: wait": "cook_0 has two plans",
        "cook_0: wait\ncook_7: wait": "There is no 'cook_7'; the cooks are cook_0, cook_1",
        "wait": "Expected lines 'cook_0: plan'",
        "": "No plan for cook_0, cook_1",
    }
    for text, reason in refused.items():
        answer = kitchen.parse(text, obs, 0)
        assert isinstance(answer, str)
        assert reason in answer


@pytest.mark.parametrize("options", [{"layout": "counter_circuit"}, {"layout": "four_cooks"}, BOARD], ids=str)
def test_words_and_features_agree_on_what_is_out_of_sight(options: dict[str, Any]) -> None:
    """What one cook is told is what lies within its radius, and nothing else."""
    kitchen = Kitchen(**options, starts="random", radius=2, horizon=None)
    state = drawn(kitchen, 20)
    obs = kitchen.observe(state)
    geometry = kitchen.geometry
    blind = Observation(obs.agent, torch.full_like(obs.state, torch.nan), obs.alive)
    hidden = 0
    for row in range(20):
        for cook, pose in enumerate(state.pose[row].tolist()):
            scene, (own, _) = kitchen.scene(blind, row, cook), geometry.poses[pose]

            def near(cell: tuple[int, int], own: tuple[int, int] = own) -> bool:
                return max(abs(cell[0] - own[0]), abs(cell[1] - own[1])) <= 2

            for slot, cell in enumerate(geometry.slots):
                assert scene.things[slot] == (int(state.things[row, slot]) if near(cell) else None)
                hidden += not near(cell)
            for other, at in enumerate(state.pose[row].tolist()):
                seen = near(geometry.poses[at][0])
                assert scene.poses[other] == (at if seen else None)
                assert scene.held[other] == (int(state.held[row, other]) if seen else None)
            boards = kitchen.layout.cells("R")
            assert scene.order == (int(state.order[row]) if not boards or any(map(near, boards)) else None)
            said = kitchen.words(blind, row, cook)
            assert said.count("?") - 1 == sum(code is None for code in scene.things), "and once in the legend"
    assert hidden


def test_plans_offer_nothing_out_of_sight() -> None:
    kitchen = Kitchen("counter_circuit", starts="random", radius=1)
    obs = TensorEnv(kitchen, 30).reset(0)
    for row in range(30):
        for cook, plans in enumerate(kitchen.plans(obs, row)):
            scene = kitchen.scene(obs, row, cook)
            unseen = [kitchen.geometry.slots[slot] for slot, code in enumerate(scene.things) if code is None]
            assert not [plan for plan in plans for r, c in unseen if plan.endswith(f"at row {r}, column {c}")]


def test_words_for_one_cook_need_features() -> None:
    kitchen = Kitchen("cramped_room", view="planes")
    obs = TensorEnv(kitchen, 1).reset(0)
    assert "Cook 1" in kitchen.words(obs, 0)
    with pytest.raises(InputError, match="view=features"):
        kitchen.words(obs, 0, 1)


def done_in(kitchen: Kitchen, state: State, cook: int, errand: Tensor, limit: int = 60) -> tuple[Tensor, State]:
    """Steps until the errand of one cook is done, while the others stay; `limit` where it is not."""
    rows, cooks = state.pose.shape
    steps, going = torch.full((rows,), limit), torch.ones(rows, dtype=torch.bool)
    every = torch.zeros(rows, cooks, dtype=torch.int64)
    every[:, cook] = errand
    for step in range(1, limit):
        steer = kitchen.errands.steer(state, every)
        choice = torch.full((rows, cooks), STAY)
        choice[:, cook] = torch.where(going, steer.choice[:, cook], STAY)
        state = kitchen.transition(state, choice.unsqueeze(-1), None).state
        last = going & steer.last[:, cook]
        steps[last], going = step, going & ~last
        if not bool(going.any()):
            break
    return steps, state


@pytest.mark.parametrize("layout", ["cramped_room", "forced_coordination", "counter_circuit_tomato", "four_cooks"])
def test_every_open_errand_is_done_in_its_fewest_steps_while_the_others_wait(layout: str) -> None:
    """The fewest: by breadth-first search over poses around the others, which this repeats in the plainest way."""
    kitchen = Kitchen(layout, starts="random", horizon=None, counter_items=2)
    rows = 8 if layout == "four_cooks" else 40
    state = drawn(kitchen, rows)
    errands, steps = kitchen.errands.open(state), kitchen.errands.steps(state)
    done = 0
    for cook in range(state.pose.shape[1]):
        row, number = errands[:, cook].nonzero(as_tuple=True)
        some = number > 0
        row, number = row[some], number[some]
        before = tree_map(lambda leaf, row=row: leaf[row], state)
        took, after = done_in(kitchen, before, cook, number)
        assert torch.equal(took, steps[row, cook, number].long())
        for i, (r, n) in enumerate(zip(row.tolist(), number.tolist())):
            assert int(took[i]) == fewest(kitchen, row_of(state, r), cook, n)
        # What the errand says has happened: hands changed, or the pot was started.
        changed = (before.held[:, cook] != after.held[:, cook]) | (before.things != after.things).any(1)
        assert bool(changed.all())
        done += len(row)
    assert done > 50


def fewest(kitchen: Kitchen, state: State, cook: int, errand: int) -> int:
    """Steps to face the errand's cell and interact, by trying everything."""
    geometry = kitchen.geometry
    closed = {geometry.poses[p][0] for i, p in enumerate(state.pose[0].tolist()) if i != cook}
    poses, steps = {int(state.pose[0, cook])}, 1
    while True:
        if any(geometry.faced[pose] == kitchen.errands.list[errand].cell for pose in poses):
            return steps
        then = {geometry.after(pose, way) for pose in poses for way in range(4)}
        into = {p for p in then if geometry.poses[p][0] in closed}
        turned = {4 * (p // 4) + way for p in poses for way in range(4)} if into else set()
        poses, steps = poses | (then - into) | turned, steps + 1


def test_an_errand_that_cannot_be_done_stays_and_is_not_open() -> None:
    kitchen = Kitchen("cramped_room", horizon=None)
    state = kitchen.first()
    serve = next(i for i, errand in enumerate(kitchen.errands.list) if errand.verb == Verb.SERVE)
    steer = kitchen.errands.steer(state, torch.tensor([[serve, 0]]))
    assert steer.choice.tolist() == [[STAY, STAY]]
    assert steer.open.tolist() == [[False, True]]
    assert steer.last.tolist() == [[False, False]]


def test_a_cook_in_the_only_way_closes_it() -> None:
    kitchen = Kitchen("XXPXX\nO1 2D\nXXSXX", horizon=None)
    assert float(kitchen.errands.steps(kitchen.first())[0, 0, _take(kitchen, (1, 4))]) >= FAR
    assert int(kitchen.errands.steps(kitchen.first())[0, 0, _take(kitchen, (1, 0))]) == 2


def _take(kitchen: Kitchen, cell: tuple[int, int]) -> int:
    return next(i for i, e in enumerate(kitchen.errands.list) if e.verb == Verb.TAKE and e.cell == cell)


@pytest.mark.parametrize("layout", ["cramped_room", "forced_coordination"])
def test_a_plan_is_the_cooks_own_errand_by_its_own_hands_and_its_first_step(layout: str) -> None:
    kitchen = Kitchen(layout, horizon=None, starts="random")
    obs = TensorEnv(kitchen, 30).reset(0)
    found = [kitchen.plans(obs, row) for row in range(30)]
    for row in range(30):
        state = kitchen.state_of(obs.state[row : row + 1])
        for cook in range(2):
            numbers = kitchen.errands.open(state)[0, cook].nonzero().squeeze(1).tolist()
            assert len(found[row][cook]) == 6 + len(numbers)
            for plan, number in zip(found[row][cook][6:], numbers, strict=True):
                decision = kitchen.parse(
                    "\n".join(f"cook_{c}: {plan if c == cook else 'stay'}" for c in range(2)), obs, row
                )
                assert not isinstance(decision, str)
                assert decision.latent[0].tolist() == [number if c == cook else -1 for c in range(2)]
                steer = kitchen.errands.steer(state, torch.full((1, 2), number))
                assert int(decision.action[0, cook]) == int(steer.choice[0, cook])
                if plan.startswith("put "):
                    held = kitchen._speech.language.thing(int(state.held[0, cook]))
                    assert held in plan


def test_situations_are_told_apart_by_cook_and_by_what_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envs.kitchen.words.speech.LATEST", 3)
    kitchen = Kitchen("cramped_room", horizon=None, starts="random", radius=1)
    obs = TensorEnv(kitchen, 12).reset(1)
    for row in range(12):
        fresh = Kitchen("cramped_room", horizon=None, starts="random", radius=1)
        assert kitchen.plans(obs, row) == fresh.plans(obs, row)
    # The state is the same and a cook's view another: what it may plan follows what it sees.
    blind = Observation(obs.agent.flip(0), obs.state, obs.alive)
    alone = [kitchen.plans(Observation(obs.agent.flip(0), obs.state.flip(0), obs.alive), row) for row in range(12)]
    assert [kitchen.plans(blind, row) for row in range(12)] == alone
    assert len(kitchen._speech._latest) <= 3
