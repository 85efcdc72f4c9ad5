"""What a person reads of an evaluation on the terminal."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from marl.output.report import Metric
from recsys.ope import recipe
from recsys.report.results import apart_from_estimates
from recsys.report.terminal import print_judgments

READ = {"estimator": "sndr", "sentence": "Read sndr: doubly robust."}


def told(tables: dict[str, list[dict[str, Any]]], width: int = 80) -> list[str]:
    printed = io.StringIO()
    print_judgments(tables, Console(file=printed, width=width, soft_wrap=True))
    return printed.getvalue().splitlines()


def change(policy: str, against: str, value: float, half: float, estimator: str = "sndr") -> dict[str, Any]:
    row = {"signal": "click", "policy": policy, "against": against, "estimator": estimator}
    return {**row, "value": value, "low": value - half, "high": value + half, "rows_to_tell": 123_456.0}


def recommended(policy: str, value: float, **more: Any) -> dict[str, Any]:
    row = {"signal": "click", "policy": policy, **READ}
    return {**row, "value": value, "low": value - 0.02, "high": value + 0.02, **more}


def judged(*policies: str) -> list[dict[str, Any]]:
    levels = {"sndr": "RELIABLE", "ips": "CAUTION"}
    return [{"estimate": f"click/{p}/{name}", "verdict": level} for p in policies for name, level in levels.items()]


def test_the_change_comes_first_with_digits_that_tell_policies_apart() -> None:
    tables = {
        "log": [{"signal": "click", "value": 0.1, "low": 0.09, "high": 0.11}],
        "recommendations": [recommended("one", 0.1213), recommended("two", 0.1234)],
        "differences": [
            change("one", "logged", 0.0213, 0.02),
            change("one", "logged", 0.5, 0.2, "ips"),
            change("two", "logged", 0.0234, 0.02),
            change("two", "one", 0.0021, 0.0009),
        ],
        "verdicts": judged("one", "two"),
    }
    assert told(tables) == [
        "click: 0.10000 [0.09000, 0.11000] in the log",
        "policy                            change  would be    by   verdict",
        "one        +0.02130 [+0.00130, +0.04130]   0.12130  sndr  RELIABLE",
        "two        +0.02340 [+0.00340, +0.04340]   0.12340  sndr  RELIABLE",
        "two - one  +0.00210 [+0.00120, +0.00300]            sndr          ",
        "click: one, two. Read sndr: doubly robust.",
        "2 other estimates, with a verdict on each: report.html",
    ]


def test_what_is_not_told_from_none_says_how_many_rows_it_takes() -> None:
    tables = {
        "recommendations": [recommended("new", 0.12)],
        "differences": [change("new", "logged", 0.01, 0.02)],
        "verdicts": judged("new"),
    }
    last = "click, new - logged: a change of this size is told from none by some 120,000 rows like these"
    assert told(tables)[-1] == last
    assert told({**tables, "steps": []})[-1] == last.replace("rows", "sessions")
    tables["differences"][0]["rows_to_tell"] = "inf"  # as JSON has it
    assert last not in told(tables)


def test_the_truth_stands_beside_where_it_is_known() -> None:
    tables = {
        "recommendations": [recommended("new", 0.12, truth=0.125)],
        "differences": [change("new", "logged", 0.05, 0.02)],
        "verdicts": judged("new"),
    }
    assert told(tables)[1].split()[-3:] == ["truth", "by", "verdict"]
    assert told(tables)[2].split()[-4:] == ["0.120", "0.125", "sndr", "RELIABLE"]


def test_where_nothing_is_to_be_read_no_number_is_told() -> None:
    tables = {
        "recommendations": [{"signal": "click", "policy": "new", "estimator": None, "sentence": "Read none."}],
        "differences": [change("new", "logged", 0.0123, 0.01)],
        "verdicts": judged("new"),
    }
    assert told(tables)[2].split() == ["new", "none", "UNRELIABLE"]
    assert "0.0123" not in "".join(told(tables))


def test_differences_of_a_report_that_was_saved_may_be_endless() -> None:
    row = change("new", "logged", 0.5, 0.0) | {"low": "-inf", "high": "inf"}
    tables = {"recommendations": [recommended("new", 0.12)], "differences": [row], "verdicts": []}
    assert "+0.500 [-inf, +inf]" in told(tables)[2]


def test_huge_numbers_are_short() -> None:
    tables = {
        "recommendations": [recommended("new", 1e12)],
        "differences": [change("new", "logged", 2.5e13, 1e12)],
        "verdicts": judged("new"),
    }
    assert "+2.5e+13 [+2.4e+13, +2.6e+13]" in told(tables)[2]


def test_four_policies_and_two_signals_fit_the_screen() -> None:
    policies, signals = ("popularity", "exploring", "two-tower", "newest"), ("click", "watch_seconds")
    tables: dict[str, list[dict[str, Any]]] = {"log": [], "recommendations": [], "differences": [], "verdicts": []}
    for signal in signals:
        for policy in policies:
            tables["recommendations"].append(recommended(policy, 0.1) | {"signal": signal})
            tables["differences"].append(change(policy, "logged", 0.0123, 0.01) | {"signal": signal})
            tables["differences"].append(change(policy, policies[0], 0.0123, 0.01) | {"signal": signal})
            tables["verdicts"] += [
                row | {"estimate": row["estimate"].replace("click", signal)} for row in judged(policy)
            ]
    lines = told(tables)
    assert len(lines) < 24
    assert max(map(len, lines[: 2 * 10])) <= 80


def segment(name: str, rows: int, verdict: str, adjusted: float | None) -> dict[str, Any]:
    row = {"segment": name, "signal": "click", "policy": "new", "estimator": "sndr", "rows": rows, "value": 0.12}
    row |= {"low": 0.1, "high": 0.14, "low_all": 0.08, "high_all": 0.16, "difference": 0.02, "adjusted": adjusted}
    return {**row, "verdict": verdict}


def test_of_segments_those_that_may_be_read_are_told_and_the_others_are_counted() -> None:
    tables = {
        "recommendations": [recommended("new", 0.12)],
        "segments": [
            segment("tab=1", 900, "RELIABLE", 0.03),
            segment("tab=2", 300, "CAUTION", None),
            segment("tab=3", 20, "UNRELIABLE", None),
        ],
    }
    said = told(tables)
    assert any(line.startswith("tab=1") and "0.03" in line for line in said)
    assert any(line.startswith("tab=2") and "not tested" in line for line in said)
    assert not any("tab=3" in line for line in said)
    assert said[-1] == "segments: click, new (sndr): 1 not to be read; all are in the table segments"


def test_between_policies_that_are_read_by_two_estimators_the_difference_of_these_is_told() -> None:
    tables = {
        "recommendations": [recommended("one", 0.1), {**recommended("two", 0.2), "estimator": "ips"}],
        "differences": [
            change("two", "one", 0.1, 0.02),
            change("two", "one", 0.12, 0.05, "ips"),
            change("two", "one", 0.1, 0.05, "ips - sndr"),
            change("two", "one", 0.3, 0.9, "dr"),
        ],
    }
    (line,) = (line for line in told(tables) if line.startswith("two - one"))
    assert line.split()[3:7] == ["+0.100", "[+0.050,", "+0.150]", "ips"]


def test_facts_of_the_log_are_told_apart_from_estimates_and_weights() -> None:
    names = ("rows", "click/logged", "click/new/ips", "click/new/ess", "click/events", "ess", "max_weight")
    apart = apart_from_estimates({name: Metric.exact(1.0) for name in names})
    assert list(apart) == ["rows", "click/events"]


def test_a_sweep_names_the_page_of_each_point_and_notes_are_told() -> None:
    printed = io.StringIO()
    tables = {
        "recommendations": [recommended("one", 0.1, point="data.actions=2")],
        "verdicts": judged("one"),
        "notes": [{"note": "Every row counts as independent.", "point": "data.actions=2"}],
    }
    recipe.show(tables, Console(file=printed, width=80, soft_wrap=True))
    lines = printed.getvalue().splitlines()
    assert "1 other estimates, with a verdict on each: data.actions=2/report.html" in lines
    assert "Every row counts as independent." in lines
