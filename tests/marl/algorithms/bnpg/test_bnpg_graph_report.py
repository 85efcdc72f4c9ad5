"""What a person is shown of a team's graphs: films, heat maps, and what an edge is worth."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from worlds import Walk

from envs.core import Observation, Streams
from marl.algorithms.bnpg.graph_plots import graph_film, graph_frame, heat_map
from marl.algorithms.bnpg.graphs import Graph
from marl.algorithms.bnpg.policy import BayesianPolicy, BayesianPolicyConfig, WithoutEdges
from marl.config.load import resolve
from marl.evaluation.episodes import Moment
from marl.training.environments import make_env
from marl.training.metrics_log import read_rows
from marl.training.run import Run
from tests.marl.algorithms.bnpg.test_bnpg_policy import GRAPHS, make
from tests.marl.commands.test_cli import concord

# Agent 1 must name a bit that only agent 0 sees; of ten times it hears agent 0 nine.
COPY = {
    "recipe": "marl.algorithms.bnpg",
    "env": {"world": "envs.games:CopyGame", "num_envs": 32},
    "policy": {"network": {"hidden": [16]}, "graph": {"kind": "random", "density": 0.9}},
    "critic": {"network": {"hidden": [16]}},
    "learner": {"steps": 8, "minibatches": 2, "learning_rate": 0.02},
    "train": {"env_steps": 8000},
    "evaluation": {"episodes": 1024, "num_envs": 512, "film_episodes": 0, "ablation_episodes": 1024},
}
ARROW = (178, 34, 34)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy") / "run"
    (folder.parent / "copy.yaml").write_text(json.dumps(COPY))
    with pytest.MonkeyPatch.context() as patch:
        assert concord("run", folder.parent / "copy.yaml", "--out", folder, monkeypatch=patch) == 0
    return folder


# Cutting edges


def drawn(actor: Any, obs: Observation) -> Any:
    """What an actor does, always from the same random numbers."""
    with torch.no_grad():
        return actor.act(obs, None, Streams([7]))[0]


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_cut_edge_is_heard_by_nobody_and_all_else_is_drawn_as_before(graph: str) -> None:
    policy, obs = make(GRAPHS[graph], rows=200)
    obs = dataclasses.replace(obs, alive=torch.ones(200, 3, dtype=torch.bool))
    cuts: list[Any] = [WithoutEdges(policy, []), WithoutEdges(policy, [(0, 1), (1, 0)]), WithoutEdges(policy)]
    whole, kept, cut, alone = (drawn(actor, obs) for actor in (policy, *cuts))
    assert torch.equal(kept.action, whole.action)
    assert torch.equal(kept.latent.edges, whole.latent.edges)
    wanted = whole.latent.edges.clone()
    wanted[:, 0, 1] = wanted[:, 1, 0] = False
    assert torch.equal(cut.latent.edges, wanted)
    # Where no edge was cut nothing changes; where one was, some agents who heard do otherwise.
    untouched = (wanted == whole.latent.edges).flatten(1).all(1)
    assert torch.equal(cut.action[untouched], whole.action[untouched])
    assert bool(untouched.all()) == (graph == "empty") or not torch.equal(cut.action, whole.action)
    assert not alone.latent.edges.any()


def test_whoever_hears_nobody_after_a_cut_acts_as_in_the_team_without_edges() -> None:
    policy, obs = make(GRAPHS["line"], rows=200)
    obs = dataclasses.replace(obs, alive=torch.ones(200, 3, dtype=torch.bool))
    whole, cut, alone = (
        drawn(actor, obs).action[:, 1] for actor in (policy, WithoutEdges(policy, [(0, 1)]), WithoutEdges(policy))
    )
    assert torch.equal(cut, alone)
    assert not torch.equal(whole, alone)


# What an edge is worth


def test_an_edge_is_worth_the_return_that_is_lost_when_it_is_cut(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    first, second = report["tables"]["edges"]
    assert (first["from"], first["to"]) == ("agent_0", "agent_1")
    assert first["share"] == pytest.approx(0.9, abs=0.02)
    # Unheard, the bit is named half of the time: .9 (1 - 1/2), for each agent of the team.
    assert first["worth"] == pytest.approx(0.45, abs=0.06)
    assert first["low"] < first["worth"] < first["high"] < first["low"] + 0.1
    assert second == {"from": "agent_1", "to": "agent_0", "share": 0.0}, "never there, so never cut"


def test_the_worth_of_edges_is_asked_of_a_trained_team_without_training_it_again(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluation.ablation_episodes=600", "evaluation.episodes=64", "env.num_envs=8"]
    assert concord("evaluate", trained, *words, monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out.splitlines()
    header = next(
        n for n, line in enumerate(printed) if line.split() == ["from", "to", "share", "worth", "low", "high"]
    )
    assert printed[header + 1].split()[:2] == ["agent_0", "agent_1"]
    assert float(printed[header + 1].split()[3]) == pytest.approx(0.45, abs=0.08)
    (path,) = (trained / "evaluations").iterdir()
    metrics = json.loads(path.read_text())["metrics"]
    assert metrics["empty/return_per_agent"]["value"] == pytest.approx(0.5, abs=0.25)
    assert concord("evaluate", trained, "evaluation.film_episodes=2", monkeypatch=monkeypatch) == 2
    assert "evaluation.ablation_episodes" in capsys.readouterr().err  # among the settings that have an effect


# Pictures


def test_render_draws_edges_and_a_film_of_graphs_where_the_world_has_no_picture(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (trained / "graph.png").unlink()  # which the run itself has made
    assert concord("render", trained, monkeypatch=monkeypatch) == 0
    printed = capsys.readouterr().out
    assert "no film: CopyGame has no picture" in printed
    assert [line.split() for line in printed.splitlines()[-2:]] == [
        ["edges", str(trained / "graph.png")],
        ["graphs", str(trained / "graph.gif")],
    ]
    with Image.open(trained / "graph.gif") as film:
        assert film.n_frames == 24  # of as many episodes of one step
        assert film.width == 450


@pytest.mark.parametrize(("limit", "frames"), [(3, 6), (20, 8)])
def test_a_film_of_graphs_shows_whole_episodes_or_the_first_steps_beside_the_world(
    limit: int, frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("marl.algorithms.bnpg.graph_plots.FEWEST", 5)
    monkeypatch.setattr("marl.algorithms.bnpg.graph_plots.MOST", 8)
    env = {"world": "envs.particles:SimpleSpread", "args": {"agents": 3}, "time_limit": limit}
    run = Run.create(tmp_path, resolve(COPY, {"env": env}))
    world = make_env(run.config.env, num_envs=1)
    policy = BayesianPolicy(world.spec, BayesianPolicyConfig.model_validate(COPY["policy"]), Streams([0]))
    with Image.open(graph_film(run, policy)) as film:
        assert film.n_frames == frames
        assert film.width == 900


def test_a_frame_has_an_arrow_only_where_a_message_was_sent() -> None:
    policy, obs = make(GRAPHS["line"], Walk())
    with torch.no_grad():
        decision, _ = policy.act(obs, None, Streams([0]))
    found = []
    for edges in (decision.latent.edges, torch.zeros_like(decision.latent.edges)):
        shown = dataclasses.replace(decision, latent=Graph(decision.latent.order, edges))
        step: Any = None
        frame = graph_frame(Walk().spec, Moment(obs, None, shown, step), "a title")
        assert frame.dtype == np.uint8
        found.append(int((frame == ARROW).all(-1).sum()))
    assert found[0] > 100
    assert found[1] == 0


def test_a_heat_map_is_drawn_for_any_number_of_agents(tmp_path: Path) -> None:
    for count in (1, 2, 30):
        names = [f"agent_{i}" for i in range(count)]
        table = [{"from": i, "to": j, "share": 0.5} for i in names for j in names if i != j]
        assert heat_map(names, table, tmp_path / f"{count}.png").stat().st_size > 1000


def test_a_picture_that_cannot_be_drawn_is_told_and_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*given: Any) -> Path:
        raise RuntimeError("no fonts")

    monkeypatch.setattr("marl.algorithms.bnpg.heat_map", broken)
    (tmp_path / "copy.yaml").write_text(json.dumps(COPY))
    words = ["train.env_steps=512", "evaluation.ablation_episodes=0", "evaluation.episodes=64"]
    assert concord("run", tmp_path / "copy.yaml", *words, "--out", tmp_path / "run", monkeypatch=monkeypatch) == 0
    assert "no graph: RuntimeError: no fonts" in capsys.readouterr().out
    edges = json.loads((tmp_path / "run" / "report.json").read_text())["tables"]["edges"]
    assert all("worth" not in row for row in edges)


def test_tensorboard_shows_the_share_of_each_edge_during_training(trained: Path) -> None:
    events = EventAccumulator(str(trained / "events" / "train"), size_guidance={"images": 0})
    events.Reload()
    shown, density = events.Images("graph_shares"), events.Scalars("graph_density")
    assert [image.step for image in shown] == [scalar.step for scalar in density]
    for image, scalar in zip(shown[:3], density):
        gray = np.array(Image.open(io.BytesIO(image.encoded_image_string)))
        half = len(gray) // 2
        assert gray[half - 1, half] == round(255 * scalar.value)  # agent 0 to agent 1: the only pair there is
        assert gray[half:].max() == gray[:half, :half].max() == 0
    rows = read_rows(trained / "metrics.csv")
    assert "graph_density" in rows[0]
    assert "graph_shares" not in rows[0]
