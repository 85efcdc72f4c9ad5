"""Trained Concord policies as targets: of `recsys.learn`, and of a recipe that plays in a world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from small_logs import ACTIONS, frame, log_of, written
from torch import Tensor

from envs.core import Continuous, Discrete, EnvSpec, InputError, Observation
from envs.world import Transition, World
from marl.commands.run import run_training
from marl.config.catalog import find_config
from marl.config.load import read_yaml, resolve
from marl.output.report import Report
from marl.training.run import Run
from recsys.policies.from_run import load, trained

SEEN = ["score0", "score1"]
LEARN = {**read_yaml(find_config("ope/learn")), "train": {"env_steps": 5_000}, "intervals": {"method": "t"}}
SYNTHETIC = {"recipe": "recsys.ope", "data": {"format": "synthetic"}, "intervals": {"method": "t"}}


class Shop(World[Tensor]):
    """Customers of two features to whom one thing is shown; the sign of the first tells what pays."""

    shows_clock = False

    def __init__(self, actions: int = ACTIONS, clerks: int = 1, reals: bool = False):
        space = Continuous((-1.0,), (1.0,)) if reals else Discrete((actions,))
        self.spec = EnvSpec(
            agents=tuple(f"clerk{i}" for i in range(clerks)),
            kind=(0,) * clerks,
            channels=("sale",),
            observation_sizes=(2,) * clerks,
            actions=(space,) * clerks,
            state_size=2,
            horizon=1,
        )

    def initial_noise(self, num: int, generator: torch.Generator) -> Tensor:
        return torch.randn(num, 2, generator=generator)

    def initial(self, noise: Tensor) -> Tensor:
        return noise

    def noise(self, num: int, generator: torch.Generator) -> None:
        return None

    def transition(self, state: Tensor, action: Tensor, noise: None) -> Transition:
        pays = (action[..., 0] == (state[:, :1] > 0).to(action.dtype)).to(state.dtype)
        return Transition(state, pays.unsqueeze(-1))

    def observe(self, state: Tensor) -> Observation:
        clerks = len(self.spec.agents)
        seen = state.unsqueeze(1).expand(-1, clerks, -1)
        return Observation(seen, state, torch.ones(len(state), clerks, dtype=torch.bool))


def shop_run(folder: Path, steps: int = 64, policy: dict[str, Any] | None = None, **args: Any) -> Path:
    raw = {
        "recipe": "marl.algorithms.mappo",
        "env": {"world": f"{__name__}:Shop", "args": args, "num_envs": 256},
        "learner": {"steps": 1, "minibatches": 1, "learning_rate": 0.02},
        "policy": policy or {"network": {"hidden": [8]}},
        "train": {"env_steps": steps},
        "evaluation": {"episodes": 2, "film_episodes": 0},
        "device": "cpu",
    }
    run_training(resolve(raw, {}), folder)
    return folder


def evaluated(folder: Path, raw: dict[str, Any], **overrides: Any) -> Report:
    return run_training(resolve(raw, {key.replace("__", "."): value for key, value in overrides.items()}), folder)


def table_config(tmp_path: Path, table: pl.DataFrame) -> dict[str, Any]:
    path = written(table, tmp_path / "log.parquet")
    columns = {"action": "item", "rewards": ["click"], "propensity": "p"}
    data = {"format": "table", "path": str(path), "columns": columns, "actions": ACTIONS}
    return {"recipe": "recsys.ope", "data": data, "intervals": {"method": "t"}}


def test_what_was_learned_is_evaluated_later_on_the_rows_it_has_not_seen_or_on_other_logs(tmp_path: Path) -> None:
    before = evaluated(tmp_path / "mine", LEARN).metrics
    target = f"run:{tmp_path / 'mine'}"
    again = evaluated(tmp_path / "again", SYNTHETIC, policy__target=["uniform", target])
    for name in ("ips", "dr", "truth"):
        assert again.metrics[f"click/mine/{name}"] == before[f"click/learned/{name}"], name
    assert again.metrics["rows"] == before["rows"]
    assert "Only rows count that no policy here was learned from." in {row["note"] for row in again.tables["notes"]}
    fresh = evaluated(tmp_path / "fresh", SYNTHETIC, seed=1, policy__target=target).metrics
    assert fresh["rows"].value == 20_000
    assert fresh["click/mine/truth"] == before["click/learned/truth"]
    estimate = fresh["click/mine/dr"]
    assert abs(estimate.value - fresh["click/mine/truth"].value) < 2 * (estimate.high - estimate.low)


def test_runs_that_learned_from_different_parts_of_a_log_have_no_rows_in_common(tmp_path: Path) -> None:
    targets = []
    for held_out in (0.4, 0.6):
        evaluated(tmp_path / str(held_out), LEARN, held_out=held_out)
        targets.append(f"run:{tmp_path / str(held_out)}")
    with pytest.raises(InputError, match="learned from different parts of the synthetic log"):
        evaluated(tmp_path / "both", SYNTHETIC, policy__target=targets)
    found = evaluated(tmp_path / "both", SYNTHETIC, seed=1, policy__target=targets)  # new to both
    assert {"click/0.4/dr", "click/0.6/dr"} <= set(found.metrics)


def test_a_policy_trained_in_a_world_is_a_target_by_the_columns_it_sees(tmp_path: Path) -> None:
    shop = shop_run(tmp_path / "shop", steps=15_000)
    table = frame(500)
    raw = table_config(tmp_path, table)
    raw["policy"] = {"target": ["uniform", f"run:{shop}"], "observation": SEEN}
    found = evaluated(tmp_path / "run", raw)
    (rows,) = log_of(table).with_context(SEEN).chunks()
    policy = trained(log_of(table).with_context(SEEN), str(shop), SEEN)
    chances = policy.distribution(rows)
    assert chances[rows.context["score0"] > 0.1, 1].mean() > 0.6  # it has learned, and sees the right column
    assert chances[rows.context["score0"] < -0.1, 0].mean() > 0.6
    weight = policy.probability(rows) / table["p"].to_numpy()
    wanted = (weight * table["click"].to_numpy()).mean()
    assert found.metrics["click/shop/ips"].value == pytest.approx(wanted, rel=1e-12)
    x = torch.tensor(table.select(SEEN).to_numpy(), dtype=torch.float32)
    seen = Observation(x.unsqueeze(1), x, torch.ones(500, 1, dtype=torch.bool))
    direct = load(str(shop)).policy(seen, None)[0].log_probs()[:, 0].detach().exp().numpy()
    np.testing.assert_allclose(chances, direct, atol=1e-6)


@pytest.mark.parametrize(
    ("args", "policy", "observation", "told"),
    [
        ({"actions": 3}, None, SEEN, "it chooses among 3 actions, the catalog has 4"),
        ({"clerks": 2}, None, SEEN, "it decides for 2 agents, and a row of a log has one action"),
        ({"reals": True}, None, SEEN, "must be one choice among finitely many here; it is real numbers"),
        ({}, {"network": {"kind": "gru", "hidden": [8]}}, SEEN, "it remembers, and a row of a log stands alone"),
        ({}, None, [*SEEN, "score2"], "it sees 2 numbers, policy.observation names 3"),
        ({}, None, [], "name the 2 columns of the log that it sees"),
        ({}, None, ["score0", "score9"], "Missing columns: 'score9'"),
    ],
)
def test_policies_that_do_not_fit_are_refused(
    args: dict[str, Any], policy: Any, observation: list[str], told: str, tmp_path: Path
) -> None:
    shop = shop_run(tmp_path / "shop", policy=policy, **args)
    raw = table_config(tmp_path, frame(50))
    raw["policy"] = {"target": f"run:{shop}", "observation": observation}
    with pytest.raises(InputError, match=told):
        evaluated(tmp_path / "run", raw)
    assert not (tmp_path / "run").exists()


def test_folders_without_a_policy_are_told(tmp_path: Path) -> None:
    def asked(target: str, **overrides: Any) -> Report:
        return evaluated(tmp_path / "run", SYNTHETIC, policy__target=target, **overrides)

    with pytest.raises(InputError, match="holds no run"):
        asked(f"run:{tmp_path / 'nothing'}")
    Run.create(tmp_path / "begun", resolve(LEARN, {})).take()
    with pytest.raises(InputError, match="no checkpoint yet"):
        asked(f"run:{tmp_path / 'begun'}")
    evaluated(tmp_path / "ope", SYNTHETIC, policy__target="uniform")
    with pytest.raises(InputError, match="so there is no actor to play"):
        asked(f"run:{tmp_path / 'ope'}")
    with pytest.raises(InputError, match="observation is for target=run:DIR"):
        asked("uniform", policy__observation=["x0"])


def test_what_was_learned_elsewhere_must_have_the_same_actions_and_columns(tmp_path: Path) -> None:
    evaluated(tmp_path / "mine", LEARN, train__env_steps=600)
    target = f"run:{tmp_path / 'mine'}"
    with pytest.raises(InputError, match="chooses among 10 actions, the catalog has 7"):
        evaluated(tmp_path / "run", SYNTHETIC, policy__target=target, data__synthetic__actions=7)
    with pytest.raises(InputError, match=r"learned from 5 columns, x0, .*; policy.observation names 2"):
        evaluated(tmp_path / "run", SYNTHETIC, policy__target=target, policy__observation=["x0", "x1"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="both go by the name mine"):
        evaluated(tmp_path / "run", SYNTHETIC, policy__target=[target, f"run:{tmp_path / 'other' / 'mine'}"])
