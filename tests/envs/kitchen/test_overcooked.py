"""The kitchen does what the package overcooked 0.2.1 does (recorded by benchmarks/peers/kitchen.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.kitchen import EVENTS, Kitchen, State, layout_names
from envs.kitchen.views.overcooked import OvercookedFeatures, Planes

ROOT = Path(__file__).parents[3]
RECORDED = np.load(ROOT / "tests" / "fixtures" / "kitchen.npz")
SETTINGS = sorted({name.partition("/")[0] for name in RECORDED})
PAIRS = [setting for setting in SETTINGS if f"{setting}/planes" in RECORDED]


def kitchen_of(setting: str) -> Kitchen:
    layout, _, dynamics = setting.rpartition("-")
    return Kitchen(layout, old_dynamics=dynamics == "old")


def state_of(setting: str, when: str) -> State:
    pose, held, things = (torch.from_numpy(RECORDED[f"{setting}/{when}/{k}"]).long() for k in State._fields[:3])
    nothing = torch.zeros_like(pose[:, 0])
    return State(pose, held, things, nothing, nothing)


def test_all_layouts_are_recorded() -> None:
    """Nine layouts, the six of them with only soups of full pots with old dynamics too; for two cooks what they see."""
    assert len(SETTINGS) == 15
    assert {setting.rpartition("-")[0] for setting in SETTINGS} == set(layout_names())
    assert all(len(RECORDED[f"{setting}/action"]) == 1000 for setting in SETTINGS)
    assert len(PAIRS) == 13
    assert all(len(RECORDED[f"{setting}/planes"]) == 100 for setting in PAIRS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_is_that_of_the_package(setting: str) -> None:
    kitchen, state = kitchen_of(setting), state_of(setting, "before")
    action = torch.from_numpy(RECORDED[f"{setting}/action"]).long().unsqueeze(-1)
    result = kitchen.transition(state, action, None)
    hands = kitchen.hands(state, action.squeeze(-1))
    for name in ("pose", "held", "things"):
        assert (getattr(result.state, name).numpy() == RECORDED[f"{setting}/{name}"]).all(), name
    assert (hands.worth.numpy() == RECORDED[f"{setting}/worth"]).all()
    assert (result.reward[..., 0].numpy() == RECORDED[f"{setting}/worth"].sum(1, keepdims=True)).all()
    assert (result.reward[..., 1].numpy() == RECORDED[f"{setting}/shaping"]).all()
    events = np.unpackbits(RECORDED[f"{setting}/events"], axis=-1)[..., : len(EVENTS)]
    assert (kitchen.events(state, action).numpy() == events).all()


@pytest.mark.parametrize("setting", PAIRS)
def test_features_and_planes_are_those_of_the_package(setting: str) -> None:
    kitchen, state = kitchen_of(setting), state_of(setting, "viewed")
    features = OvercookedFeatures(kitchen.geometry, kitchen.codes)(state)
    assert (features.numpy() == RECORDED[f"{setting}/features"]).all()
    planes = Planes(kitchen.geometry, kitchen.codes)(state, 400 - torch.arange(len(state.pose)))
    assert (planes.numpy() == RECORDED[f"{setting}/planes"]).all()


def test_every_recorded_layout_meets_soups_and_collisions() -> None:
    """A recording in which nothing happens would prove nothing."""
    for setting in SETTINGS:
        events = np.unpackbits(RECORDED[f"{setting}/events"], axis=-1)[..., : len(EVENTS)].sum((0, 1))
        for name in ("soup_delivery", "soup_pickup", "potting_onion", "dish_pickup", "onion_drop"):
            assert events[EVENTS.index(name)] >= 5, (setting, name)


@pytest.mark.slow
@pytest.mark.skipif("CONCORD_OVERCOOKED" not in os.environ, reason="CONCORD_OVERCOOKED names no folder")
def test_25_000_transitions_of_each_layout_are_those_of_the_package() -> None:
    command = [sys.executable, "benchmarks/peers/kitchen.py", os.environ["CONCORD_OVERCOOKED"]]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    results = [json.loads(line) for line in answer.stdout.splitlines()]
    assert len(results) == len(SETTINGS) == 15
    for result in results:
        print(json.dumps(result))
        assert result["drawn"] >= 20_000
        assert result["played"] >= 5_000
        assert result["viewed"] >= (2_000 if "planes" in result["wrong"] else 0)
        assert set(result["wrong"].values()) == {0}, result
        pair = len(Kitchen(result["layout"]).layout.starts) == 2
        assert ("planes" in result["wrong"] and "features" in result["wrong"]) == pair
        rare = {branch for branch, count in result["branches"].items() if count < 200}
        assert rare == impossible(result["layout"], result["dynamics"]), (result["layout"], rare)


def impossible(layout: str, dynamics: str) -> set[str]:
    """Branches that cannot be met: each must be named here, or be met 200 times."""
    tomatoes, pair = layout == "counter_circuit_tomato", layout != "four_cooks"
    branches = {"useless_onion_potting", "useless_tomato_potting"}  # something worth serving can always still be made
    if not tomatoes:
        branches |= {event for event in EVENTS if "tomato" in event} | {"catastrophic_onion_potting"}
    if not pair:
        branches |= {event for event in EVENTS if event.startswith("useful")}
    if dynamics == "old":
        branches |= {"hands: started"}
    if layout.startswith(("forced", "asymmetric")):
        branches |= {"would meet", "would swap"}  # each cook has a room of its own
    return branches
