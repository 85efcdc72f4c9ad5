"""What commands print is readable on any terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from marl.commands.printing import print_report
from marl.output.report import Metric, Report
from marl.output.tables import print_metrics

LONG = "policy.network.kind=attention,critic.sees=agent/return_per_agent"


def sweep() -> Report:
    metrics = {f"{LONG}/{stat}": Metric(-21.5, -22.25, -20.5, 5) for stat in ("min", "median", "iqm", "max")}
    return Report("marl.algorithms.mappo", [0, 1], {}, metrics, {"points": []})


@pytest.mark.parametrize(("width", "lines"), [(80, 2), (200, 1)])
def test_names_stay_whole_at_any_width(width: int, lines: int) -> None:
    printed = io.StringIO()
    print_report(sweep(), Path("nowhere"), Console(file=printed, width=width, soft_wrap=True))
    title, *rows = printed.getvalue().splitlines()
    assert title == "nowhere"
    assert len(rows) == 2 * lines
    assert rows[lines].split()[0] == LONG
    numbers = " ".join(rows[lines:]).split()[1:]
    assert numbers == ["-21.50", "[-22.25,", "-20.50]", "-21.50", "-21.50", "-21.50", "5"]
    assert {len(row) for row in rows[lines - 1 :: lines]} == {len(rows[-1])}  # columns are aligned


def test_a_sweep_says_what_its_intervals_do_not_hold() -> None:
    exact, gap = Metric.exact(1.0), Metric(1.0, 0.5, 1.5, 2)
    names = [f"{label}/return_per_agent/{stat}" for label in ("a", "best/a") for stat in ("min", "median", "max")]
    found = dict.fromkeys(names, exact) | {
        f"{x}/return_per_agent/iqm": Metric(1.0, -1.0, 3.0, 2) for x in ("a", "best/a")
    }
    found |= {"difference/a-b": gap, "difference/a-c": gap}
    printed = io.StringIO()
    report = Report("marl.algorithms.mappo", [0, 1], {}, found, {"points": []})
    print_report(report, Path("nowhere"), Console(file=printed, width=120, soft_wrap=True))
    assert "too few seeds" in printed.getvalue()
    assert "best/: chosen by the same seeds that judge it" in printed.getvalue()
    assert "these 2 intervals are not adjusted" in printed.getvalue()


def test_an_exact_number_has_no_interval() -> None:
    printed = io.StringIO()
    print_metrics({"env_steps": Metric.exact(2048)}, "run", Console(file=printed, width=80, soft_wrap=True))
    assert printed.getvalue().splitlines()[-1].split() == ["env_steps", "2,048"]


def test_samples_without_spread_are_no_exact_number() -> None:
    printed = io.StringIO()
    print_metrics({"return": Metric.mean([0.0] * 256)}, "run", Console(file=printed, width=80, soft_wrap=True))
    assert printed.getvalue().splitlines()[-1].split() == ["return", "0", "no", "spread", "in", "256", "256"]
