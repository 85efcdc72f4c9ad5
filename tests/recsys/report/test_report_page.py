"""The page of a report: whole, alone, with every number, and with nothing in it that data could have put there."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from marl.__main__ import main
from marl.commands.run import run_training
from marl.config.load import resolve
from marl.output.report import Metric, Report
from recsys.logs.log import Chunk
from recsys.report import write_page
from recsys.report.charts import Bar, axis_of
from recsys.report.markup import decimals_for, fixed, rounded

NASTY = ["<script>alert('x')</script>", "\"quoted\" & 'both'", "日本語 / ünïcödé", "a=b=c", "", "\x00\x07", "</td>"]
SIGNALS = ("<b>click</b>/rate", 'watch "s"')
SEGMENT = 'seg<ment="x"'
LEFT_OUT = {"snips", "ncis", "dm", "sndr", "dros", "capped_ips", "capped_dr", "switch_dr", "subgaussian_ips"}
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, numbers and text."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def sections(self) -> list[str]:
        return [str(found["id"]) for found in self.all("section")]

    @property
    def numbers(self) -> list[float]:
        return [float(str(found["value"])) for found in self.all("data")]


def greedy(rows: Chunk) -> np.ndarray:
    """Always the rarest action."""
    return np.tile([0.0, 0.0, 1.0], (len(rows), 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a log of nasty names with 30 segments, two signals and two policies, one of them hopeless."""
    place, rng, n = tmp_path_factory.mktemp("page"), np.random.default_rng(0), 3000
    chances = np.array([0.79, 0.2, 0.01])
    names, action = [f"s{i}" for i in range(23)] + NASTY, rng.choice(3, n, p=chances)
    columns = {
        SIGNALS[0]: rng.random(n) < 0.2,
        SIGNALS[1]: rng.lognormal(3, 1, n),
        "item": action,
        "p": chances[action],
    }
    columns |= {SEGMENT: [names[i] for i in rng.integers(len(names), size=n)], "user": rng.integers(500, size=n)}
    pl.DataFrame(columns).write_parquet(place / "log.parquet")
    named = {"action": "item", "rewards": list(SIGNALS), "propensity": "p", "user": "user"}
    data = {"format": "table", "path": str(place / "log.parquet"), "columns": named, "segments": [SEGMENT]}
    raw = {"recipe": "recsys.ope", "data": data, "policy": {"target": ["uniform", f"{__name__}:greedy"]}}
    run_training(resolve(raw, {"intervals.replications": 100}), place / "run")
    return place / "run"


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return Report.load(folder / "report.json")


@pytest.fixture(scope="module")
def small(report: Report) -> Report:
    """The same with two estimators and two segments."""
    metrics = {key: m for key, m in report.metrics.items() if key.rpartition("/")[2] not in LEFT_OUT}
    segments = [row for row in report.tables["segments"] if row["segment"].endswith(("=s1", "=s2"))]
    return replace(report, metrics=metrics, tables={**report.tables, "segments": segments})


def page_of(report: Report, place: Path) -> Page:
    write_page(report, place / "page.html")
    return Page((place / "page.html").read_text(encoding="ascii"))


def with_tables(report: Report, **tables: Any) -> Report:
    return replace(report, tables={**report.tables, **tables})


EXTRA: dict[str, list[dict[str, Any]]] = {
    "recommendations": [
        {"signal": SIGNALS[0], "policy": "uniform", "estimator": "dr", "sentence": "Read dr <now>."},
        {"signal": SIGNALS[0], "policy": "greedy", "estimator": None, "sentence": "Read none."},
    ],
    "differences": [
        {"signal": SIGNALS[0], "policy": "uniform", "against": "greedy", "estimator": "ips"}
        | {"value": 0.0123, "low": -0.2, "high": "inf"}
    ],
    "calibration": [{"pairs": 10, "predicted": 0.2, "shown": 0.25, "standard_error": 0.01}],
    "sensitivity": [{"policy": "uniform", "signal": SIGNALS[0], "odds": 2.0, "low": 0.1, "high": 0.3}],
    "random_slice": [
        {"signal": SIGNALS[0], "policy": "uniform", "estimator": "ips", "source": "log", "value": 0.1}
        | {"low": 0.0, "high": 0.2}
    ],
}


def test_the_page_is_well_formed_and_needs_nothing_else(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert "://" not in text
    assert not page.all("script") + page.all("link") + page.all("img") + page.all("iframe") + page.all("image")
    for _, attributes in page.elements:
        assert not {"src", "srcset", "xlink:href"} & attributes.keys()
        assert str(attributes.get("href", "#")).startswith("#")
        assert not any(name.startswith("on") for name in attributes)
    (style,) = page.text[page.text.index(next(t for t in page.text if "color-scheme" in t)) :][:1]
    assert "@import" not in style
    assert "url(" not in style
    assert {found["href"] for found in page.all("a")} == {f"#{name}" for name in page.sections}
    assert len(text) < 500_000


def test_names_are_text_whatever_they_say(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    said = " ".join(page.text)
    for name in (*SIGNALS, *NASTY[:4], "</td>", SEGMENT, "(empty)", "��"):
        assert name in said
    known = {
        "b",
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "h3",
        "p",
        "nav",
        "a",
        "section",
        "div",
        "span",
    }
    known |= {
        "table",
        "thead",
        "tbody",
        "tfoot",
        "tr",
        "th",
        "td",
        "data",
        "details",
        "summary",
        "figure",
        "figcaption",
    }
    assert {tag for tag, _ in page.elements} <= known | {"svg", "path", "circle", "rect", "text"}


def test_every_estimate_and_interval_is_on_the_page(folder: Path, report: Report) -> None:
    numbers = set(Page((folder / "report.html").read_text()).numbers)
    estimates = {key: metric for key, metric in report.metrics.items() if metric.low < metric.high}
    assert len(estimates) == 2 * (1 + 2 * 12)
    for key, metric in estimates.items():
        assert {metric.value, metric.low, metric.high} <= numbers, key


def test_each_row_has_its_verdict_and_what_is_unreliable_is_struck(folder: Path, report: Report) -> None:
    text = (folder / "report.html").read_text()
    part = text[text.index('id="estimates"') :].partition("<section")[0]
    part = "".join(folded.partition("</details>")[0] for folded in part.split("<details")[1:])
    verdicts = [row["verdict"] for row in report.tables["verdicts"]]
    assert verdicts.count("UNRELIABLE") >= 10
    for level in set(verdicts):
        rows = [row for row in part.split("<tr") if row.startswith((f' class="{level}"', f' class="{level} '))]
        assert len(rows) == verdicts.count(level)
        assert all(f'class="chip {level}">{level}<' in row for row in rows)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "tr.UNRELIABLE data { text-decoration: line-through; }" in style


def test_there_is_a_section_exactly_where_its_table_is(small: Report, tmp_path: Path) -> None:
    always = ["estimates", "weights", "overlap", "segments", "verdicts", "notes", "settings", "versions"]
    whole = page_of(small, tmp_path).sections
    assert whole == ["headline", "differences", *always]
    tables = {name: rows for name, rows in small.tables.items() if name not in ("recommendations", "differences")}
    small = replace(small, tables=tables)
    assert page_of(small, tmp_path).sections == always
    section = {"recommendations": "headline"}
    for name, rows in EXTRA.items():
        found = page_of(with_tables(small, **{name: rows}), tmp_path).sections
        assert set(found) - set(always) == {section.get(name, name)}
    order = ["headline", "differences", "estimates", "weights", "overlap", "segments", "calibration", "sensitivity"]
    full = page_of(with_tables(small, **EXTRA), tmp_path)
    assert full.sections == [*order, "random_slice", "verdicts", "notes", "settings", "versions"]
    assert full.open == []
    for table in ("weights", "overlap", "segments", "notes"):
        fewer = replace(small, tables={name: rows for name, rows in small.tables.items() if name != table})
        assert page_of(fewer, tmp_path).sections == [name for name in always if name != table]


def test_the_recommended_estimator_comes_first_is_shaded_and_is_that_of_segments(
    report: Report, tmp_path: Path
) -> None:
    write_page(with_tables(report, **EXTRA), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    headline = text[text.index('id="headline"') : text.index('id="differences"')]
    assert "Read dr &lt;now&gt;." in headline
    assert repr(report.metrics[f"{SIGNALS[0]}/uniform/dr"].value) in headline
    assert ">none<" in headline
    (chosen,) = [row for row in text.split("<tr") if row.startswith(' class="') and "chosen" in row.split(">")[0]]
    assert ">dr<" in chosen
    assert "(dr, 30 segments)" in text
    assert "(ips, 30 segments)" in text  # of policies without a recommendation


def test_segments_are_told_with_their_change(report: Report, tmp_path: Path) -> None:
    rows = [row for row in report.tables["segments"] if row["estimator"] == "sndr" and row["policy"] == "uniform"]
    page = page_of(report, tmp_path)
    assert rows
    assert {float(row["difference"]) for row in rows} <= set(page.numbers)


def test_what_is_to_be_read_stands_above_the_fold_alone(report: Report, tmp_path: Path) -> None:
    page_of(report, tmp_path)
    text = (tmp_path / "page.html").read_text()
    rows = report.tables["recommendations"]
    (read,) = (row["estimator"] for row in rows if (row["signal"], row["policy"]) == (SIGNALS[0], "uniform"))
    for section in ("estimates", "differences"):
        begins = text.index(f'id="{section}"')
        fold = text.index("<details", begins)
        assert f">{read}<" in text[begins:fold]
        assert ">subgaussian_dr<" not in text[begins:fold]
        assert ">subgaussian_dr<" in text[fold:]


def test_the_page_is_the_same_from_memory_from_its_file_and_from_the_command(
    folder: Path, report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = (folder / "report.html").read_bytes()
    inside = with_tables(report, **EXTRA)
    inside.metrics["nothing/uniform/ips"] = Metric(math.nan, -math.inf, math.inf)
    inside.save(tmp_path / "report.json")
    write_page(inside, tmp_path / "a.html")
    write_page(Report.load(tmp_path / "report.json"), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    (folder / "report.html").unlink()
    monkeypatch.setattr(sys, "argv", ["concord", "render", str(folder)])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert (folder / "report.html").read_bytes() == written


def test_endless_and_missing_numbers_are_drawn_without_a_place(report: Report, tmp_path: Path) -> None:
    metrics = dict(report.metrics)
    metrics[f"{SIGNALS[0]}/uniform/ips"] = Metric(0.2, -math.inf, 1.0)
    metrics[f"{SIGNALS[0]}/uniform/snips"] = Metric(math.nan, -math.inf, math.inf)  # nothing is known: nothing is drawn
    page = page_of(replace(report, metrics=metrics), tmp_path)
    drawn = " ".join(str(value) for _, found in page.elements for name, value in found.items() if name != "value")
    assert "nan" not in drawn
    assert "inf" not in drawn
    assert {"−∞", "∞", "–"} <= set(page.text)
    assert "The axis is cut: " in " ".join(page.text)


def test_many_signals_policies_and_segments_stay_below_a_megabyte(report: Report, tmp_path: Path) -> None:
    rows = [
        {
            **row,
            "segment": f"{SEGMENT}={i}",
            "signal": signal,
            "policy": policy,
            "rows": i,
            "p": 0.004,
            "adjusted": 0.02,
        }
        for row in [row for row in report.tables["segments"] if row["estimator"] == "ips"][:1]
        for i in range(1000)
        for signal in SIGNALS
        for policy in ("uniform", "greedy")
    ]
    page = page_of(with_tables(report, segments=rows), tmp_path)
    said = " ".join(page.text)
    assert "The 40 with the most rows; 960 more are in report.json." in said
    assert "adjusted" in said
    assert {0.004, 0.02} <= set(page.numbers)
    assert said.index(" 960 ") < said.index(" 999 ")
    assert (tmp_path / "page.html").stat().st_size < 1_000_000


def test_the_axis_shows_what_may_be_relied_on_and_is_not_ruled_by_the_absurd() -> None:
    fine = [Bar(("a",), 0.10, 0.09, 0.11, "RELIABLE"), Bar(("b",), 0.30, 0.29, 0.31, "CAUTION")]
    absurd = Bar(("c",), 50.0, -1000.0, 1000.0, "UNRELIABLE")
    wide = Bar(("d",), 0.2, -100.0, math.inf, "CAUTION")
    axis = axis_of([*fine, absurd, wide], 0.2)
    assert axis.holds(0.09)
    assert axis.holds(0.31)
    assert axis.high - axis.low < 0.5
    assert not axis.holds(50.0)
    all_bad = [Bar(("a",), x, x - 1, x + 1, "UNRELIABLE") for x in (1.0, 2.0, 3.0, 1e9)]
    assert axis_of(all_bad, 0.0).high < 10
    assert axis_of([Bar(("a",), 2.0, 2.0, 2.0)], math.nan).holds(2.0)
    assert axis_of([Bar(("a",), math.nan, -math.inf, math.inf)], math.nan).low < 1


def test_numbers_have_the_digits_that_they_deserve() -> None:
    assert decimals_for([0.005, 0.006, 0.00005]) == 5
    assert decimals_for([0.005]) == 4
    assert decimals_for([300.0]) == 0
    assert decimals_for([math.inf, 0.0]) == 4
    assert fixed(-0.00001, 3) == "0.000"
    assert fixed(-1234.5678, 2) == "−1,234.57"
    assert (fixed(math.inf, 2), fixed(-math.inf, 2), fixed(math.nan, 2)) == ("∞", "−∞", "–")
    assert [rounded(x) for x in (0.0045528, 1639.53, 12.0, 2.5e-7, 0.0)] == ["0.00455", "1,640", "12", "2.50e−07", "0"]


def test_a_run_says_where_its_page_is(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["concord", "resume", str(folder)])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert f"page       {folder / 'report.html'}" in capsys.readouterr().out
    assert json.loads((folder / "report.json").read_text())["recipe"] == "recsys.ope"
