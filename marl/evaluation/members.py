"""The members of a seed, policies that are one result: one taken out, and what each of them earns."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from envs.core import Actor
from marl.evaluation.episodes import play_policies
from marl.evaluation.policy_report import discounts
from marl.output.report import Metric
from marl.training.environments import evaluation_rows, make_env
from marl.training.policy_rows import take_policy
from marl.training.run import Run


def one_member(run: Run, recipe: Any, policy: Any, number: int = 0) -> Any:
    """A policy of its own with the parameters of one member of a run of one seed."""
    with closing(make_env(run.config.env, num_envs=1)) as env:
        alone = recipe.policy(run.config, env.spec, run.streams("policy", 1))
    alone.load_state_dict(take_policy(dict(policy.state_dict()), number, run.policies))
    return alone


def returns_of_members(run: Run, actor: Actor) -> dict[str, Metric]:
    """Returns of each of the policies that an actor plays at once, `policy=0/…`, `policy=1/…` and so on."""
    section, rows = run.config.evaluation, run.policies * evaluation_rows(run.config)
    with closing(make_env(run.config.env, num_envs=rows, device=run.device)) as env:
        seeds, spec = run.stage_seeds("evaluation"), env.spec
        each = play_policies(
            env, actor, section.episodes, seeds, section.patience, discount=discounts(run.config, spec)
        )
    found: dict[str, Metric] = {}
    for number, episodes in enumerate(each):
        found |= episodes.metrics(spec.channels, f"policy={number}/")
    return found
