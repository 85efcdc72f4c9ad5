"""Configs of runs that plan: what does not fit together is refused before anything is asked."""

from __future__ import annotations

from typing import Any

import pytest
from walkers import small

from envs.core import InputError
from marl.config.catalog import find_config
from marl.config.load import read_yaml, resolve
from marl.config.schema import walk
from planners.planning.config import Config


def test_the_config_that_comes_with_concord_needs_nothing() -> None:
    config = resolve(read_yaml(find_config("planning/kitchen")), {})
    assert (config.model.origin, config.planner.plans, config.critic.kind) == ("tiny", "steps", "learned")
    assert config.evaluation.goal == 20


def test_a_config_that_was_saved_is_the_same_again() -> None:
    config = small(critic__members=2, planner__kind="reweigh")
    assert resolve(config.model_dump(mode="json"), {}) == config


def test_every_field_is_described() -> None:
    for name, field, section in walk(Config):
        assert field.description or section, name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"env.pettingzoo": "a:b", "env.world": None, "env.time_limit": None}, "planning is in native worlds"),
        ({"critic.log.steps": 3}, r"leave no segment of critic\.learner\.steps=4; log more"),
        ({"critic.learner.discount": (0.9, 0.8)}, r"expected one number, .* got \[0\.9, 0\.8\]"),
        ({"critic.learner.discount": 2}, r"critic\.learner\.discount is γ in \[0, 1\]; got 2"),
        (
            {"model.server": "http://localhost:1/v1", "model.name": "x"},
            r"critic\.log\.play=model\) needs .*model\.server does not\. .*critic\.log\.play=random",
        ),
        (
            {"model.scripted": "a:b", "planner.kind": "reweigh"},
            r"planner\.kind=reweigh needs .*model\.scripted does not\. .*set planner\.kind=read",
        ),
        ({"critic.kind": "counted", "critic.learner.discount": 1}, r"discount below 1, such as 0\.97"),
        ({"critic.kind": "exact", "critic.learner.discount": 1.0}, r"discount below 1, such as 0\.97"),
        ({"planner.kind": "reweigh", "planner.temperature": 0}, r"above 0, or critic\.kind=none"),
        ({"critic.kind": "guessed"}, "guessed"),
        ({"evaluation.episodes": 1}, "greater than or equal to 2"),
        ({"evaluation.beside": ["anybody"]}, "anybody"),
        ({"critic.members": 0}, "greater than or equal to 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_paragraph(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**overrides)


def test_limits_of_one_kind_do_not_bind_another() -> None:
    assert small(critic__kind="counted", critic__log__steps=3).critic.log.steps == 3
    assert small(critic__learner__discount=1).critic.learner.discount == 1.0
    assert small(planner__kind="reweigh", planner__temperature=0, critic__kind="none").planner.temperature == 0
