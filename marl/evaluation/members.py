"""The members of a seed, policies that are one result: the first judged, and what each earns."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from envs.core import Actor
from marl.evaluation.environments import evaluation_rows, make_evaluation_env
from marl.evaluation.episodes import play_policies
from marl.evaluation.policy_report import discounts, judge
from marl.output.report import Metric, Report
from marl.training.policy_rows import take_policy
from marl.training.run import Run


def judge_members(run: Run, recipe: Any, policy: Any) -> Report:
    """The report of the first member of a run of one seed, and the returns of each: `policy=0/…`, `policy=1/…`."""
    with closing(make_evaluation_env(run.config, 1)) as env:
        first = recipe.policy(run.config, env.spec, run.streams("policy", 1))
    first.load_state_dict(take_policy(dict(policy.state_dict()), 0, run.policies))
    report = judge(run, recipe.executed(first), recipe.findings)
    report.metrics.update(_returns(run, recipe.executed(policy)))
    return report


def _returns(run: Run, actor: Actor) -> dict[str, Metric]:
    """Returns of each of the policies that an actor plays at once."""
    section, rows = run.config.evaluation, run.policies * evaluation_rows(run.config)
    with closing(make_evaluation_env(run.config, rows, run.device)) as env:
        seeds, spec = run.stage_seeds("evaluation"), env.spec
        each = play_policies(
            env, actor, section.episodes, seeds, section.patience, discount=discounts(run.config, spec)
        )
    found: dict[str, Metric] = {}
    for number, episodes in enumerate(each):
        found |= episodes.metrics(spec.channels, f"policy={number}/")
    return found
