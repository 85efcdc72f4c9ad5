"""Details of cross-play, and of evaluations in another world, each of which a wrong change would alter."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from meetings import Constant, Meeting, Often, Remembers
from scipy import stats
from small_runs import SMALL_CONFIG

from envs.core import InputError, Step, Streams
from envs.team import Team
from envs.world import TensorEnv
from marl.commands.cross_play import cross_play_seeds
from marl.commands.evaluate import evaluate_folder
from marl.commands.printing import print_report
from marl.commands.run import run_training
from marl.config.load import resolve
from marl.evaluation import cross_play as module
from marl.evaluation.cross_play import cross_play, gap, jackknife, others
from marl.evaluation.episodes import play, play_policies
from marl.evaluation.known_returns import known_metrics
from marl.evaluation.lineups import MOST_SEATS, Lineups, lineups
from marl.evaluation.plots import _draw_panel, new_axes
from marl.evaluation.policy_report import filmed_env
from marl.output.console import console
from marl.output.report import Metric, Report
from marl.training.metrics_log import read_rows
from marl.training.run import Run

CONFIG: dict[str, Any] = {
    **SMALL_CONFIG,
    "env": {"world": "meetings:Meeting", "num_envs": 4, "args": {"varied": False}},
    "evaluation": {"episodes": 16, "film_episodes": 0, "args": {"varied": True}, "cross_play": True},
}


def config(**settings: Any) -> Any:
    return resolve(CONFIG, settings)


def test_line_ups_play_where_evaluations_are_and_as_many_episodes() -> None:
    played = cross_play(config(**{"evaluation.num_envs": 4}), {"x": Constant(0)}, seed=0)
    assert len(np.unique(played.episodes("x", "x"))) == 2  # prizes vary there
    assert played.metrics()["beside_zeros"].n == 16


def test_what_unequal_players_earn_beside_scripts_is_told_of_each_script() -> None:
    plain = config(**{"evaluation.args": {}, "advantage": {"weights": [1, 0]}})
    found = cross_play(plain, {"x": Often(0.9), "y": Constant(1), "z": Constant(1)}, seed=0).metrics()
    assert found["beside_ones"].value > 4 > 1 > found["beside_zeros"].value
    assert found["beside_zeros"].n == 3


def test_rows_that_end_at_other_times_stay_with_their_line_up() -> None:
    players = {"often": Often(0.8), "turns": Remembers()}
    blocks = lineups("often", "turns", 2) + lineups("turns", "turns", 2)
    env = TensorEnv(Meeting(uneven=True), 6 * len(blocks))
    together = play_policies(env, Lineups(env.spec, players, blocks), 12, [1, 2, 3])
    for seed, lineup, episodes in zip((1, 2, 3), blocks, together, strict=True):
        one = TensorEnv(Meeting(uneven=True), 6)
        slots = {tuple(i for i, member in enumerate(lineup) if member == name): name for name in players}
        team = Team(one.spec, {seats: players[name] for seats, name in slots.items() if seats})
        kept = play(one, _Shown(team), 12, seed)
        assert (episodes.returns == kept.returns).all()
        assert len(np.unique(episodes.lengths)) == 2


class _Shown:
    """An actor that is shown every row always."""

    keeps_rows = True

    def __init__(self, actor: Any):
        self.actor = actor
        self.initial_memory, self.act = actor.initial_memory, actor.act


def test_a_player_begins_with_its_own_memory_in_its_own_rows() -> None:
    class Begins(Remembers):
        def initial_memory(self, num_envs: int) -> Any:
            return super().initial_memory(num_envs) + 2

    env = TensorEnv(Meeting(), 6)
    memory = Lineups(env.spec, {"a": Begins(), "b": Constant(0)}, [("b", "b"), ("a", "b")]).initial_memory(6)
    assert memory[0].squeeze(1).tolist() == [0, 0, 0, 2, 2, 2]


def test_a_player_hears_of_its_own_rows() -> None:
    class Listens(Constant):
        def hear(self, step: Step) -> None:
            heard.append(step.reward.clone())

    heard: list[Any] = []
    env = TensorEnv(Meeting(), 6)
    line = Lineups(env.spec, {"a": Listens(0), "b": Constant(0)}, [("b", "b"), ("a", "b")])
    obs = env.reset([0, 1])
    decision, _ = line.act(obs, line.initial_memory(6), Streams([0, 1]))
    step = env.step(decision.action)
    line.hear(step)
    assert heard[0].tolist() == step.reward[3:].tolist()


def test_the_floor_of_intervals_is_that_of_as_many_pairs() -> None:
    first = np.arange(10) < 5
    matrix = np.where(first[:, None] == first, 190.0, 2.0)
    pairs = matrix[np.triu_indices(10, 1)]
    half = stats.t.ppf(0.975, 9) * pairs.std(ddof=1) / math.sqrt(45)
    assert jackknife(matrix, others).high - others(matrix) == pytest.approx(half)
    assert jackknife(matrix, gap).high - gap(matrix) == pytest.approx(half)
    assert others(np.array([[0.0, 1.0], [3.0, 0.0]])) == 2


def test_patience_and_rows_at_once_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="within 1 steps"):
        cross_play(config(**{"evaluation.patience": 1}), {"x": Constant(0)}, 0)
    made: list[int] = []
    make = module.make_evaluation_env
    monkeypatch.setattr(module, "ROWS_AT_ONCE", 40)
    monkeypatch.setattr(
        module, "make_evaluation_env", lambda config, rows, device="cpu": made.append(rows) or make(config, rows)
    )
    cross_play(config(), {"x": Constant(0)}, 0)
    assert max(made) == 32


def test_of_many_slots_one_takes_some() -> None:
    seats = [lineup.index("a") for lineup in lineups("a", "b", 200)]
    assert seats == [25 * i for i in range(MOST_SEATS)]
    assert len(lineups("a", "b", MOST_SEATS)) == MOST_SEATS


def test_a_picture_shows_returns() -> None:
    _, axes = new_axes("", "", "")
    _draw_panel(axes, "", [{"who": "a", "beside": "b", "return": 5.0, "low": 1.0, "high": 9.0}], ["a"], ["b"])
    assert [text.get_text() for text in axes.texts] == ["5"]


def test_what_is_known_of_a_channel_is_compared_with_that_channel() -> None:
    returns = {"return_per_agent": Metric.exact(30.0), "return_per_agent/meet": Metric(3.0, 2.0, 4.0, 9)}
    found = known_metrics(TensorEnv(Meeting(), 1), returns)
    assert found["share/meet/always"] == Metric(0.5, 2 / 6, 4 / 6, 9)
    assert found["regret/always"].value == 0.25
    assert "share/always" not in found
    assert "regret/meet/always" not in found


def test_training_is_watched_and_filmed_where_evaluations_are(tmp_path: Path) -> None:
    settings = {"evaluation.every": 1, "evaluation.during_episodes": 64, "learner.learning_rate": 1e-9}
    run_training(config(**settings), tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.csv")
    watched = [
        float(row["evaluation/return_per_agent/meet"]) for row in rows if row["evaluation/return_per_agent/meet"]
    ]
    # Of untrained agents: 3 steps of half a prize of 1.5 in the mean, and .25; in training the prize is 1.
    assert np.mean(watched) == pytest.approx(3 * (0.75 + 0.25), abs=0.3)
    assert filmed_env(Run.open(tmp_path / "run")).world.varied


def test_members_of_a_seed_are_judged_where_evaluations_are(tmp_path: Path) -> None:
    raw = {**CONFIG, "recipe": "small_population"}
    report = run_training(resolve(raw, {}), tmp_path / "run")
    told = report.metrics["policy=0/return_per_agent"].value
    assert told == pytest.approx(report.metrics["return_per_agent"].value, abs=1e-5)


@pytest.mark.parametrize("team", ["network", "empty"])
def test_bayesian_networks_meet_scripts_where_evaluations_are(team: str, tmp_path: Path) -> None:
    raw = {key: value for key, value in CONFIG.items() if key != "policy"}
    settings = {"recipe": "marl.algorithms.bnpg", "evaluation.team": team, "policy.graph.kind": "complete"}
    report = run_training(resolve({**raw, **{"recipe": "marl.algorithms.bnpg"}}, settings), tmp_path / "run")
    again, _ = evaluate_folder(tmp_path / "run", [])
    for name in ("cross_play/beside_ones", "return_per_agent", "empty/return_per_agent", "graph/edges"):
        assert report.metrics[name] == again.metrics[name], name
    assert {row["beside"] for row in report.tables["cross_play"]} == {"trained", "zeros", "ones"}
    assert (tmp_path / "run" / "cross_play.png").exists()


def test_cross_play_is_asked_for(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path / f"run{seed}")
        run_training(config(**{"seed": seed, "evaluation.cross_play": False}), folders[-1])
    assert cross_play_seeds(tmp_path, {"all": folders}) == ({}, {})
    again, _ = evaluate_folder(folders[0], ["evaluation.cross_play=true"])
    assert "cross_play/beside_ones" in again.metrics


def test_one_variant_has_no_label_and_one_seed_meets_nobody(tmp_path: Path, capsys: Any) -> None:
    folders = []
    for seed in (0, 1, 2):
        folders.append(tmp_path / f"run{seed}")
        run_training(config(seed=seed), folders[-1])
    assert cross_play_seeds(tmp_path, {"all": folders[:1]}) == ({}, {})
    metrics, tables = cross_play_seeds(tmp_path, {"all": folders})
    assert {"cross_play/share", "cross_play/beside_ones"} <= metrics.keys()
    assert {row["who"] for row in tables["cross_play"]} == {"seed 0", "seed 1", "seed 2"}
    several = {f"a/{name}": metric for name, metric in metrics.items()} | {"return_per_agent/iqm": Metric.exact(1.0)}
    several |= {f"return_per_agent/{name}": Metric.exact(1.0) for name in ("min", "median", "max")}
    report = Report("marl.algorithms.mappo", [0, 1, 2], {}, several, {"points": [{"point": "x"}]})
    print_report(report, tmp_path, console)
    shown = capsys.readouterr().out
    assert "seeds beside one another" in shown
    assert "a/cross_play/share" in shown


class One(Meeting):
    """Only one agent."""

    def __init__(self) -> None:
        super().__init__(agents=1)


class Called(Meeting):
    """Partners that are none."""

    def __init__(self, partners: Any) -> None:
        super().__init__()
        self.given = partners

    def partners(self) -> Any:
        return {
            "list": [1],
            "no actor": {"x": 3},
            "trained": {"trained": Constant(0)},
            "illegal": {"bad": Constant(7)},
        }[self.given]


@pytest.mark.parametrize(
    ("world", "args", "reason"),
    [
        ("test_cross_play_details:One", {}, "two agents or more"),
        ("test_cross_play_details:Called", {"partners": "list"}, "gives actors by name"),
        ("test_cross_play_details:Called", {"partners": "no actor"}, "The partner 'x' of Called"),
        ("test_cross_play_details:Called", {"partners": "trained"}, "called 'trained'"),
        ("test_cross_play_details:Called", {"partners": "illegal"}, "bad: "),
    ],
)
def test_partners_that_cannot_be_met_are_told_before_training(
    world: str, args: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    raw = {**CONFIG, "env": {"world": world, "num_envs": 4, "args": args}, "evaluation": {"cross_play": True}}
    with pytest.raises(InputError, match=reason):
        run_training(resolve(raw, {}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_worlds_without_partners_have_nothing_to_tell_of_one_run(tmp_path: Path) -> None:
    report = run_training(config(**{"env.args.partners": False}), tmp_path / "run")
    assert "cross_play" not in report.tables
    assert not (tmp_path / "run" / "cross_play.png").exists()


def test_arguments_of_evaluations_lie_over_those_of_training_at_every_depth(tmp_path: Path) -> None:
    raw = {
        **CONFIG,
        "env": {
            "world": "envs.lapses:lapsing",
            "num_envs": 4,
            "args": {"world": "meetings:Meeting", "args": {"varied": False, "uneven": True}},
        },
        "evaluation": {"episodes": 8, "film_episodes": 0, "args": {"share": 0, "args": {"varied": True}}},
    }
    run_training(resolve(raw, {}), tmp_path / "run")
    world = filmed_env(Run.open(tmp_path / "run")).world
    assert (type(world), world.varied, world.uneven) == (Meeting, True, True)
    with pytest.raises(InputError, match=r"env.args.share changes nothing here"):
        evaluate_folder(tmp_path / "run", ["env.args={world: 'meetings:Meeting', share: 0.2}"])
