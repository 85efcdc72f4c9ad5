"""A trained team along one setting, by hand: `concord evaluate DIR env.agents=2,5,…`."""

from __future__ import annotations

import json
import shutil
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from small_swarm import Drift

from envs.core import InputError
from envs.world import RandomActor, TensorEnv
from marl.__main__ import main
from marl.algorithms import mean_field
from marl.commands.evaluate import evaluate_folder
from marl.commands.run import run_training
from marl.commands.sweep import run_sweep
from marl.config.load import dump, resolve, split_assignments
from marl.config.schema import EnvConfig
from marl.evaluation import agent_sweep
from marl.evaluation import environments as evaluation_row_counts
from marl.evaluation.agent_sweep import Curve, Limit, Point, draw, summarize, swept_key
from marl.evaluation.environments import AGENTS_AT_ONCE, evaluation_rows, rows_at_once
from marl.evaluation.episodes import play
from marl.evaluation.plots import new_axes
from marl.output.report import Metric, Report
from marl.training.environments import make_env

SWARM: dict[str, Any] = {
    "recipe": "marl.algorithms.mean_field",
    "device": "cpu",
    "env": {"world": "envs.swarm:LinearQuadratic", "args": {"agents": 5, "horizon": 4}, "num_envs": 8},
    "policy": {"network": {"hidden": [8]}, "rule": {"low": -2.0, "high": 2.0}},
    "learner": {"steps": 4},
    "train": {"env_steps": 64},
    "evaluation": {"episodes": 400, "film_episodes": 0},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("along") / "run"
    run_training(resolve(SWARM, {}), folder)
    return folder


def independent(tmp_path: Path, **policy: Any) -> Path:
    raw = {**SWARM, "recipe": "marl.algorithms.mappo", "policy": {"network": {"hidden": [8]}, **policy}}
    run_training(resolve(raw, {}), tmp_path / "run")
    return tmp_path / "run"


def test_a_swarm_approaches_its_limit_with_slope_minus_one(trained: Path) -> None:
    """A fixed rule and independent agents: the cost is q Σ Var, whose bias is exactly 1/N."""
    report, path = evaluate_folder(trained, ["env.agents=2,5,10,400"])
    for n in (2, 5, 10, 400):
        assert report.metrics[f"agents={n}/return_per_agent"].n >= 400
    assert "agents=2/mode/return_per_agent" not in report.metrics, "only the team as it is executed is played"
    fit = report.metrics["limit_fit/slope"]
    assert fit.low < -1 < fit.high
    assert report.metrics["limit_fit/points"].value == fit.n >= 2
    assert [row["trained"] for row in report.tables["along"]] == [False, True, False, False]
    assert report.config["env"]["args"]["agents"] == 5
    assert Report.load(path).metrics == report.metrics
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    alone, _ = evaluate_folder(trained, ["env.args.agents=10"])
    many = report.metrics["agents=10/return_per_agent"]
    assert alone.metrics["return_per_agent"] == many, "the same alone and in a list"


def test_the_table_says_what_was_trained_and_what_is_left_to_find(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(trained), "env.agents=30,40", "evaluation.episodes=2"]
    monkeypatch.setattr(sys, "argv", ["concord", *words])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    printed = capsys.readouterr().out
    assert "env.agents=30: return_per_agent" in printed
    assert "trained with N=5, which is not in the list" in printed
    assert "no slope: the gap to agents=40" in printed
    newest = max((trained / "evaluations").glob("*.json"))
    assert "limit_fit/slope" not in json.loads(newest.read_text())["metrics"]


def test_other_settings_are_played_along_too(trained: Path) -> None:
    report, path = evaluate_folder(trained, ["env.args.sigma=0.1,1.0", "env.agents=3", "evaluation.episodes=64"])
    low, high = (report.metrics[f"sigma={s}/return_per_agent"].value for s in ("0.1", "1.0"))
    assert low > high
    assert not any(name.startswith("limit_fit/") for name in report.metrics)
    assert report.config["env"]["agents"] == 3
    assert path.with_suffix(".png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["env.agents=2,5", "evaluation.episodes=8,16"], r"one comma list; got one each for env\.agents and eval"),
        (["env.agents=5,2,5"], "names a value twice"),
        (["env.agents=5,5"], "names a value twice"),
        (["env.agents=5,1"], r"env\.agents=1: A swarm has at least two agents; got agents=1"),
        (["env.agents=5,0"], r"env\.agents: expected .*greater than or equal to 1; got 0"),
        (["env.agents=5,many"], r"env\.agents: expected .*integer; got 'many'"),
        (["learner.steps=5,6"], "learner.steps changes nothing in an evaluation"),
        (["env.agents=5,6", "env.args.agents=5"], "one number; got 6 and 5"),
        (["env.agents=2,,5"], r"env\.agents: expected a number of agents, or a list such as .*; one is empty"),
        (["env.agents=2,5,"], "one is empty"),
        (["env.agents="], "one is empty"),
        (["env.args.agents=2,,5"], r"env\.args\.agents: expected a number .*; one is empty"),
        (["env.agents=1"], r"env\.agents=1: A swarm has at least two agents"),
    ],
)
def test_bad_lists_are_told_before_anything_is_played(words: list[str], message: str, trained: Path) -> None:
    before = sorted(trained.rglob("*"))
    with pytest.raises(InputError, match=message):
        evaluate_folder(trained, words)
    assert sorted(trained.rglob("*")) == before


def test_agents_who_share_a_network_play_in_any_number(tmp_path: Path) -> None:
    """With a central critic too, whose size depends on N: only the policy plays."""
    report, _ = evaluate_folder(independent(tmp_path), ["env.agents=3,5", "evaluation.episodes=16"])
    assert report.metrics["agents=3/return_per_agent"].n == 16
    assert report.metrics["agents=5/return_per_agent"].n == 16


@pytest.mark.parametrize("policy", [{"agent_id": True}, {"share": "none"}])
def test_agents_who_are_told_apart_play_only_in_their_own_number(policy: dict[str, Any], tmp_path: Path) -> None:
    folder = independent(tmp_path, **policy)
    for words in ("env.agents=5,3", "env.agents=3", "env.args.agents=3"):
        with pytest.raises(InputError) as told:
            evaluate_folder(folder, [words, "evaluation.episodes=16"])
        assert "agents=3: policy." in str(told.value)
        assert str(told.value).endswith("in training, so this team plays only in its own number, 5.")
    assert evaluate_folder(folder, ["env.agents=5", "evaluation.episodes=16"])[0].metrics["return_per_agent"].n == 16


def test_only_what_does_not_fit_is_said_to_depend_on_the_number(trained: Path, tmp_path: Path) -> None:
    """Not what is missing or wrong for another reason."""
    hint = "A team plays in other numbers only where"
    copy = tmp_path / "run"
    shutil.copytree(trained, copy, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(InputError, match="has no checkpoint yet") as told:
        evaluate_folder(copy, ["env.agents=5,6"])
    assert hint not in str(told.value)
    with pytest.raises(InputError, match="at least two agents") as told:
        evaluate_folder(trained, ["env.agents=5,1"])
    assert hint not in str(told.value)
    misfit = {**SWARM, "policy": {"network": {"hidden": [9]}, "rule": {"low": -2.0, "high": 2.0}}}
    (copy / "config.yaml").write_text(dump(resolve(misfit, {})))
    shutil.copytree(trained / "checkpoints", copy / "checkpoints")
    with pytest.raises(InputError, match=f"does not fit this environment.*{hint}"):
        evaluate_folder(copy, ["env.agents=5,6"])


@pytest.mark.parametrize("value", ["5", "[5]", "[5,5]", "[0,5]", "[-3,5]", "many", "[2.5,5]", "[true,5]", "5,10"])
def test_a_list_of_numbers_of_agents_says_what_it_is(value: str) -> None:
    point = split_assignments([f"evaluation.agents={value}"])[0]
    with pytest.raises(InputError, match=r"evaluation\.agents: expected a list such as \[2,10,100\] of different"):
        resolve(SWARM, point)
    assert resolve(SWARM, {"evaluation.agents": [5, 10]}).evaluation.agents == (5, 10)
    assert resolve(SWARM, {"evaluation.agents": []}).evaluation.agents == ()


SPREAD = {"env": {"world": "envs.particles:SimpleSpread", "time_limit": 5, "num_envs": 8}}
IPPO = {"recipe": "marl.algorithms.mappo", "policy": {"network": {"hidden": [8]}}}


@pytest.mark.parametrize(
    ("changes", "agents", "message"),
    [
        ({}, [1, 5], r"env\.agents=1: A swarm has at least two agents"),
        ({**IPPO, "policy": {"agent_id": True}}, [5, 10], r"env\.agents=10: policy\.agent_id: true tells agents apart"),
        ({**IPPO, "policy": {"share": "none"}}, [5, 10], r"env\.agents=10: policy\.share: none tells agents apart"),
        ({**IPPO, **SPREAD}, [2, 5], r"env\.agents=2: what an agent sees depends on .* in its own number, 3"),
    ],
)
def test_numbers_that_cannot_be_played_are_told_before_training(
    changes: dict[str, Any], agents: list[int], message: str, tmp_path: Path
) -> None:
    raw = {**SWARM, **changes, "evaluation": {"episodes": 16, "film_episodes": 0, "agents": agents}}
    with pytest.raises(InputError, match=message):
        run_training(resolve(raw, {}), tmp_path / "run")
    with pytest.raises(InputError, match=message):
        run_sweep({"swarm": raw}, [{"seed": 0}, {"seed": 1}], tmp_path / "sweep", 1)
    assert list(tmp_path.iterdir()) == [], "no folder is taken"


def test_too_many_agents_to_pass_messages_take_no_folder(tmp_path: Path) -> None:
    network = {"network": {"kind": "message_passing", "hidden": [8]}}
    raw = {**SWARM, **IPPO, "policy": network, "env": {**SWARM["env"], "agents": 600, "args": {}}}
    with pytest.raises(InputError, match="at most 512; got 600"):
        run_training(resolve(raw, {}), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_exact_limit_is_found_once_for_all_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = {**SWARM, "policy": {"network": {"hidden": [8]}, "rule": {"kind": "table", "points": 2}}}
    raw["env"] = {"world": "envs.swarm:SIS", "args": {"agents": 5, "horizon": 4}, "num_envs": 8}
    run_training(resolve(raw, {"evaluation.episodes": 16}), tmp_path / "run")
    calls: list[int] = []

    def limit(actor: Any, env: Any) -> dict[str, Metric]:
        calls.append(len(env.spec.agents))
        return exact(actor, env)

    exact = mean_field.recipe.limit
    monkeypatch.setattr(mean_field.recipe, "limit", limit)
    report, _ = evaluate_folder(tmp_path / "run", ["env.agents=2,5,10"])
    assert calls == [2]
    assert report.metrics["agents=10/limit/return_per_agent"] == report.metrics["limit/return_per_agent"]
    assert report.metrics["agents=10/limit/best"] == report.metrics["agents=2/limit/best"]
    calls.clear()
    evaluate_folder(tmp_path / "run", ["env.args.infection=0.1,0.9"])
    assert calls == [5, 5], "elsewhere each has its own"


def curve(limit: float | None = None, values: tuple[int, ...] = (2, 20, 200)) -> Curve:
    def point(n: int) -> Point:
        found = {"return_per_agent": Metric(3 - 8 / n, 3 - 8 / n - 1e-3, 3 - 8 / n + 1e-3, 1000)}
        return Point(n, found if limit is None else {**found, "limit/return_per_agent": Metric.exact(limit)}, 1.0)

    return Curve("env.agents", [point(n) for n in values])


def test_an_exact_limit_is_used_where_there_is_one_else_the_largest_swarm(tmp_path: Path) -> None:
    metrics, tables = summarize(curve(3.0, (200, 2, 20)))
    assert metrics["limit_fit/slope"].value == pytest.approx(-1, abs=1e-6)
    assert metrics["limit_fit/points"].value == 3
    assert metrics["limit/return_per_agent"] == Metric.exact(3.0)
    assert [round(row["gap"], 6) for row in tables["along"]] == [-0.04, -4.0, -0.4]
    metrics, tables = summarize(curve())
    assert metrics["limit_fit/points"].value == 2
    assert metrics["limit_fit/slope"].value < -1
    assert "gap" not in tables["along"][-1]
    note = tables["notes"][-1]["note"]
    assert "the gap to agents=200 falls from N=2 to N=20 with the local slope" in note
    assert note.endswith("two points cannot test a line")
    assert "limit_fit/misfit_p_value" not in metrics
    assert draw(curve(), tmp_path / "curve.png").exists()


def test_a_report_says_why_there_is_no_slope_and_what_was_left_out() -> None:
    def note(*returns: Metric) -> str:
        points = [
            Point(2**k, {"return_per_agent": j, "limit/return_per_agent": Metric.exact(0.0)}, 1.0)
            for k, j in enumerate(returns, start=1)
        ]
        metrics, tables = summarize(Curve("env.agents", points))
        assert "limit_fit/slope" not in metrics
        return str(tables["notes"][-1]["note"])

    above, below, same = Metric(1.0, 0.9, 1.1, 64), Metric(-1.0, -1.1, -0.9, 64), Metric(1.0, 1.0, 1.0, 64)
    assert "no slope: the gap to the exact limit is positive at N=2,8 and negative at N=4" in note(above, below, above)
    assert "exceeds 3 standard errors at 1 of 3 numbers of agents" in note(above, same, same)
    assert "2 left out, whose error is unknown" in note(above, same, same)


def test_words_are_a_setting_as_good_as_numbers(tmp_path: Path) -> None:
    points = [Point(word, {"return_per_agent": Metric(1.0, -1.0, 3.0, 9)}, 0.1) for word in ("torus", "klein")]
    found = Curve("env.args.manifold", points)
    assert set(summarize(found)[0]) == {"manifold=torus/return_per_agent", "manifold=klein/return_per_agent"}
    assert draw(found, tmp_path / "curve.png").exists()
    assert swept_key([{"a": [1], "b": 1}, {"a": [2], "b": 1}]) == "a"


def test_large_swarms_are_evaluated_few_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows_at_once(1024, 200, 1024) == 1024
    assert rows_at_once(1024, 10**6, 64) == 1
    assert rows_at_once(1024, 500, 1024) == 512, "two equal rounds, not one of 524 and most of another"
    assert rows_at_once(7, AGENTS_AT_ONCE // 5, 7) * (AGENTS_AT_ONCE // 5) <= AGENTS_AT_ONCE
    config = resolve(SWARM, {"evaluation.episodes": 256})
    assert evaluation_rows(config) == 256
    monkeypatch.setattr(evaluation_row_counts, "AGENTS_AT_ONCE", 40)
    assert evaluation_rows(config) == 8
    found = []
    for rows in (8, 256):
        env = make_env(config.env, num_envs=rows)
        found.append(Metric.mean(play(env, RandomActor(env.spec), 256, rows).per_agent))
    assert found[0].n == found[1].n == 256
    assert found[0].low < found[1].high
    assert found[1].low < found[0].high


def test_nothing_of_a_step_is_kept() -> None:
    """However long an episode is; a chunk of 32 steps was kept once."""
    held: list[int] = []

    class Counting(Drift):
        def observe(self, state: torch.Tensor) -> Any:
            seen = super().observe(state)
            alive.append(weakref.ref(seen.agent))
            held.append(sum(ref() is not None for ref in alive))
            return seen

    alive: list[Any] = []
    env = TensorEnv(Counting(agents=4, horizon=30), 2)
    play(env, RandomActor(env.spec), 4, 0)
    assert len(held) > 30
    assert max(held) <= 6


def test_the_number_of_agents_goes_by_the_name_that_the_function_has_for_it() -> None:
    assert len(make_env(EnvConfig(world="envs.swarm:Vicsek", agents=7)).spec.agents) == 7
    same = EnvConfig(world="envs.swarm:Vicsek", agents=7, args={"agents": 7})
    assert len(make_env(same).spec.agents) == 7
    spread = EnvConfig(pettingzoo="mpe2.simple_spread_v3:parallel_env", agents=2, num_envs=1)
    assert len(make_env(spread).spec.agents) == 2
    with pytest.raises(InputError, match=r"calls the number of agents N: env\.agents=2 and env\.args\.N=4 are two"):
        make_env(spread.model_copy(update={"args": {"N": 4}}))
    with pytest.raises(InputError, match=r"climbing has no argument for that.*It takes: "):
        make_env(EnvConfig(world="envs.games:climbing", agents=2))
    with pytest.raises(InputError, match=r"env\.args\.n_agents"):
        make_env(EnvConfig(vmas="balance", agents=2, time_limit=5))


def test_what_is_set_replaces_what_the_file_says_under_either_name() -> None:
    assert resolve(SWARM, {"env.agents": 9}).env.agents == 9
    assert "agents" not in resolve(SWARM, {"env.agents": 9}).env.args
    named = {**SWARM, "env": {"world": "envs.swarm:Vicsek", "agents": 4}}
    found = resolve(named, {"env.args.agents": 6}).env
    assert (found.agents, found.args) == (None, {"agents": 6})
    with pytest.raises(InputError, match=r"env\.agents and env\.args\.agents are one number; got 4 and 5"):
        resolve({**named, "env": {**named["env"], "args": {"agents": 5}}}, {})


def test_whether_a_limit_is_exact_is_no_matter_of_words() -> None:
    assert curve(3.0).limit() == Limit(Metric.exact(3.0), "the exact limit", exact=True)
    assert curve().limit() == Limit(curve().points[-1].metrics["return_per_agent"], "agents=200", exact=False)


def test_an_interval_that_knows_nothing_is_drawn_from_bottom_to_top(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(agent_sweep, "new_axes", lambda *words: drawn.append(new_axes(*words)) or drawn[-1])
    points = [Point(x, {"return_per_agent": Metric.mean(samples)}, 0.1) for x, samples in ((1, [1.0, 2.0]), (2, [3.0]))]
    draw(Curve("env.args.sigma", points), tmp_path / "curve.png")
    whole = [line for line in drawn[0][1].get_lines() if list(line.get_ydata()) == [0, 1]]
    assert [list(line.get_xdata()) for line in whole] == [[2, 2]]
