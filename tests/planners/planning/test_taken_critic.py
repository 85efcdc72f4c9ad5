"""A critic that another run has learned: taken as it is, and with it runs that are replayed from their transcripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from walkers import RANDOM, open_walker, small, walker

from envs.core import InputError
from marl.commands.run import follow, run_training
from marl.output.report import Report
from marl.training.run import Run
from planners.language.backends.replay import Replay
from planners.language.transcript import read_transcript
from planners.planning.critic import make_critic
from planners.planning.learned import _require_alike, _weights
from planners.planning.preview import outlook
from planners.planning.recipe import world_of
from planners.read.critics import LearnedCritic

FREE = {name.replace(".", "__"): value for name, value in RANDOM.items()}


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned a critic of its model's own play."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        open_walker(patched, home / "answers.sqlite")
        run_training(small(), home / "run")
    return home / "run"


def taken(learned: Path, tmp_path: Path, **overrides: Any) -> Any:
    config = small(critic__run=str(learned), **overrides)
    return make_critic(config, Run.create(tmp_path / "run", config), world_of(config), walker())


def report_of(folder: Path) -> Report:
    return Report.load(folder / "report.json")


def test_it_has_the_parameters_levels_and_unit_of_the_run_that_learned_it(learned: Path, tmp_path: Path) -> None:
    config = small()
    own = make_critic(config, Run.open(learned), world_of(config), walker())
    critic = taken(learned, tmp_path, critic__pessimism=0.5, seed=5)
    assert isinstance(own, LearnedCritic)
    assert (critic.scale, critic.pessimism) == (own.scale, 0.5)
    for name, value in own.learner.state_dict()["critic"].items():
        assert torch.equal(value, critic.learner.state_dict()["critic"][name]), name
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_planners_are_compared_with_one_critic(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_walker(monkeypatch, tmp_path / "answers.sqlite")
    report = run_training(small(critic__run=str(learned), planner__kind="reweigh"), tmp_path / "run")
    assert [row["planner"] for row in report.tables["planners"]] == ["reweigh", "alone", "uniform"]
    first = report_of(learned)
    for name in ("critic/queries", "critic/updates", "critic/cpu_seconds"):
        assert report.metrics[name] == first.metrics[name]
    assert report.metrics["alone/success"] == first.metrics["alone/success"]


def test_a_replayed_run_comes_to_the_same_metrics(learned: Path, tmp_path: Path) -> None:
    replayed = small(critic__run=str(learned), model__replay=str(learned / "transcript.jsonl"))
    again = run_training(replayed, tmp_path / "run").metrics
    first = report_of(learned).metrics
    assert again.keys() == first.keys()
    for name, metric in first.items():
        assert again[name].value == pytest.approx(metric.value) if name == "model/seconds" else again[name] == metric
    assert (tmp_path / "run" / "episode.html").read_text() == (learned / "episode.html").read_text()
    # And so does a replay of the replay.
    config = small(critic__run=str(learned), model__replay=str(tmp_path / "run" / "transcript.jsonl"))
    assert run_training(config, tmp_path / "third").metrics["success"] == first["success"]


def test_the_transcript_is_of_episodes_and_not_of_the_log(learned: Path) -> None:
    found = read_transcript(learned / "transcript.jsonl")
    assert found is not None
    metrics = report_of(learned).metrics
    asked = [exchange for exchange in found.exchanges if not exchange.answer.cached]
    assert len(asked) == metrics["model/queries"].value
    assert len(found.exchanges) - len(asked) <= metrics["critic/queries"].value
    scored = {exchange.query for exchange in found.exchanges if exchange.kind == "score"}
    assert len(scored) < metrics["critic/queries"].value + metrics["model/queries"].value
    assert Replay(learned / "transcript.jsonl").scores


def test_a_replay_that_asks_something_else_is_refused(learned: Path, tmp_path: Path) -> None:
    config = small(critic__run=str(learned), model__replay=str(learned / "transcript.jsonl"), seed=1)
    with pytest.raises(InputError, match="no answer to a query of this run"):
        run_training(config, tmp_path / "run")


def test_a_run_with_a_taken_critic_is_resumed(learned: Path, tmp_path: Path) -> None:
    config = small(critic__run=str(learned), model__replay=str(learned / "transcript.jsonl"))
    first = run_training(config, tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    again = follow(config, Run.open(tmp_path / "run"))
    assert again.metrics == first.metrics


def test_a_critic_of_random_play_serves_a_model_that_cannot_score(tmp_path: Path) -> None:
    run_training(small(**FREE), tmp_path / "one")
    report = run_training(small(**FREE, critic__run=str(tmp_path / "one")), tmp_path / "two")
    assert report.metrics["success"] == report_of(tmp_path / "one").metrics["success"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"env__args": {"starts": "anywhere"}}, r"env\.args is {'starts': 'anywhere'} here and {} there"),
        (
            {"env__world": "worded_meetings:Wordless"},
            r"env\.world is worded_meetings:Wordless here and worded_meetings:Meeting there",
        ),
        ({"planner__mode": "joint"}, r"planner\.mode is joint here and sequential there"),
        ({"planner__plans": "all"}, r"planner\.plans is all here and steps there"),
        ({"critic__weights": [2.0]}, r"critic\.weights is \[2\.0\] here and \[1\.0\] there"),
    ],
)
def test_a_critic_of_other_play_is_refused_before_a_folder_is_taken(
    learned: Path, overrides: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_walker(monkeypatch, tmp_path / "answers.sqlite")
    with pytest.raises(InputError, match=message):
        run_training(small(critic__run=str(learned), **overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        {"critic__weights": [1.0]},
        {"critic__updates": 4000},
        {"critic__updates": 7, "critic__members": 2, "critic__log__steps": 9},
        {"env__time_limit": 5},
        {"env__num_envs": 3},
        {"critic__pessimism": 1.0},
    ],
)
def test_settings_that_say_the_same_or_concern_planning_alone_are_free(
    learned: Path, overrides: Any, tmp_path: Path
) -> None:
    assert isinstance(taken(learned, tmp_path, **overrides), LearnedCritic)


def test_settings_of_learning_that_count_for_nothing_are_told(
    learned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken(learned, tmp_path, critic__updates=7, critic__log__steps=9)
    assert "critic.log, critic.updates: as in" in capsys.readouterr().out
    taken(learned, tmp_path / "same")
    assert "as in" not in capsys.readouterr().out


def test_a_run_without_a_learned_critic_is_told(learned: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        taken(tmp_path / "nowhere", tmp_path)
    counted = tmp_path / "counted"
    run_training(small(critic__kind="counted", **FREE), counted)
    with pytest.raises(InputError, match=r"has learned no critic, .*critic\.kind=learned"):
        taken(counted, tmp_path)
    second = tmp_path / "second"
    run_training(small(critic__run=str(learned), model__replay=str(learned / "transcript.jsonl")), second)
    with pytest.raises(InputError, match=r"has taken its own critic from .*; name that run"):
        taken(second, tmp_path)


def test_it_is_of_the_learned_kind() -> None:
    with pytest.raises(InputError, match=r"critic\.kind=exact is none; leave one of them out"):
        small(critic__run="somewhere", critic__kind="exact")
    assert "A run takes the critic of somewhere, then plays" in outlook(small(critic__run="somewhere"))


def test_a_scale_is_given_or_measured(learned: Path) -> None:
    config = small()
    own = make_critic(config, Run.open(learned), world_of(config), walker())
    assert isinstance(own, LearnedCritic)
    assert LearnedCritic(own.learner, scale=2.5).scale == 2.5
    with pytest.raises(InputError, match="from a batch of logged rows, or as a number: give one"):
        LearnedCritic(own.learner)


def test_channels_at_the_end_that_count_nothing_change_no_weights() -> None:
    assert _weights(small(critic__weights=[1.0, 0.0, 0.0])) == _weights(small()) == [1.0]
    assert _weights(small(critic__weights=[0.0, 1.0])) == [0.0, 1.0]


def test_a_critic_of_other_agents_judges_other_play() -> None:
    other = small()
    more = other.model_copy(update={"env": other.env.model_copy(update={"agents": 3})})
    with pytest.raises(InputError, match=r"env\.agents is None here and 3 there"):
        _require_alike(small(), more, Path("run"))
