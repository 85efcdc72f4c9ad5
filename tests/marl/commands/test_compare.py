"""Sweeps over several configs, and the best of each side of a comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.core import InputError
from marl.commands.compare import sweep_metrics
from marl.commands.run import with_configs
from marl.commands.sweep import run_sweep
from marl.output.report import Metric, Report


def reports(*returns: float) -> list[Report]:
    return [Report("r", seed, {}, {"return_per_agent": Metric.exact(x)}, {}) for seed, x in enumerate(returns)]


def test_differences_seed_by_seed_and_the_best_of_each_side() -> None:
    found = sweep_metrics(
        {
            ("side=a", "rate=1"): reports(1, 2, 3),
            ("side=a", "rate=2"): reports(11, 12, 13),
            ("side=b", "rate=1"): reports(10, 10.5, 12),
            ("side=b", "rate=2"): reports(0, 0, 0),
        }
    )
    gap = found["best/paired/side=a-side=b"]
    assert gap.value == pytest.approx(3.5 / 3)
    assert gap.low < gap.value < gap.high
    assert found["best/paired/side=a-side=b/low_share"].value == pytest.approx(gap.low / (32.5 / 3))
    assert found["best/side=a/return_per_agent/min"].value == 11
    # Gaps of 1, 1.5 and 1: their mean is 7 standard errors, each half a unit over three.
    assert found["best/paired/side=a-side=b/in_errors"].value == pytest.approx(7)


def test_most_probable_actions_are_compared_too() -> None:
    def both(drawn: float, greedy: float) -> list[Report]:
        metrics = {"return_per_agent": Metric.exact(drawn), "mode/return_per_agent": Metric.exact(greedy)}
        return [Report("r", seed, {}, metrics, {}) for seed in range(2)]

    found = sweep_metrics({("side=a",): both(5, 9), ("side=b",): both(4, 7)})
    assert found["paired/side=a-side=b"].value == 1
    assert found["mode/paired/side=a-side=b"].value == 2
    assert found["mode/paired/side=a-side=b/low_share"].value == pytest.approx(2 / 7)


def test_configs_are_compared_under_their_names(tmp_path: Path) -> None:
    for name in ("one", "two", "deeper/one"):
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text("recipe: marl.algorithms.mappo")
    one, two, other = (tmp_path / f"{name}.yaml" for name in ("one", "two", "deeper/one"))
    assert with_configs([one], [{"seed": 1}])[1] == [{"seed": 1}]
    raws, points = with_configs([one, two], [{"seed": 1}, {"seed": 2}])
    assert list(raws) == ["one", "two"]
    assert points[2] == {"config": "two", "seed": 1}
    with pytest.raises(InputError, match=r"In mappo: Unknown key policy\.graph"):
        run_sweep(
            {
                name: {"recipe": f"marl.algorithms.{name}", "env": {"world": "envs.games:climbing"}}
                for name in ("mappo", "bnpg")
            },
            [{"config": "bnpg", "policy.graph.kind": "empty"}, {"config": "mappo", "policy.graph.kind": "empty"}],
            tmp_path / "out",
            None,
        )
    with pytest.raises(InputError, match="different names"):
        with_configs([one, other], [{}])
