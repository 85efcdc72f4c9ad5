"""The recipe: a model, a critic learned from its own play, episodes of both together, and of what either is without."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from rich.console import Console

from envs.core import InputError
from envs.world import World
from marl.config.recipe import Recipe
from marl.evaluation.policy_report import optional
from marl.output.console import console
from marl.output.report import Metric, Report, Tables
from marl.output.tables import number, print_table
from marl.training.run import Run
from planners.episode.page import write_page
from planners.language.backends.deciding import deciding
from planners.language.config import open_model
from planners.language.recorded import BudgetSpent, Recorded
from planners.language.store import Spent
from planners.planning.beside import Ingredients, all_judged
from planners.planning.config import Config
from planners.planning.critic import discount_of, listed_table, make_critic, require_able, require_possible
from planners.planning.evaluation import Judge, require_first
from planners.planning.learned import STAGE, kept, run_of_critic
from planners.planning.picture import by_queries
from planners.planning.preview import show_prompts
from planners.planning.tabulated import decided_at_once, joint_policy
from planners.read.phrases import require_words
from planners.read.team import TeamPlanner
from planners.tiny.recipe import native_world

SPENT = "critic_spent"  # what was asked for the critic
TRANSCRIPT, PAGE, PICTURE = "transcript.jsonl", "episode.html", "planners.png"
COLUMNS = {
    "success": "success",
    "return_per_agent": "return",
    "episode_length": "steps",
    "count/queries": "queries",
    "count/proposals": "proposals",
    "count/sent_back": "sent back",
    "count/tokens_read": "tokens read",
}


class PlanningRecipe(Recipe):
    """Open the model, learn the critic, plan; then the model alone, and the critic with a model that knows nothing."""

    config = Config
    files = MappingProxyType(
        {"transcript": TRANSCRIPT, "episode": PAGE, "its film": "episode.gif", "planners": PICTURE}
    )

    def run(self, config: Config, run: Run) -> Report:
        """Everything, or as much as the budget allows."""
        world = world_of(config)
        require_possible(config, run, world)
        require_truth(config, world)
        with closing(model_of(config, run)) as model:
            require_able(config, model)
            run.begin()
            judge = Judge(config, run, world)
            metrics, tables = plan(config, run, world, model, judge)
            metrics["budget_spent"] = Metric.exact(int(judge.budget_spent))
        return Report(config.recipe, config.seed, config.model_dump(mode="json"), metrics, tables)

    def preview(self, config: Config, console: Console) -> None:
        """Print the prompts of the first step and their tokens; nothing is asked, learned or kept."""
        show_prompts(config, world_of(config), console)

    def show(self, tables: Tables, console: Console) -> None:
        """Print the planners side by side."""
        if "planners" in tables:
            print_table("planners", tables["planners"], console)


def plan(
    config: Config, run: Run, world: World[Any], model: Recorded, judge: Judge
) -> tuple[dict[str, Metric], Tables]:
    """Episodes of the planner and of those beside it, with what they cost and, apart from that, what the critic did."""
    try:
        critic = make_critic(config, run, world, model)
    except BudgetSpent as end:
        console.print(str(end), markup=False)
        judge.budget_spent = True
        return costs("critic", model.spent()), {}
    of_critic = Spent(**run.once(SPENT, lambda: asdict(model.spent())))
    with closing(model.transcribed(run.folder / TRANSCRIPT)) as asked:
        given = Ingredients(config, run, world, asked, critic)
        planners: dict[str, TeamPlanner] = {}
        metrics, tables = episodes_of(given, judge, planners)
        for name in planners:
            metrics |= judge.above(config.planner.kind, name) if name != config.planner.kind else {}
        metrics |= costs("model", asked.spent(), of_critic)
        metrics["model/cached"] = Metric.exact(asked.spent().cached)
        if config.evaluation.exact and not judge.budget_spent:
            metrics |= truth(config, world, model, planners)
    return metrics | critic_metrics(config, run), tables


def episodes_of(given: Ingredients, judge: Judge, planners: dict[str, TeamPlanner]) -> tuple[dict[str, Metric], Tables]:
    """Episodes of each planner in turn, the first of which is the run's own, until the budget ends.

    One beside it that cannot play, as with prompts too long for the model, is told and left out. planners: where those
    that have played are kept by their names.
    """
    metrics: dict[str, Metric] = {}
    rows: list[dict[str, Any]] = []
    points: dict[str, dict[str, Metric]] = {}
    for judged in all_judged(given.config):
        name, own = judged.name, not rows
        try:
            planner = judged.make(given)
            episodes = judge.play(planner, name, reset=judged.reset, tell=own)
        except InputError as error:
            if own:
                raise
            console.print(f"{name} is left out: {error}", markup=False)
            continue
        if episodes is None:
            break
        planners[name] = planner
        found = points[name] = judge.metrics(episodes)
        metrics |= found if own else {f"{name}/{key}": value for key, value in found.items()}
        rows.append({"planner": name} | {COLUMNS[key]: short(found[key]) for key in COLUMNS if key in found})
        if own:
            tell_story(given.run, judge)
    with optional("picture of the planners"):
        by_queries(points, given.run.folder / PICTURE)
    return metrics, {"planners": rows} if rows else {}


def truth(config: Config, world: World[Any], model: Recorded, planners: Mapping[str, TeamPlanner]) -> dict[str, Metric]:
    """Exact figures. The model itself is asked, beside cache, ledger and budget."""
    from planners.planning.exact import Listed, exact_metrics

    goal, steps = config.evaluation.goal, config.env.time_limit
    assert goal is not None
    assert steps is not None
    table = listed_table(world)
    asked = deciding(model.model)
    policy = joint_policy(world, table, asked, config.planner)
    at_once = decided_at_once(world, table, asked, config.planner)
    listed = Listed(world, table, policy, goal, discount_of(config), at_once)
    others = {name: planners[name].critic for name in ("uniform", "nobody") if name in planners}
    with console.status("computing exact success"):
        found = exact_metrics(listed, planners[config.planner.kind].critic, config.planner, steps, others)
    return {name: Metric.exact(value) for name, value in found.items()}


def require_truth(config: Config, world: World[Any]) -> None:
    """Raise InputError, before anything is asked, where exact figures are wanted and cannot be told."""
    from planners.planning.exact import require_success

    goal, steps = config.evaluation.goal, config.env.time_limit
    if not config.evaluation.exact:
        return
    assert goal is not None
    if steps is None:
        raise InputError("evaluation.exact is of episodes of so many steps: set env.time_limit.")
    table = listed_table(world)
    require_first(world, table, "evaluation.exact")
    require_success(table, goal, steps)


def short(metric: Metric) -> str:
    """A metric with its interval, for a table of many."""
    if metric.is_exact or not metric.has_spread:
        return number(metric.value)
    return f"{number(metric.value)} [{number(metric.low)}, {number(metric.high)}]"


def tell_story(run: Run, judge: Judge) -> None:
    """The page and film of the first episode that was counted."""
    with optional("page of an episode"):
        write_page(run.folder / PAGE, f"{run.config.planner.kind}, seed {run.config.seed}", judge.story)


def costs(prefix: str, spent: Spent, before: Spent | None = None) -> dict[str, Metric]:
    """Cost of what was asked for, less what was before."""
    names = ("queries", "prompt_tokens", "completion_tokens", "seconds", "price")
    before = before or Spent()
    return {f"{prefix}/{name}": Metric.exact(getattr(spent, name) - getattr(before, name)) for name in names}


def critic_metrics(config: Config, run: Run) -> dict[str, Metric]:
    """Cost of learning the critic, in the run that has learned it. An exact one asks beside ledger and budget."""
    if config.critic.kind in ("none", "exact"):
        return {}
    learned_in = run if config.critic.run is None else run_of_critic(config, run)
    found = costs("critic", Spent(**kept(learned_in, SPENT)))
    if config.critic.kind == "learned":
        found |= {f"critic/{key}": Metric.exact(learned_in.used(STAGE)[key]) for key in ("updates", "cpu_seconds")}
    return found


def world_of(config: Config) -> World[Any]:
    """The world that is planned in. Raises InputError for one that does not describe itself, or never ends."""
    world = native_world(config)
    require_words(world)
    if config.evaluation.resets and world.spec.horizon is not None:
        raise InputError(
            f"evaluation.resets lengthens env.time_limit, and {type(world).__name__} ends by its own horizon of "
            f"{world.spec.horizon} steps. Make the world without one, as the kitchen with env.args.horizon=null."
        )
    return world


def model_of(config: Config, run: Run) -> Recorded:
    """The language model of the config, which keeps what it answers and costs."""
    return open_model(
        config.model,
        str(run.folder.resolve()),
        device=str(run.device),
        env=config.env,
        plans=config.planner.plans,
    )


recipe = PlanningRecipe()
