"""Exact truths of the kitchen: fewest steps to a soup, by search through every state that could lead there sooner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.core import InputError
from envs.kitchen import Kitchen

ROOT = Path(__file__).parents[3]
# Layout, options, and the fewest steps. Nothing limits the counters, but in the last, whose search is the largest.
FEWEST: dict[str, tuple[str, dict[str, Any], int]] = {
    "cramped, 2 onions": ("cramped_room_small", {}, 14),
    "forced, 2 onions": ("forced_coordination_small", {}, 21),
    "cramped": ("cramped_room", {}, 34),
    "cramped, old": ("cramped_room", {"old_dynamics": True}, 33),
    "forced": ("forced_coordination", {"counter_items": 1}, 40),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEWEST)
def test_the_first_soup_takes_so_many_steps_and_no_fewer(name: str) -> None:
    layout, options, steps = FEWEST[name]
    kitchen = Kitchen(layout, horizon=None, **options)
    with pytest.raises(InputError, match="Nothing can be earned"):
        kitchen.fewest_steps(steps - 1)
    plan = kitchen.fewest_steps(steps)
    assert len(plan) == steps
    state, earned = kitchen.first(), []
    for choices in plan:
        state, reward, _ = kitchen.transition(state, torch.tensor(choices).view(1, -1, 1), None)
        earned.append(float(reward[0, 0, 0]))
    assert earned == [0.0] * (steps - 1) + [20.0]


@pytest.mark.slow
@pytest.mark.skipif("CONCORD_OVERCOOKED" not in os.environ, reason="CONCORD_OVERCOOKED names no folder")
@pytest.mark.parametrize("name", FEWEST)
def test_the_package_pays_the_same_for_a_soup_in_so_many_steps(name: str) -> None:
    layout, options, steps = FEWEST[name]
    plan = Kitchen(layout, horizon=None, **options).fewest_steps(steps)
    given = json.dumps([layout, bool(options.get("old_dynamics")), plan])
    command = [sys.executable, "benchmarks/peers/kitchen.py", os.environ["CONCORD_OVERCOOKED"], "--plan", given]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout.splitlines()[-1]) == [0.0] * (steps - 1) + [20.0]


@pytest.mark.slow
def test_states_best_values_and_the_value_of_a_policy_take_ten_seconds_together() -> None:
    torch.set_num_threads(1)
    start = time.process_time()
    table = Kitchen("cramped_room_small", horizon=None, soups=1, counter_items=0).table()
    best = table.values(0.97)
    uniform = table.evaluate(table.joint(torch.full((len(table), 2, 6), 1 / 6)), 0.97)
    assert time.process_time() - start <= 10
    assert len(table) == 46_616
    assert float(best[0]) == pytest.approx(20 * 0.97**13, rel=1e-12)
    assert float(uniform[0]) == pytest.approx(20 * 8.1014e-5, rel=1e-4)


@pytest.mark.slow
def test_twelve_soups_are_the_most_in_400_steps_without_counters() -> None:
    """The twelfth is served in step 34 + 11 · 31 = 375."""
    assert Kitchen("cramped_room", horizon=400).known() == {"soup/without_counters": 240.0}
    table = Kitchen("cramped_room", horizon=None, counter_items=0).table()
    assert table.steps_to(240.0) == 375
    assert float(table.most(400)[0]) == 240.0
