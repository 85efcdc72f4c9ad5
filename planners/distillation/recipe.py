"""The recipe: a planner's accepted plans back into its language model, round by round, and how well it plans alone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from envs.world import World
from marl.config.recipe import Recipe
from marl.evaluation.policy_report import optional
from marl.output.console import console
from marl.output.report import REPORT, Metric, Report, Tables
from marl.output.tables import print_table
from marl.training.run import Run
from planners.distillation.config import Config
from planners.distillation.exact import Exact
from planners.distillation.lessons import improved_lessons
from planners.distillation.picture import by_round
from planners.language.backends.chat import Chat
from planners.language.backends.deciding import Deciding
from planners.language.backends.loading import Pretrained, load, quiet
from planners.language.backends.local import Local
from planners.language.base import LanguageModel
from planners.planning.beside import planner_of
from planners.planning.critic import make_critic
from planners.planning.evaluation import Judge
from planners.planning.recipe import short, world_of
from planners.read.critics import PlanCritic
from planners.read.reweigh import ReweighingPlanner
from planners.tiny.find import find_or_train
from planners.tiny.recipe import teach

PICTURE = "rounds.png"


class DistillationRecipe(Recipe):
    """Fit a critic to the model's own play, teach the model the plans that the critic improves, and again.

    In each round π_{n+1} imitates the policy that improves π_n by a critic of π_n: policy iteration whose policies are
    a language model. A round's model lies in the run's folder, where transformers finds it.
    """

    config = Config
    files = MappingProxyType({"by round": PICTURE})

    def run(self, config: Config, run: Run) -> Report:
        """All rounds; those that are done already are not done again."""
        world = world_of(config)
        judges = Judges(config, run, world)
        run.begin()
        rounds = [read(run.once(f"round {n}", partial(judges.round, n))) for n in all_rounds(config)]
        tables = {"rounds": [table_row(number, found) for number, found in enumerate(rounds)]}
        metrics = {f"round_{n}/{name}": metric for n, found in enumerate(rounds) for name, metric in found.items()}
        report = Report(config.recipe, config.seed, config.model_dump(mode="json"), summary(rounds) | metrics, tables)
        with optional("picture of the rounds"):
            by_round(rounds, judged_by(rounds), run.folder / PICTURE)
        return report

    def pictures(self, run: Run) -> list[Path]:
        """The picture of the rounds."""
        metrics = Report.load(run.folder / REPORT).metrics
        rounds = [
            {name.removeprefix(f"round_{n}/"): metrics[name] for name in metrics if name.startswith(f"round_{n}/")}
            for n in all_rounds(run.config)
        ]
        return [by_round(rounds, judged_by(rounds), run.folder / PICTURE)]

    def show(self, tables: Tables, console: Console) -> None:
        """Print the rounds side by side."""
        if "rounds" in tables:
            print_table("rounds", tables["rounds"], console)


class Judges:
    """One round after the other: a critic of the model, episodes of both and of the model alone, and lessons."""

    def __init__(self, config: Config, run: Run, world: World[Any]):
        self.config, self.run, self.world = config, run, world
        self.judge = Judge(config, run, world)
        self.exact = Exact(config, world) if config.distillation.exact else None

    def round(self, number: int) -> dict[str, Any]:
        """Figures of the model after so many rounds; teaches it the next, unless it was the last."""
        found = opened(self.config, self.run, number)
        model = Deciding(Local.of(found.model, found.tokenizer, found.identity, batch=self.config.model.batch))
        critic = make_critic(self.config, self.run, self.world, model, f" {number}")
        assert critic is not None
        figures = self._figures(model, critic, number)
        if number < self.config.distillation.rounds:
            self._teach(found, model, critic, number + 1)
        return {name: asdict(metric) for name, metric in figures.items()}

    def _figures(self, model: LanguageModel, critic: PlanCritic, number: int) -> dict[str, Metric]:
        """The model alone, at one query a decision; planner and critic with it; and the truth, where it is wanted."""
        planners = {
            "alone": ReweighingPlanner(self.world, model, None, self.config.planner),
            "planner": planner_of(self.config.planner, self.world, model, critic),
        }
        found: dict[str, Metric] = {}
        for name, planner in planners.items():
            episodes = self.judge.play(planner, f"round {number}, {name}")
            assert episodes is not None  # there is no budget that could end
            found |= self.judge.metrics(episodes, f"{name}/")
        if self.exact is not None:
            found |= self.exact.judge(model)
        return found

    def _teach(self, found: Pretrained, model: LanguageModel, critic: PlanCritic, number: int) -> None:
        """The next round's model, in a folder of its own."""
        suffix = f" {number}"
        lessons = improved_lessons(self.config, self.run, self.world, model, critic, suffix)
        console.print(f"round {number}: {len(lessons):,} lessons", markup=False)
        teach(self.config.distillation, self.run, found.model, Chat(found.tokenizer, []), lessons, suffix)
        folder = folder_of(self.run, number)
        with quiet():
            found.model.eval().save_pretrained(folder)
            found.tokenizer.save_pretrained(folder)


def opened(config: Config, run: Run, number: int) -> Pretrained:
    """The model after so many rounds; the config's own after none."""
    asked, device = config.model, str(run.device)
    if number:
        return load(str(folder_of(run, number)), None, None, asked.dtype, device)
    if asked.local is None:
        folder = find_or_train(asked.tiny, config.env, config.planner.plans)
        return load(str(folder), None, None, asked.dtype, device)
    return load(asked.local, asked.gguf, asked.revision, asked.dtype, device)


def folder_of(run: Run, number: int) -> Path:
    """Where the model after so many rounds is kept."""
    return run.folder / f"round-{number}"


def all_rounds(config: Config) -> range:
    """Numbers of rounds, that of the model as it was included."""
    return range(config.distillation.rounds + 1)


def read(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    """Metrics as they were kept."""
    return {name: Metric(**metric) for name, metric in figures.items()}


def judged_by(rounds: Sequence[Mapping[str, Metric]]) -> str:
    """The name of the metric that counts: success, where a goal is set."""
    return "success" if "alone/success" in rounds[0] else "return_per_agent"


def summary(rounds: Sequence[Mapping[str, Metric]]) -> dict[str, Metric]:
    """The last model alone, what it has above the first, and its share of the first planner's success.

    exact/rises: 1 where J rose for certain in every round.
    """
    key, first, last = judged_by(rounds), rounds[0], rounds[-1]
    alone, planner = last[f"alone/{key}"], first[f"planner/{key}"]
    found = {f"alone/{key}": alone, f"above_first/{key}": Metric.difference(alone, first[f"alone/{key}"])}
    if planner.low > 0:
        found["share_of_planner"] = ratio(alone, planner)
    if "exact/discounted" in last:
        bounds = itertools.pairwise(each["exact/discounted"] for each in rounds)
        found["exact/rises"] = Metric.exact(int(all(before.high < after.low for before, after in bounds)))
    return found


def ratio(one: Metric, other: Metric) -> Metric:
    """one / other, the latter above 0, with the widest interval that theirs allow: never too narrow."""
    low = one.low / (other.high if one.low >= 0 else other.low)
    high = one.high / (other.low if one.high >= 0 else other.high)
    return Metric(one.value / other.value, low, high, min(one.n, other.n))


def table_row(number: int, found: Mapping[str, Metric]) -> dict[str, Any]:
    """A round in a table."""
    key = judged_by([found])
    columns = {
        key: f"alone/{key}",
        "queries": "alone/count/queries",
        f"planner's {key}": f"planner/{key}",
        "its queries": "planner/count/queries",
        "exact J": "exact/discounted",
        f"exact {key}": f"exact/{key}",
    }
    return {"round": number} | {name: short(found[metric]) for name, metric in columns.items() if metric in found}


recipe = DistillationRecipe()
