"""The base of recipes of offline evaluation: verdicts on the terminal, and a page beside the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from envs.core import InputError
from marl.config.recipe import Recipe
from marl.config.schema import RunConfig
from marl.output.report import REPORT, Metric, Report, Tables
from marl.training.run import Run
from recsys.evaluation import Evaluation
from recsys.logs.log import Log
from recsys.report.results import apart_from_estimates
from recsys.report.terminal import JUDGED, print_judgments


class LogRecipe(Recipe):
    """A recipe that tells from a log what policies would have earned. A subclass defines `config` and `run`."""

    learns = False
    files = MappingProxyType({"page": "report.html"})
    judged = JUDGED

    def pictures(self, run: Run) -> list[Path]:
        """Draw the page again, from the report alone."""
        return [draw_page(run, Report.load(run.folder / REPORT))]

    def shown(self, metrics: Mapping[str, Metric]) -> dict[str, Metric]:
        """Counts; estimates are told by `show`, those to read, and all of them by the page and the report."""
        return apart_from_estimates(metrics)

    def show(self, tables: Tables, console: Console) -> None:
        """Print what each policy would change, why that is to be believed, and segments; of a sweep's point too."""
        points = {row["point"] for row in tables.get("recommendations", []) if "point" in row}
        page = self.files["page"]
        print_judgments(tables, console, others=f"{points.pop()}/{page}" if points else page)


def kept(run: Run, log: Log, evaluated: Callable[[], Evaluation]) -> Evaluation:
    """The evaluation, as this run has computed it before where it has.

    Raises InputError where the files of the log were written to since: half of the report would be of another log.
    """
    stamps = log.files.stamps()
    found = run.once("evaluation", lambda: {"log": stamps, **evaluated().to_json()})
    if found.get("log", stamps) != stamps:
        raise InputError(
            f"{run.folder} holds an evaluation of {log.name} as it was before its files were changed. Put these back, "
            "or run the config anew, with another --out."
        )
    return Evaluation.from_json(found)


def reported(config: RunConfig, run: Run, metrics: dict[str, Metric], tables: Tables) -> Report:
    """The report of an evaluation, and its page beside."""
    report = Report(config.recipe, config.seed, config.model_dump(mode="json"), metrics, tables)
    draw_page(run, report)
    return report


def draw_page(run: Run, report: Report) -> Path:
    """Write report.html, made from the report alone."""
    from recsys.report import write_page  # matplotlib takes its time

    page = run.folder / "report.html"
    write_page(report, page)
    return page
