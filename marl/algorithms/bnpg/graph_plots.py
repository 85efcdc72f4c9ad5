"""Graphs as pictures: how often each edge is there, and a film of who hears whom, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Num
from torch import Tensor

from envs.core import Discrete, EnvSpec, InputError
from marl.algorithms.bnpg.graphs import edge_list
from marl.algorithms.bnpg.policy import BayesianPolicy
from marl.evaluation.environments import make_evaluation_env
from marl.evaluation.episodes import Moment, watch
from marl.evaluation.plots import save_gif
from marl.evaluation.policy_report import filmed_env
from marl.training.run import Run, stage_seed

FEWEST, MOST = 24, 50  # frames: whole episodes until the fewest are reached, and never more than the most
WRITTEN = 10  # agents up to which a heat map also has its numbers written in


def heat_map(names: Sequence[str], table: Sequence[dict[str, Any]], target: Path) -> Path:
    """A picture of a report's table `edges`, the share of steps at which each is there: sender rows, receiver columns.

    The diagonal stays gray: nobody hears himself.
    """
    shares = np.full((len(names), len(names)), np.nan)
    for row in table:
        shares[names.index(row["from"]), names.index(row["to"])] = row["share"]
    size = max(4.0, 1.5 + 0.5 * len(names))
    figure = _figure(size + 1, size)
    axes = figure.add_subplot()
    axes.set_facecolor("lightgray")
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="viridis")
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90 if len(names) > 4 else 0)
    axes.set_yticks(places, names)
    axes.set(title="Who hears whom", xlabel="receiver", ylabel="sender")
    for i, j in [(i, j) for i in places for j in places if i != j and len(names) <= WRITTEN]:
        color = "white" if shares[i, j] < 0.6 else "black"
        axes.text(j, i, f"{shares[i, j]:.2f}", ha="center", va="center", color=color)
    figure.colorbar(image, label="share of steps", shrink=0.8)
    figure.savefig(target)
    return target


def graph_film(run: Run, policy: BayesianPolicy) -> Path:
    """graph.gif: at each step the executed edges, the actions, and the world's own picture where it has one.

    Plays whole episodes, one after the other, until there are enough frames; of a long one only the first steps.
    """
    frames: list[np.ndarray] = []
    episode, number = 1, 0
    with closing(_env(run)) as env:
        for moment in watch(env, policy, stage_seed(run.config.seed, "graph film"), lambda: _picture(env)):
            number += 1
            reward = float(moment.step.reward[0].sum(-1).mean())
            title = f"episode {episode}, step {number}: reward {reward:.3g} per agent"
            frames.append(graph_frame(env.spec, moment, title))
            ended = bool(moment.step.ended[0])
            episode, number = (episode + 1, 0) if ended else (episode, number)
            if len(frames) >= (FEWEST if ended else MOST):
                break
    width = frames[0].shape[1]
    return save_gif(frames, run.folder / "graph.gif", frames_per_second=2, width=width)


def graph_frame(spec: EnvSpec, moment: Moment, title: str) -> np.ndarray:
    """The first row's graph, [height, width, 3] uint8: agents on a circle with their actions, messages as arrows."""
    figure = _figure(4.5 if moment.picture is None else 9.0, 4.5)
    axes = figure.add_subplot(1, 1 if moment.picture is None else 2, 1)
    alive = moment.obs.alive[0]
    labels = [
        f"{name}\n{_did(spec, agent, moment.decision.action[0, agent])}" if alive[agent] else name
        for agent, name in enumerate(spec.agents)
    ]
    _draw_graph(axes, labels, moment.decision.latent.edges[0], alive)
    axes.set_title(title, fontsize=10)
    if moment.picture is not None:
        beside = figure.add_subplot(1, 2, 2)
        beside.imshow(moment.picture)
        beside.set(xticks=[], yticks=[])
    figure.canvas.draw()
    return np.array(figure.canvas.buffer_rgba())[..., :3]


def _draw_graph(axes: Any, labels: Sequence[str], edges: Bool[Tensor, "N N"], alive: Bool[Tensor, " N"]) -> None:
    """Agents on a circle, those who are gone in gray."""
    import networkx as nx

    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(labels)))
    graph.add_edges_from(edge_list(edges))
    places = nx.circular_layout(graph)
    size = min(2000, 20_000 / len(labels))  # in square points, so that neighbors on the circle do not touch
    colors = ["lightskyblue" if living else "lightgray" for living in alive.tolist()]
    nx.draw_networkx_nodes(graph, places, ax=axes, node_size=size, node_color=colors, edgecolors="dimgray")
    nx.draw_networkx_edges(graph, places, ax=axes, node_size=size, width=1.8, arrowsize=16, edge_color="firebrick")
    nx.draw_networkx_labels(graph, places, dict(enumerate(labels)), ax=axes, font_size=8)
    axes.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal")  # the same in all frames
    axes.axis("off")


def _did(spec: EnvSpec, agent: int, action: Num[Tensor, " A"]) -> str:
    """Action of an agent as text, without its padding."""
    space = spec.actions[agent]
    did = action[: space.size].tolist()
    return ", ".join(str(x) if isinstance(space, Discrete) else f"{x:.2f}" for x in did)


def _env(run: Run) -> Any:
    """The world that films show; where that cannot be drawn, the one that the team was trained in."""
    try:
        return filmed_env(run)
    except InputError:
        return make_evaluation_env(run.config, 1, run.device)


def _picture(env: Any) -> Any:
    """The world's own picture, or None; a world's `frame` may raise anything."""
    try:
        return env.frame()
    except Exception:
        return None


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure
