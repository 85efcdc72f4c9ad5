"""Sweeps over several configs, and the best of each side of a comparison."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from envs.core import InputError
from marl.commands.compare import compare_folders, difference, summarize, sweep_metrics
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
    def both(drawn: float, *greedy: float) -> list[Report]:
        exact = Metric.exact
        metrics = [{"return_per_agent": exact(drawn), "mode/return_per_agent": exact(x)} for x in greedy]
        return [Report("r", seed, {}, found, {}) for seed, found in enumerate(metrics)]

    found = sweep_metrics({("side=a",): both(5, 9, 10, 11), ("side=b",): both(4, 7, 7, 7)})
    assert found["paired/side=a-side=b"].value == 1
    gap = found["mode/paired/side=a-side=b"]
    assert gap.value == 3
    assert found["mode/paired/side=a-side=b/low_share"].value == pytest.approx(gap.low / 7)


def test_where_no_seed_varies_nothing_is_known_of_the_error() -> None:
    found = sweep_metrics({("side=a",): reports(0.3, 0.3, 0.3), ("side=b",): reports(0.1, 0.1, 0.1)})
    for name in ("difference/side=a-side=b", "paired/side=a-side=b"):
        assert found[name].value == pytest.approx(0.2)
        assert (found[name].low, found[name].high, found[name].n) == (-math.inf, math.inf, 3)
    assert math.isnan(found["paired/side=a-side=b/in_errors"].value)
    assert found["paired/side=a-side=b/low_share"].value == -math.inf
    rounded = difference(np.array([0.1 + 0.2, 0.3]), np.array([1.0, 1.0]))
    assert rounded.high == math.inf, "what differs by rounding alone does not vary"


def test_the_interval_of_an_interquartile_mean_is_tukeys_and_mclaughlins() -> None:
    found = summarize(np.array([100.0, 1.0, 3.0, 2.0, -50.0]))["iqm"]
    spread = np.std([1, 1, 2, 3, 3], ddof=1)
    half = stats.t.ppf(0.975, 2) * spread * math.sqrt(4 / (3 * 2))
    assert found.value == 2
    assert (found.low, found.high, found.n) == (pytest.approx(2 - half), pytest.approx(2 + half), 5)


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_interquartile_means_of_gaussian_seeds_are_covered_in_19_of_20_cases(seeds: int) -> None:
    draws = np.random.default_rng(0).normal(size=(1000, seeds))
    found = [summarize(row)["iqm"] for row in draws]
    assert 0.92 < np.mean([iqm.low <= 0 <= iqm.high for iqm in found]) < 0.97


def test_seeds_that_tell_no_spread_have_no_interval_of_width_0() -> None:
    few, same, modes = (summarize(np.array(x))["iqm"] for x in ([7.0, 11.0], [7.0] * 5, [7.0, 7.0, 7.0, 7.0, 11.0]))
    assert few.high == modes.high == math.inf
    assert (same.low, same.high, same.n, same.is_exact) == (7, 7, 5, False)
    assert summarize(np.array([7.0, 11.0]))["min"].is_exact


def test_a_seed_that_was_run_twice_is_refused(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 1), ("again", 0)):
        metrics = {"return_per_agent": Metric.exact(seed)}
        Report("marl.algorithms.mappo", seed, {"seed": seed}, metrics).save(tmp_path / name / "report.json")
    (group,) = compare_folders([tmp_path / "one", tmp_path / "two"], "return_per_agent", tmp_path / "c.png")
    assert len(group.values) == 2
    with pytest.raises(InputError, match=r"Each seed counts once; seed 0 .*/again, .*/one\. Name one of these"):
        compare_folders([tmp_path], "return_per_agent", tmp_path / "c.png")


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
