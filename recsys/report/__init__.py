"""A report as one HTML page that a colleague can open: no network, no other files, nothing beyond report.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from marl.output.files import write_atomically
from marl.output.report import Report
from recsys.report.charts import chip
from recsys.report.markup import Child, Element, details, exact, fragment, html, rounded, table, tag
from recsys.report.results import Results
from recsys.report.sections import SECTIONS, headline, notes

STYLE = Path(__file__).parent / "page.css"


def write_page(report: Report, path: Path) -> None:
    """Write the page. It is the same, byte for byte, whether the report is new or was read from its file."""
    write_atomically(path, html(page(Results(report))))


def summary(results: Results) -> str:
    """A part of another page: the estimates to read and why, all others on a click, and notes."""
    columns = ("signal", "policy", "estimator", "value", "low", "high", "n", "verdict")
    cells: list[list[Child]] = []
    for row in results.rows():
        figures = [exact(row[name], rounded(row[name])) for name in ("value", "low", "high", "n")]
        cells.append([row["signal"], row["policy"], row["estimator"], *figures, chip(row["verdict"])])
    every = details("all estimates", table(columns, cells))
    return fragment(tag("div", *headline(results), every, *notes(results)))


def page(results: Results) -> Element:
    """The document."""
    report = results.report
    title = f"What {_listed(results.policies)} would have earned"
    counts = ("rows", "sessions", "steps", "clusters")
    count = {name: rounded(report.metrics[name].value) for name in counts if name in report.metrics}
    data = report.config.get("data", {})
    keys = ("path", "campaign", "logged_by") if data.get("format") == "open_bandit" else ("path",)
    told = [f"{key} {data[key]}" for key in keys if data.get(key) is not None]
    facts = ", ".join([str(data.get("format", report.recipe)), *told, *(f"{n} {name}" for name, n in count.items())])
    parts = [(section, list(section.content(results))) for section in SECTIONS]
    parts = [(section, content) for section, content in parts if content]
    body = tag(
        "body",
        tag("h1", title),
        tag("p", f"Offline evaluation from a log: {facts}.", class_="facts"),
        tag("nav", *(tag("a", section.title, href=f"#{section.name}") for section, _ in parts)),
        *(tag("section", tag("h2", section.title), *content, id=section.name) for section, content in parts),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", STYLE.read_text(encoding="ascii")),
    )
    return tag("html", head, body, lang="en")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names) or "the policies"
