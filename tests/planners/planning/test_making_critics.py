"""The critics that a config asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from walkers import log_prob, small, walker

from envs.core import InputError
from marl.learning.state_log import StateLog
from marl.models.ordered_critic import OrderedCritic
from marl.models.prefix_critic import PrefixCritic
from marl.training.run import Run
from planners.planning.critic import logged_play, make_critic, require_able, require_possible
from planners.planning.learned import STAGE, sample_of, weights_of
from planners.planning.recipe import world_of
from planners.read.counted import CountedCritic
from planners.read.critics import ExactCritic, LearnedCritic, PlanCritic

THREE = {"env__args": {"channels": 3}}


def made(folder: Path, model: Any = None, **overrides: Any) -> Any:
    config = small(**overrides)
    run = Run.open(folder) if (folder / "config.yaml").exists() else Run.create(folder, config)
    return make_critic(config, run, world_of(config), walker() if model is None else model)


def test_none_is_none(tmp_path: Path) -> None:
    assert made(tmp_path / "run", critic__kind="none") is None


@pytest.mark.parametrize("play", ["model", "random"])
@pytest.mark.parametrize(
    ("kind", "type_of"), [("learned", LearnedCritic), ("counted", CountedCritic), ("exact", ExactCritic)]
)
def test_each_kind_is_made_of_whoever_plays(kind: str, type_of: Any, play: str, tmp_path: Path) -> None:
    model = walker() if play == "model" else walker(None)
    critic = made(tmp_path / "run", model, critic__kind=kind, critic__log__play=play)
    assert isinstance(critic, type_of)
    assert isinstance(critic, PlanCritic)
    assert critic.scale > 0


def test_the_exact_one_has_the_values_of_the_models_play(tmp_path: Path) -> None:
    uniform = made(tmp_path / "one", walker(lambda query, text: 0.0), critic__kind="exact")
    random = made(tmp_path / "two", critic__kind="exact", critic__log__play="random")
    other = made(tmp_path / "three", critic__kind="exact")
    assert_close(uniform.q, random.q)
    assert not torch.allclose(uniform.q, other.q)


def test_a_critic_is_ordered_where_the_model_tells_its_probabilities(tmp_path: Path) -> None:
    ordered = made(tmp_path / "one", critic__log__play="random")
    assert isinstance(ordered.learner.critic.critic, OrderedCritic)
    silent = made(tmp_path / "two", walker(None), critic__log__play="random")
    assert isinstance(silent.learner.critic.critic, PrefixCritic)
    assert not silent.needs_behavior


def test_it_is_learned_once(tmp_path: Path) -> None:
    first = made(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / STAGE).is_dir()
    saved = sorted((tmp_path / "run").rglob("*"))
    again = made(tmp_path / "run")
    assert again.scale == first.scale
    for name, value in first.learner.critic.state_dict().items():
        assert torch.equal(value, again.learner.critic.state_dict()[name]), name
    assert sorted((tmp_path / "run").rglob("*")) == saved


def test_members_are_an_ensemble(tmp_path: Path) -> None:
    critic = made(tmp_path / "run", critic__members=3, critic__pessimism=1)
    assert (critic.learner.policies, critic.pessimism) == (3, 1)


def test_the_first_channel_counts_unless_weights_are_given() -> None:
    config = small(**THREE)
    assert weights_of(config, world_of(config)).tolist() == [1, 0, 0]
    config = small(**THREE, critic__weights=[1, 0.5, 0])
    assert weights_of(config, world_of(config)).tolist() == [1, 0.5, 0]
    config = small(**THREE, critic__weights=[1, 0.5])
    with pytest.raises(InputError, match=r"a number for each of meeting, time, more_time; got \[1\.0, 0\.5\]"):
        weights_of(config, world_of(config))


def test_time_costs_where_its_weight_says_so(tmp_path: Path) -> None:
    options = {"critic__kind": "counted", **THREE}
    free = made(tmp_path / "one", **options)
    costly = made(tmp_path / "two", **options, critic__weights=[1, 1, 0])
    assert bool((costly.value <= free.value + 1e-9).all())
    assert float(costly.value.sum()) < float(free.value.sum())


def test_the_exact_one_is_of_the_first_channel_and_of_a_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"of the first reward channel alone; leave critic\.weights out"):
        made(tmp_path / "one", critic__kind="exact", critic__weights=[1, 1, 0], **THREE)
    with pytest.raises(InputError, match=r"Wordless has no table\. Let a critic be learned"):
        made(tmp_path / "two", critic__kind="exact", env__world="worded_meetings:Wordless")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, r"own play .*critic\.log\.play=random, or go without, critic\.kind=none"),
        ({"critic__kind": "counted"}, r"own play .*critic\.log\.play=random"),
        ({"planner__kind": "reweigh", "critic__kind": "none"}, r"planner\.kind=reweigh .*set planner\.kind=read"),
        (
            {"planner__propose": "scored", "planner__tell": False, "critic__kind": "none"},
            r"planner\.propose=scored .*set planner\.propose=written",
        ),
    ],
)
def test_a_model_that_cannot_score_is_refused_before_it_is_asked(overrides: Any, message: str) -> None:
    config = small(**overrides)
    require_able(config, walker(log_prob))
    with pytest.raises(InputError, match=message):
        require_able(config, walker(None))


@pytest.mark.parametrize("overrides", [{"critic__kind": "none"}, {"critic__log__play": "random"}])
def test_what_needs_no_scores_takes_any_model(overrides: Any, tmp_path: Path) -> None:
    config = small(**overrides)
    run = Run.create(tmp_path / "run", config)
    require_able(config, walker(None))
    critic = make_critic(config, run, world_of(config), walker(None))
    assert critic is None or not critic.needs_behavior


def test_a_long_log_is_measured_by_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small()
    log = logged_play(config, Run.create(tmp_path / "run", config), world_of(config), walker())
    monkeypatch.setattr("planners.planning.learned.SAMPLE", 50)
    assert len(sample_of(log).ended) == 50
    monkeypatch.setattr("planners.planning.learned.SAMPLE", 64)
    assert len(sample_of(log).ended) == len(log) == 64


def logged(folder: Path, **overrides: Any) -> StateLog:
    config = small(**overrides)
    return logged_play(config, Run.create(folder, config), world_of(config), walker())


def test_a_log_begins_where_random_play_led(tmp_path: Path) -> None:
    log = logged(tmp_path / "run")
    begun = log.observe(log.states(torch.arange(log.rows))[0]).state
    assert len(begun.unique(dim=0)) > 1


def test_a_log_has_the_share_of_any_plan_and_the_time_limit_that_it_is_given(tmp_path: Path) -> None:
    log = logged(tmp_path / "run", critic__log__explore=1, critic__log__time_limit=5)
    assert log.latent is not None
    assert bool(((log.latent - 1 / 3).abs() < 1e-6).all())
    cut = log.truncated.view(8, -1).any(1)
    assert int(cut.nonzero()[0]) == 4


def test_a_channel_may_count_against_a_plan(tmp_path: Path) -> None:
    options = {"critic__kind": "counted", **THREE}
    free = made(tmp_path / "one", **options)
    paid = made(tmp_path / "two", **options, critic__weights=[1, -1, 0])  # it earns -1 a step
    assert float(paid.value.sum()) > float(free.value.sum())


def test_the_log_is_played_where_its_arguments_say(tmp_path: Path) -> None:
    def first_states(name: str, **overrides: Any) -> set[tuple[float, ...]]:
        config = small(critic__log__start_steps=0, critic__log__play="random", **overrides)
        world = world_of(config)
        assert world.starts == "apart"
        log = logged_play(config, Run.create(tmp_path / name, config), world, walker())
        return {tuple(state) for state in log.take(torch.arange(8), 1, 1).obs.state.flatten(0, -2).tolist()}

    assert first_states("one") == {(0, 4)}
    assert len(first_states("two", critic__log__args={"starts": "anywhere"})) > 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"starts": "anywhere", "nothing": 1}, "In the critic's log, with critic.log.args=.*nothing"),
        ({"channels": 3}, "critic.log.args=.* make another task of env.*channels were"),
    ],
)
def test_arguments_that_make_another_task_are_refused_at_once(
    args: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = small(critic__log__args=args)
    run = Run.create(tmp_path / "run", config)
    with pytest.raises(InputError, match=message):
        require_possible(config, run, world_of(config))
