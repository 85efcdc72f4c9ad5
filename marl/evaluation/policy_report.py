"""From a trained policy to its report and its pictures; what every recipe that trains policies ends with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from envs.core import Actor, ConcordError, EnvSpec, InputError, VectorEnv
from envs.world import RandomActor
from marl.evaluation.checks import TWIN_ARGS, zero_action
from marl.evaluation.environments import evaluation_config, make_evaluation_env
from marl.evaluation.episodes import Episodes, film, play
from marl.evaluation.greedy import Greedy
from marl.evaluation.known_returns import known_metrics
from marl.evaluation.plots import cross_play_heat_map, learning_curve, save_gif
from marl.learning.learner import per_channel
from marl.models.policies import JointActor
from marl.output.console import console, in_words
from marl.output.report import Metric, Report, Tables
from marl.training.checkpoints import checkpoints
from marl.training.on_policy import STAGE
from marl.training.pettingzoo import pettingzoo_args, pettingzoo_env
from marl.training.run import Run, stage_seed

Findings = Callable[[Run, Any, VectorEnv], tuple[dict[str, Metric], Tables]]


def judge(run: Run, actor: Actor, findings: Findings | None = None, stage: str = STAGE) -> Report:
    """Evaluate in the training world and its twin, add what `findings` finds, draw the curve and the film.

    stage: the one whose costs are reported, in which the actor was trained; none of one that is scripted.
    """
    config = run.config.evaluation
    trained = bool(checkpoints(run.folder / "checkpoints" / stage))
    metrics = {name: Metric.exact(value) for name, value in run.used(stage).items()} if trained else {}
    tables: Tables = {}
    with closing(make_evaluation_env(run.config, device=run.device)) as env:
        here = played(run, env, actor, config.episodes, "evaluation")
        metrics |= returns(run, actor, env, here)
        if config.twin is not None:
            metrics |= _in_twin(run, actor, metrics["return_per_agent"])
        if config.random:
            metrics |= _above(run, env, "random", RandomActor(env.spec), here)
        if config.zero_action:
            metrics |= _above(run, env, "zero_action", zero_action(env.spec), here)
        if findings is not None:
            found, tables = findings(run, actor, env)
            metrics |= found
    _draw(run, actor, tables)
    return Report(run.config.recipe, run.config.seed, run.config.model_dump(mode="json"), metrics, tables)


def _draw(run: Run, actor: Actor, tables: Tables) -> None:
    """Curve, film and cross-play; what cannot be drawn, for whatever reason, is told, and is no failure of the run."""
    with optional("curve"):
        learning_curve(run.folder, run.folder / "learning_curve.png")
    if "cross_play" in tables:
        with optional("picture of cross-play"):
            cross_play_heat_map({"": tables["cross_play"]}, run.folder / "cross_play.png")
    if run.config.evaluation.film_episodes:
        with optional("film"):
            picture(run, actor)


@contextmanager
def optional(what: str) -> Iterator[None]:
    """Within, what fails for whatever reason is told, and is no failure of the run."""
    try:
        yield
    except Exception as error:  # a world's own `frame` may raise anything
        reason = str(error) if isinstance(error, ConcordError) else in_words(error)
        console.print(f"no {what}: {reason}", markup=False)


def evaluate(run: Run, actor: Actor, env: VectorEnv) -> dict[str, Metric]:
    """Returns of an actor as it acts; see `returns`."""
    return returns(run, actor, env, played(run, env, actor, run.config.evaluation.episodes, "evaluation"))


def returns(run: Run, actor: Actor, env: VectorEnv, acted: Episodes) -> dict[str, Metric]:
    """Returns of the episodes that were acted, and what theory knows of them.

    Of an actor that gives a distribution also, under `mode/`, those of its most probable actions.
    """
    found = acted.metrics(env.spec.channels)
    if isinstance(actor, JointActor):
        greedy = played(run, env, Greedy(actor), run.config.evaluation.episodes, "evaluation")
        found |= greedy.metrics(env.spec.channels, "mode/")
    return found | known_metrics(env, found)


def played(run: Run, env: VectorEnv, actor: Actor, episodes: int, purpose: str) -> Episodes:
    """Whole episodes of an actor, whose random numbers belong to this purpose.

    Raises ConcordError for returns that are no numbers.
    """
    with console.status(f"playing {episodes} episodes"):
        found = play(
            env,
            actor,
            episodes,
            stage_seed(run.config.seed, purpose),
            run.config.evaluation.patience,
            discounts(run.config, env.spec),
        )
    finite = np.isfinite(found.returns).reshape(-1, len(env.spec.channels)).all(0)
    if not finite.all():
        bad = ", ".join(channel for channel, good in zip(env.spec.channels, finite) if not good)
        raise ConcordError(
            f"Returns of the reward {bad} are NaN or infinite, so there is no result. What was trained is kept. Usual "
            "causes: constants of the environment of huge size, or an environment whose rewards are not finite."
        )
    return found


def discounts(config: Any, spec: EnvSpec) -> Float[Tensor, " K"] | None:
    """The discount of each channel with which this config's learner learns; None where it has none."""
    discount = getattr(getattr(config, "learner", None), "discount", None)
    return None if discount is None else per_channel(discount, len(spec.channels))


def _in_twin(run: Run, actor: Actor, here: Metric) -> dict[str, Metric]:
    """Returns in the PettingZoo twin, and the difference to the training world."""
    twin = run.config.evaluation.twin
    assert twin is not None
    with closing(
        pettingzoo_env(twin.pettingzoo, twin.args, min(16, twin.episodes), TWIN_ARGS, device=run.device)
    ) as env:
        episodes = played(run, env, actor, twin.episodes, "twin")
        found = episodes.metrics(env.spec.channels, "twin/")
    found["twin/difference"] = gap = Metric.difference(found["twin/return_per_agent"], here)
    found["twin/difference_in_intervals"] = Metric.exact(abs(_in_intervals(gap)))
    return found


def _above(run: Run, env: VectorEnv, name: str, other: Actor, here: Episodes) -> dict[str, Metric]:
    """Returns of another actor from the same starts, and what was earned above them, episode by episode."""
    there = played(run, env, other, run.config.evaluation.episodes, "evaluation")
    gap = here.above(there)
    return {
        **there.metrics(env.spec.channels, f"{name}/"),
        f"above_{name}": gap,
        f"above_{name}_in_intervals": Metric.exact(_in_intervals(gap)),
    }


def _in_intervals(gap: Metric) -> float:
    """A difference in units of its own interval, whose edge is at 1: beyond that it is no chance (at 95 %)."""
    half = gap.value - gap.low
    if half == 0:
        return math.copysign(math.inf, gap.value) if gap.value else 0.0
    return gap.value / half


def picture(run: Run, policy: Actor) -> Path:
    """A film of the team, in the twin where there is one."""
    episodes = max(1, run.config.evaluation.film_episodes)
    with closing(filmed_env(run)) as env:
        frames = film(env, policy, episodes, stage_seed(run.config.seed, "film"))
    return save_gif(frames, run.folder / "film.gif")


def filmed_env(run: Run) -> Any:
    """One copy of the world that can be drawn, of the twin where there is one; native worlds may say no only later.

    Raises InputError where a PettingZoo environment takes no `render_mode`.
    """
    twin, env = run.config.evaluation.twin, evaluation_config(run.config)
    if twin is not None:
        return _drawn(twin.pettingzoo, twin.args, TWIN_ARGS, run)
    if env.pettingzoo is not None:
        return _drawn(env.pettingzoo, pettingzoo_args(env), "env.args", run)
    return make_evaluation_env(run.config, 1, run.device)


def _drawn(path: str, args: dict[str, Any], section: str, run: Run) -> VectorEnv:
    """One copy that draws itself. Raises InputError where its maker takes no `render_mode`."""
    try:
        return pettingzoo_env(path, {**args, "render_mode": "rgb_array"}, 1, section, device=run.device)
    except InputError as error:
        if f"{section}.render_mode" not in str(error):
            raise
        raise InputError(
            f"{path} cannot be drawn: it takes no argument render_mode. Let it take render_mode='rgb_array' and give "
            "pictures from render()."
        ) from None
