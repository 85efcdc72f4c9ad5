"""Scripted cooks, and the exact best response to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from envs.core import InputError, Streams
from envs.kitchen import EVENTS, Kitchen
from envs.kitchen.partners import SCRIPTS, ScriptedCook
from envs.kitchen.words.errands import Verb
from envs.team import Team
from envs.world import TensorEnv
from tests.envs.kitchen.kitchen_states import named

BOARD: dict[str, Any] = {
    "layout": "XXPXX\nO1 2T\nX   X\nXDRSX",
    "recipe": {"orders": ["onion onion", "tomato"], "one_an_episode": True, "cook_time": 5},
}


def play(kitchen: Kitchen, actor: Any, steps: int, rows: int = 4) -> tuple[Tensor, Tensor]:
    """Soups' worth [E], and events [N,25], of so many steps."""
    env, streams = TensorEnv(kitchen, rows), Streams([1])
    obs, memory = env.reset(0), actor.initial_memory(rows)
    worth, events = torch.zeros(rows), torch.zeros(len(env.spec.agents), len(EVENTS))
    for _ in range(steps):
        decision, memory = actor.act(obs, memory, streams)
        events += kitchen.events(env.rows.state, decision.action).sum(0)
        step = env.step(decision.action)
        obs, worth = step.obs, worth + step.reward[:, 0, 0]
    return worth, events


@pytest.mark.parametrize(
    "options",
    [
        {"layout": "cramped_room_small"},
        {"layout": "forced_coordination_small"},
        pytest.param({"layout": "coordination_ring"}, marks=pytest.mark.slow),
        pytest.param({"layout": "counter_circuit_tomato"}, marks=pytest.mark.slow),
        pytest.param({"layout": "cramped_room", "old_dynamics": True}, marks=pytest.mark.slow),
        pytest.param(BOARD, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_greedy_cooks_serve_soups(options: dict[str, Any]) -> None:
    kitchen = Kitchen(**options)
    worth, _ = play(kitchen, ScriptedCook(kitchen), 100)
    assert bool((worth > 0).all())


def test_specialists_do_their_part_and_no_more() -> None:
    kitchen = Kitchen("cramped_room_small")
    cooks: dict[Any, Any] = {0: ScriptedCook(kitchen, "onions"), 1: ScriptedCook(kitchen, "plates")}
    worth, events = play(kitchen, Team(TensorEnv(kitchen, 1).spec, cooks), 100)
    assert bool((worth >= 40).all())
    names = [f"dish_{what}" for what in ("pickup", "drop")] + ["soup_pickup", "soup_delivery"]
    assert float(events[0, [EVENTS.index(name) for name in names]].sum()) == 0
    names = ["onion_pickup", "onion_drop", "potting_onion"]
    assert float(events[1, [EVENTS.index(name) for name in names]].sum()) == 0


def test_greedy_cooks_take_what_already_lies_ready() -> None:
    """The soup is ready and a dish lies on a counter; cook 0 stands at the dishes."""
    kitchen = Kitchen("cramped_room")
    ready = next(code for code in range(kitchen.codes.count) if is_done(kitchen, code))
    state = named(
        kitchen,
        pose=(((2, 1), 1), ((1, 3), 2)),
        things={(0, 2): ready, (0, 1): kitchen.codes.dish},
    )
    errand = kitchen.errands.list[int(ScriptedCook(kitchen)._choose(state)[0, 0])]
    assert (errand.verb, errand.cell) == (Verb.TAKE, (0, 1))


def is_done(kitchen: Kitchen, code: int) -> bool:
    """True for a pot whose soup of three onions is ready."""
    pot = kitchen.codes.in_pot(code)
    return pot is not None and pot[1] == 20 and kitchen.menu.mixtures[pot[0]] == (3,)


def test_a_kitchen_comes_with_all_scripts_and_knows_its_most_as_it_comes() -> None:
    partners = Kitchen("cramped_room").partners()
    assert {name: partner.script for name, partner in partners.items()} == {name: name for name in SCRIPTS}
    assert Kitchen("cramped_room").known() == {"soup/without_counters": 240.0}
    others: list[dict[str, Any]] = [
        {"recipe": {"cook_time": 5}},
        {"old_dynamics": True},
        {"soups": 3},
        {"starts": "random"},
        {"horizon": 200},
        {"layout": "coordination_ring"},
    ]
    for options in others:
        assert Kitchen(**options).known() == {}, options


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_is_a_table_of_probabilities_that_it_plays_by(script: str) -> None:
    kitchen = Kitchen("cramped_room", starts="random", horizon=None)
    cook = ScriptedCook(kitchen, script)
    obs = TensorEnv(kitchen, 64).reset(3)
    odds = cook.probabilities(kitchen.state_of(obs.state))
    torch.testing.assert_close(odds.sum(-1), torch.ones(64, 2))
    streams, counts = Streams([0]), torch.zeros(64, 2, 6)
    for _ in range(60):
        counts += torch.nn.functional.one_hot(cook.act(obs, None, streams)[0].action.squeeze(-1), 6)
    assert bool((counts[odds == 0] == 0).all())
    assert float((counts / 60 - odds).abs().max()) < 0.35


def test_a_blocker_goes_to_a_pot_and_stays() -> None:
    kitchen = Kitchen("cramped_room")
    env, cook = TensorEnv(kitchen, 1), ScriptedCook(kitchen, "blocker")
    obs = env.reset(0)
    for _ in range(10):
        obs = env.step(cook.act(obs, None, Streams([0]))[0].action).obs
    faced = [kitchen.geometry.faced[pose] for pose in kitchen.state_of(obs.state).pose[0].tolist()]
    assert (0, 2) in faced


def test_an_unknown_script_is_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'greedy'"):
        ScriptedCook(Kitchen(), "gredy")


@pytest.mark.parametrize("script", ["greedy", "plates", "random"])
def test_nothing_beats_the_best_response_to_a_partner(script: str) -> None:
    """In 40 steps of a kitchen with a table, beside the scripts themselves as other partners of the same cook."""
    recipe = {"capacity": 1, "cook_time": 1}
    kitchen = Kitchen("XXPXX\nO1 2D\nXXSXX", recipe=recipe, horizon=None, counter_items=0)
    table = kitchen.table()
    partner = ScriptedCook(kitchen, script).probabilities(table.states).double()
    partner = partner / partner.sum(-1, keepdim=True)
    best, choices = table.best_response(partner, agent=0, steps=40)
    assert choices.shape == (len(table), 40)
    for other in SCRIPTS:
        team = partner.clone()
        odds = ScriptedCook(kitchen, other).probabilities(table.states)[:, 0].double()
        team[:, 0] = odds / odds.sum(-1, keepdim=True)
        assert bool((table.within(table.joint(team), 40) <= best + 1e-9).all()), other
    assert float(best[0]) > 0
