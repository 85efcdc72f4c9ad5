"""Cross-play on worlds where it is known, beside teams that play alone, and from the command line."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from meetings import Constant, Meeting, Often, Remembers
from scipy import stats
from small_runs import SMALL_CONFIG
from typer.testing import CliRunner

from envs.core import InputError
from envs.team import Team
from envs.world import TensorEnv
from marl.__main__ import app
from marl.commands.run import follow, run_training
from marl.commands.sweep import run_sweep
from marl.config.load import resolve
from marl.evaluation.cross_play import CrossPlay, cross_play, gap, jackknife, others, own, share
from marl.evaluation.episodes import play, play_policies
from marl.evaluation.lineups import Lineups, lineups
from marl.evaluation.plots import cross_play_heat_map
from marl.output.report import Metric, Report
from marl.training.run import Run

CONFIG: dict[str, Any] = {
    **SMALL_CONFIG,
    "env": {"world": "meetings:Meeting", "num_envs": 4},
    "advantage": {"weights": [1.0, 1.0], "weights_end": [1.0, 0.0]},
    "evaluation": {"episodes": 16, "film_episodes": 0, "cross_play": True},
}
PLAYERS = {"often": Often(0.8), "turns": Remembers(), "ones": Constant(1)}


def config(**settings: Any) -> Any:
    return resolve(CONFIG, settings)


@pytest.mark.parametrize("agents", [2, 3])
def test_each_line_up_plays_as_a_team_of_its_players_would_alone(agents: int) -> None:
    blocks = [lineup for who in PLAYERS for other in PLAYERS for lineup in lineups(who, other, agents)]
    env = TensorEnv(Meeting(agents=agents), 5 * len(blocks))
    together = play_policies(env, Lineups(env.spec, PLAYERS, blocks), 5, [7] * len(blocks))
    for lineup, episodes in zip(blocks, together, strict=True):
        one = TensorEnv(Meeting(agents=agents), 5)
        slots = {name: [i for i, member in enumerate(lineup) if member == name] for name in PLAYERS}
        team = Team(one.spec, {tuple(seats): PLAYERS[name] for name, seats in slots.items() if seats})
        assert (episodes.returns == play(one, team, 5, 7).returns).all(), lineup


def test_who_plays_in_each_slot() -> None:
    assert lineups("a", "b", 2) == [("a", "b"), ("b", "a")]
    assert lineups("a", "b", 3) == [("a", "b", "b"), ("b", "a", "b"), ("b", "b", "a")]
    assert lineups("a", "a", 3) == [("a", "a", "a")]


def test_the_matrix_of_constant_players_is_known_and_the_weights_of_channels_count() -> None:
    played = cross_play(config(**{"env.args.varied": False}), {"x": Constant(0), "y": Constant(1)}, seed=0)
    # Beside oneself: 3 steps of the prize 1, and .5 a step for choosing 1. Beside others nobody meets; one of both is
    # on the left in half of the line-ups.
    assert played.partners == ("x", "y", "zeros", "ones")
    assert played.matrix() == pytest.approx(np.array([[3, 0.75, 3, 0.75], [0.75, 4.5, 0.75, 4.5]]))
    assert [row["return"] for row in played.table()] == pytest.approx(played.matrix().ravel().tolist())
    found = played.metrics()
    assert {name: found[name].value for name in ("self", "others", "share", "gap")} == pytest.approx(
        {"self": 3.75, "others": 0.75, "share": 0.2, "gap": 3.0}
    )
    assert found["beside_ones"].value == pytest.approx((0.75 + 4.5) / 2)
    assert math.isinf(found["share"].high)  # of two players


def test_each_line_up_draws_its_own_numbers_and_an_interval_is_over_episodes() -> None:
    played = cross_play(config(), {"x": Constant(0)}, seed=0)
    assert (played.episodes("x", "x") != played.episodes("x", "zeros")).any()
    again = cross_play(config(), {"y": Constant(0), "x": Constant(0)}, seed=0)
    assert (played.episodes("x", "x") == again.episodes("x", "x")).all()
    beside = played.metrics()["beside_zeros"]
    assert beside == Metric.mean(played.episodes("x", "zeros"))
    assert beside.n == 16
    assert set(played.metrics()) == {"beside_zeros", "beside_ones"}


def test_batches_of_line_ups_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = cross_play(config(), {"x": Often(0.3), "y": Often(0.6)}, seed=3).matrix()
    monkeypatch.setattr("marl.evaluation.cross_play.ROWS_AT_ONCE", 40)
    assert (cross_play(config(), {"x": Often(0.3), "y": Often(0.6)}, seed=3).matrix() == at_once).all()


def test_the_jackknife_of_a_mean_is_students_interval_and_of_a_ratio_as_computed_by_hand() -> None:
    level = 10 * np.random.default_rng(0).normal(10, 1, (5, 1))
    matrix = level + level.T  # players differ, pairs do not
    np.fill_diagonal(matrix, 200 + np.arange(5.0))
    assert_alike(jackknife(matrix, own), Metric.mean(np.diagonal(matrix)))
    left_out = [share(np.delete(np.delete(matrix, i, 0), i, 1)) for i in range(5)]
    pseudo = 5 * share(matrix) - 4 * np.array(left_out)
    half = stats.t.ppf(0.975, 4) * pseudo.std(ddof=1) / math.sqrt(5)
    assert_alike(jackknife(matrix, share), Metric(share(matrix), share(matrix) - half, share(matrix) + half, 5))
    assert gap(matrix) == pytest.approx(own(matrix) * (1 - share(matrix)))


def test_two_conventions_of_as_many_players_are_no_certainty() -> None:
    first = np.arange(10) < 5
    matrix = np.where(first[:, None] == first, 190.0, 2.0)
    interval = jackknife(matrix, others)
    assert interval.low <= 96 <= interval.high  # of chances alike for both
    # Ten players who all earn the same beside themselves do not say that every player does.
    assert math.isinf(jackknife(matrix, own).high)
    assert math.isinf(jackknife(np.full((10, 10), 0.1), others).high)


def assert_alike(one: Metric, other: Metric) -> None:
    assert (one.value, one.low, one.high, one.n) == pytest.approx((other.value, other.low, other.high, other.n))


def test_a_share_of_nothing_is_no_number() -> None:
    found = jackknife(np.zeros((4, 4)), share)
    assert math.isnan(found.value)
    assert math.isinf(found.high)


def test_intervals_of_the_share_cover_the_truth() -> None:
    """Players with a level and pairs with a fit of their own; the truth is 8 / 10."""
    rng, players, hits = np.random.default_rng(1), 5, 0
    for _ in range(400):
        level = rng.normal(0, 0.7, players)
        pair = rng.normal(0, 1.0, (players, players))
        matrix = 8 + level[:, None] + level + pair + pair.T
        np.fill_diagonal(matrix, 10 + 2 * level + rng.normal(0, 1.0, players))
        interval = jackknife(matrix, share)
        hits += interval.low <= 0.8 <= interval.high
    assert hits >= 0.9 * 400


def test_intervals_cover_where_players_are_nearly_alike_and_episodes_few() -> None:
    """What one line-up draws must not be drawn by others: cells that err alike would fool every interval."""
    hits = {"self": 0, "others": 0, "share": 0, "gap": 0}
    truth = {"self": 3 * 1.5 * 0.5 + 0.75, "others": 3 * 1.5 * 0.5 + 0.75, "share": 1.0, "gap": 0.0}
    players = {f"p{i}": Often(0.5) for i in range(4)}
    for seed in range(40):
        found = cross_play(config(), players, seed).metrics()
        for name in hits:
            hits[name] += found[name].low <= truth[name] <= found[name].high
    assert min(hits.values()) >= 34, hits


def test_what_has_no_partner_or_a_scripts_name_is_refused() -> None:
    with pytest.raises(InputError, match="zeros is the name of a script"):
        cross_play(config(), {"zeros": Constant(0)}, 0)
    with pytest.raises(InputError, match="two agents or more"):
        cross_play(config(**{"env.args.agents": 1}), {"x": Constant(0)}, 0)


def test_a_picture_has_a_panel_for_each_table(tmp_path: Path) -> None:
    played = CrossPlay(("a",), ("b",), 2, {("a", "a"): np.ones(2), ("a", "b"): np.zeros(2), ("b", "a"): np.zeros(2)})
    one = cross_play_heat_map({"": played.table()}, tmp_path / "one.png").stat().st_size
    assert (
        cross_play_heat_map({"x": played.table(), "y": played.table()}, tmp_path / "two.png").stat().st_size > one > 0
    )


def judged(folder: Path) -> None:
    run = Run.open(folder)
    follow(run.config, run)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    points = [{"seed": seed, "env.args.varied": varied} for varied in (True, False) for seed in (0, 1, 2)]
    raw = {**CONFIG, "evaluation": {**CONFIG["evaluation"], "episodes": 4}}
    with pytest.MonkeyPatch.context() as patch:  # judge in this process, which knows the world
        patch.setattr("marl.commands.sweep._run_processes", lambda folders, *_: [judged(folder) for folder in folders])
        run_sweep({"small": raw}, points, folder, 1)
    return folder


def test_seeds_of_a_sweep_meet_one_another(sweep: Path) -> None:
    report = Report.load(sweep / "report.json")
    for label in ("true", "false"):
        prefix = f"env.args.varied={label}/cross_play"
        assert {f"{prefix}/{name}" for name in ("self", "others", "share", "gap")} <= report.metrics.keys()
        assert report.metrics[f"{prefix}/self"].n == 3
        assert f"{prefix}/beside_ones/iqm" in report.metrics
    rows = report.tables["cross_play"]
    assert len(rows) == 2 * 3 * 5
    assert {row["variant"] for row in rows} == {"env.args.varied=true", "env.args.varied=false"}
    assert (sweep / "cross_play.png").exists()
    point = Report.load(sweep / "seed=0,env.args.varied=true" / "report.json")
    assert {row["beside"] for row in point.tables["cross_play"]} == {"trained", "zeros", "ones"}
    assert (sweep / "seed=0,env.args.varied=true" / "cross_play.png").exists()


def test_runs_meet_from_the_command_line(sweep: Path, tmp_path: Path) -> None:
    picture = tmp_path / "here" / "met.png"
    points = [str(sweep / f"seed={seed},env.args.varied=true") for seed in (0, 1)]
    answer = CliRunner().invoke(app, ["cross-play", *points, "evaluation.episodes=3", "--out", str(picture)])
    assert "met.png" in answer.output.replace("\n", "")
    assert answer.exit_code == 0, answer.output
    report = Report.load(picture.with_suffix(".json"))
    assert {"cross_play/share", "cross_play/beside_ones"} <= report.metrics.keys()
    assert picture.exists()
    assert report.config["evaluation"]["episodes"] == 3
    assert {row["who"] for row in report.tables["cross_play"]} == {Path(point).name for point in points}
    # Runs of two worlds meet only where both are evaluated in one.
    whole = CliRunner().invoke(app, ["cross-play", str(sweep), "evaluation.args.varied=true", "--out", str(picture)])
    assert whole.exit_code == 0, whole.output
    assert len(Report.load(picture.with_suffix(".json")).tables["cross_play"]) == 6 * 8


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["POINT"], "at least two runs"),
        (["POINT", "nowhere"], "nowhere holds no finished run"),
        (["SWEEP", "seed=1"], "seed changes nothing"),
        (["SWEEP", "evaluation.episodes=2,3"], "one setting at a time"),
        (["SWEEP", "--out", "x.txt"], "ends in .png"),
        (["SWEEP"], "is evaluated in another environment than .*env.args.varied is True, not False.*evaluation.args"),
        (["POINT", "OTHER"], "env.args.agents is 3, not None"),
        (["POINT", "OTHER", "evaluation.args.agents=2"], "make another task of env.*agents were"),
        (["POINT", "SWEEP/seed=9"], "there is no such folder"),
        (["SWEEP", "evaluation.film_episodes=2"], "changes nothing in cross-play"),
        (["SWEEP", "--out", "SWEEP/report.png"], "would take the place of"),
        (["SWEEP", "--out", "SWEEP/sweep.pdf"], "would take the place of"),
    ],
)
def test_what_cannot_meet_is_told(words: list[str], reason: str, sweep: Path, tmp_path: Path) -> None:
    if "OTHER" in words:
        run_training(config(**{"env.args.agents": 3}), tmp_path / "other")
    places = {
        "POINT": str(sweep / "seed=0,env.args.varied=true"),
        "SWEEP": str(sweep),
        "OTHER": str(tmp_path / "other"),
    }
    picture = [] if "--out" in words else ["--out", str(tmp_path / "x.png")]
    words = [re.sub("^(POINT|SWEEP|OTHER)", lambda name: places[name[1]], word) for word in words]
    answer = CliRunner().invoke(app, ["cross-play", *words, *picture])
    assert isinstance(answer.exception, InputError)
    assert re.search(reason, str(answer.exception)), str(answer.exception)
    assert not (tmp_path / "x.png").exists()
