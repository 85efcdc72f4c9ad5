"""A report as one HTML page that a colleague can open: no network, no other files, nothing beyond report.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from marl.output.report import Report, write_atomically
from recsys.report.markup import Element, html, rounded, tag
from recsys.report.results import Results
from recsys.report.sections import SECTIONS

STYLE = Path(__file__).parent / "page.css"


def write_page(report: Report, path: Path) -> None:
    """Write the page. It is the same, byte for byte, whether the report is new or was read from its file."""
    write_atomically(path, html(page(Results(report))))


def page(results: Results) -> Element:
    """The document."""
    report = results.report
    title = f"What {_listed(results.policies)} would have earned"
    count = {name: rounded(report.metrics[name].value) for name in ("rows", "clusters") if name in report.metrics}
    data = report.config.get("data", {})
    keys = ("path", "campaign", "logged_by") if data.get("format") == "open_bandit" else ("path",)
    told = [f"{key} {data[key]}" for key in keys if data.get(key) is not None]
    facts = ", ".join([str(data.get("format", report.recipe)), *told, *(f"{n} {name}" for name, n in count.items())])
    found = [(section, list(section.content(results))) for section in SECTIONS]
    found = [(section, content) for section, content in found if content]
    body = tag(
        "body",
        tag("h1", title),
        tag("p", f"Offline evaluation from a log: {facts}.", class_="facts"),
        tag("nav", *(tag("a", section.title, href=f"#{section.name}") for section, _ in found)),
        *(tag("section", tag("h2", section.title), *content, id=section.name) for section, content in found),
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
