"""MAPPO and IPPO, from config to report, against games whose best values are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from marl.config.load import load_recipe, resolve
from marl.training.run import Run

pytestmark = pytest.mark.slow

SEEDS = range(3)


def returns(
    folder: Path, world: str, env_steps: int, *, args: dict[str, Any] | None = None, **changes: Any
) -> list[float]:
    """Mean return of an agent, actions sampled, for each of the seeds."""
    raw = {
        "recipe": "marl.algorithms.mappo",
        "env": {"world": f"envs.games:{world}", "args": args or {}, "num_envs": 32},
        "learner": {"steps": 16, "learning_rate": 0.005},
        "train": {"env_steps": env_steps},
        "evaluation": {"film_episodes": 0},
    }
    found = []
    for seed in SEEDS:
        config = resolve(raw, {"seed": seed, **changes})
        run = Run.create(folder / f"seed_{seed}", config)
        found.append(load_recipe(config.recipe).recipe(config, run).metrics["return_per_agent"].value)
    return found


def test_ippo_names_what_it_sees(tmp_path: Path) -> None:
    assert min(returns(tmp_path, "Identity", 30_000, args={"agents": 2}, **{"critic.sees": "agent"})) > 0.98


@pytest.mark.parametrize("sees", ["agent", "state"])
def test_ippo_and_mappo_find_the_better_convention(sees: str, tmp_path: Path) -> None:
    assert min(returns(tmp_path, "coordination", 30_000, **{"critic.sees": sees})) > 2.42


def test_mappo_ends_at_an_equilibrium_of_the_climbing_game(tmp_path: Path) -> None:
    """Mostly at 7: independent agents must leave 11 alone while their teammates still explore."""
    found = returns(tmp_path, "climbing", 50_000)
    print(f"climbing, {len(found)} seeds: {', '.join(f'{value:.2f}' for value in found)}")
    assert all(min(abs(value - stop) for stop in (5, 7, 11)) < 0.3 for value in found)
