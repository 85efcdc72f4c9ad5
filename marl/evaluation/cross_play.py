"""Cross-play: what trained teams earn beside partners they have never met, other seeds or scripts.

Source of the measure: Hu et al., "Other-Play" for Zero-Shot Coordination, ICML 2020 (arXiv 2003.02979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, Num
from torch import Tensor

from envs.core import Actor, Decision, InputError, Observation, Streams, Tree, VectorEnv, tree_map
from envs.team import HasPartners
from envs.world import TensorEnv
from marl.config.schema import TrainingConfig
from marl.evaluation.environments import evaluation_rows, make_evaluation_env
from marl.evaluation.episodes import play_policies
from marl.evaluation.exact import SELF, exact_returns
from marl.evaluation.probe import worth
from marl.evaluation.seats import take
from marl.output.console import console
from marl.output.report import Metric, Tables
from marl.training.run import Run, stage_seed

Lineup = tuple[str, ...]  # who plays in each slot
ROWS_AT_ONCE = 1024  # of native worlds
TRAINED = "trained"  # the one player of a run by itself


@dataclass(frozen=True)
class CrossPlay:
    """Returns of trained players beside each other and beside scripted ones.

    returns: by who plays in each slot, [n] returns per agent of episodes drawn for this line-up alone; channels are
    added by the weights with which training ended.
    """

    trained: tuple[str, ...]
    scripts: tuple[str, ...]
    slots: int
    returns: Mapping[Lineup, np.ndarray]

    def episodes(self, who: str, partner: str) -> np.ndarray:
        """Returns [n] of a player in one slot beside a partner in all others, means over its slots."""
        return np.mean([self.returns[lineup] for lineup in lineups(who, partner, self.slots)], axis=0)

    def matrix(self) -> np.ndarray:
        """Mean returns of trained players (rows) beside trained players, then scripts (columns)."""
        return np.array([[self.episodes(who, other).mean() for other in self.partners] for who in self.trained])

    @property
    def partners(self) -> tuple[str, ...]:
        """Columns of the matrix."""
        return self.trained + self.scripts

    def table(self) -> list[dict[str, Any]]:
        """A row for each pair: who, beside whom, the mean return and its 95 % interval over episodes."""
        rows = []
        for who in self.trained:
            for partner in self.partners:
                earned = Metric.mean(self.episodes(who, partner))
                rows.append(
                    {"who": who, "beside": partner, "return": earned.value, "low": earned.low, "high": earned.high}
                )
        return rows

    def metrics(self) -> dict[str, Metric]:
        """`self`, `others`: mean returns beside oneself and beside the other trained players; `share`: of these, the
        second by the first; `gap`: their difference; `beside_…`: mean returns beside each script.

        Intervals are those of the jackknife over trained players (Arvesen, Annals of Mathematical Statistics 40, 1969):
        infinite below three of them, as is all that needs two players where there is one.
        """
        matrix, players = self.matrix(), len(self.trained)
        found: dict[str, Metric] = {}
        if players > 1:
            found |= {name: jackknife(matrix, statistic) for name, statistic in STATISTICS.items()}
        for column, script in enumerate(self.scripts, start=players):
            earned = [self.episodes(self.trained[0], script)] if players == 1 else matrix[:, column]
            found[f"beside_{script}"] = Metric.mean(np.ravel(earned))
        return found


def own(matrix: np.ndarray) -> float:
    """Mean over players of what each earns beside itself."""
    return float(np.diagonal(matrix).mean())


def others(matrix: np.ndarray) -> float:
    """Mean over pairs of different players of what they earn."""
    return float(matrix[:, : len(matrix)][~np.eye(len(matrix), dtype=bool)].mean())


def share(matrix: np.ndarray) -> float:
    """What different players earn by what each earns beside itself; no number unless that is above 0."""
    return others(matrix) / own(matrix) if own(matrix) > 0 else math.nan


def gap(matrix: np.ndarray) -> float:
    """What is lost beside others."""
    return own(matrix) - others(matrix)


STATISTICS = {"self": own, "others": others, "share": share, "gap": gap}


def jackknife(matrix: np.ndarray, statistic: Callable[[np.ndarray], float]) -> Metric:
    """A statistic of P players, [P, partners], with the jackknife's 95 % interval over players, Student's with P - 1.

    Leaving out a player leaves out its row and its column. Infinite where that leaves no pair. Half of ten players may
    have one convention and half another: leaving out any then changes nothing, and the jackknife alone would see no
    error. So it is no less than that of as many pairs, were they independent.
    """
    from scipy import stats

    players, value = len(matrix), statistic(matrix)
    if players < 3:
        return Metric(value, -math.inf, math.inf, players)
    without = [np.delete(np.delete(matrix, i, 0), i, 1) for i in range(players)]
    pseudo = np.array([players * value - (players - 1) * statistic(rest) for rest in without])
    if np.isnan(pseudo).any():
        return Metric(value, -math.inf, math.inf, players)
    pairs = ((matrix[:, :players] + matrix[:, :players].T) / 2)[np.triu_indices(players, 1)]
    by_pair = statistic(matrix + 1 - np.eye(*matrix.shape)) - value  # statistics are linear in what pairs earn
    if not pseudo.std() and not pairs.std():  # what is alike in all of few players need not be in others
        return Metric(value, -math.inf, math.inf, players)
    error = max(pseudo.std(ddof=1) / math.sqrt(players), abs(by_pair) * pairs.std(ddof=1) / math.sqrt(len(pairs)))
    half = float(stats.t.ppf(0.975, players - 1) * error)
    return Metric(value, value - half, value + half, players)


def lineups(who: str, partner: str, slots: int) -> list[Lineup]:
    """Every way for one to play beside a partner in all other slots; one way for it to play beside itself."""
    if who == partner:
        return [(who,) * slots]
    return [tuple(who if slot == seat else partner for slot in range(slots)) for seat in range(slots)]


class Lineups:
    """An Actor whose rows are P blocks of R rows, policy-major; in each block other players fill the slots.

    Each player is asked once for all rows in which it has a slot. A block plays as `envs.team.Team` of its players, in
    the order of `players`, would alone: it has a stream of random numbers of its own.
    """

    keeps_rows = True

    def __init__(self, players: Mapping[str, Actor], blocks: Sequence[Lineup]):
        self.blocks = blocks
        present = {name for lineup in blocks for name in lineup}
        self.players = {name: actor for name, actor in players.items() if name in present}

    def initial_memory(self, num_envs: int) -> Tree:
        """Each player's, in all E rows; it is asked and remembers in its own."""
        memories = []
        for name, actor in self.players.items():
            rows = self._rows(self._blocks(name), num_envs)
            memory = actor.initial_memory(len(rows))
            memories.append(tree_map(lambda x, rows=rows: put(x.new_zeros(num_envs, *x.shape[1:]), rows, x), memory))
        return tuple(memories)

    def act(self, obs: Observation, memory: Tree, streams: Streams) -> tuple[Decision, Tree]:
        """Ask every player about its rows; its choices count in its slots."""
        joint, memories = None, []
        for (name, actor), remembered in zip(self.players.items(), memory, strict=True):
            blocks = self._blocks(name)
            rows = self._rows(blocks, len(obs.alive)).to(obs.alive.device)
            decision, later = actor.act(take(obs, rows), take(remembered, rows), _Some(streams, blocks))
            memories.append(tree_map(lambda old, new, rows=rows: put(old, rows, new), remembered, later))
            action = decision.action
            if joint is None:
                joint = action.new_zeros(len(obs.alive), *action.shape[1:])
            own = self._slots(name, blocks, obs).unsqueeze(-1)
            joint = put(joint, rows, torch.where(own, action.to(joint.dtype), joint[rows]))
        assert joint is not None
        return Decision(joint), tuple(memories)

    def _blocks(self, name: str) -> list[int]:
        return [block for block, lineup in enumerate(self.blocks) if name in lineup]

    def _rows(self, blocks: Sequence[int], count: int) -> Int[Tensor, " R"]:
        return torch.arange(count).view(len(self.blocks), -1)[blocks].flatten()

    def _slots(self, name: str, blocks: Sequence[int], obs: Observation) -> Bool[Tensor, "R N"]:
        """Slots that a player fills, in each row of these blocks."""
        filled = [[member == name for member in self.blocks[block]] for block in blocks]
        rows = len(obs.alive) // len(self.blocks)
        return torch.tensor(filled, device=obs.alive.device).repeat_interleave(rows, 0)


def put(x: Num[Tensor, E * rest], rows: Int[Tensor, " R"], new: Num[Tensor, R * rest]) -> Num[Tensor, E * rest]:
    """A copy of x with other rows."""
    return x.index_copy(0, rows.to(x.device), new)


class _Some(Streams):
    """Streams of some of the policies."""

    def __init__(self, streams: Streams, policies: Sequence[int]):
        self.device = streams.device
        self.on_host = [streams.on_host[p] for p in policies]
        self.generators = [streams.generators[p] for p in policies]


def cross_play(
    config: TrainingConfig, trained: Mapping[str, Actor], seed: int, device: torch.device | str = "cpu"
) -> CrossPlay:
    """Play trained players beside themselves, each other, and the world's scripted partners, where it has any.

    `evaluation.episodes` of each line-up, in the environment of evaluations. Each line-up draws its own numbers: common
    ones would make all cells err alike, which no interval over players could see. Raises InputError for agents who have
    no partner, and for players called like a script.
    """
    rows = evaluation_rows(config)
    with closing(make_evaluation_env(config, 1, device)) as env:
        slots, scripts = len(env.spec.agents), _scripts(env)
    if slots < 2:
        raise InputError("Cross-play is of two agents or more; this environment has one.")
    if both := sorted(trained.keys() & scripts.keys()):
        raise InputError(f"{both[0]} is the name of a script of this world; call what was trained otherwise.")
    players = {**trained, **scripts}
    pairs = [(who, partner) for who in trained for partner in players]
    blocks = list(dict.fromkeys(lineup for pair in pairs for lineup in lineups(*pair, slots)))
    at_once = max(1, ROWS_AT_ONCE // rows) if config.env.world is not None else 1
    returns: dict[Lineup, np.ndarray] = {}
    with console.status("") as status:
        for first in range(0, len(blocks), at_once):
            status.update(f"cross-play: {len(returns)} of {len(blocks)} line-ups")
            some = blocks[first : first + at_once]
            with closing(make_evaluation_env(config, rows * len(some), device)) as env:
                played = play_policies(
                    env,
                    Lineups(players, some),
                    config.evaluation.episodes,
                    [stage_seed(seed, "/".join(lineup)) for lineup in some],
                    config.evaluation.patience,
                )
            returns |= {lineup: worth(config, episodes.returns) for lineup, episodes in zip(some, played, strict=True)}
    return CrossPlay(tuple(trained), tuple(scripts), slots, returns)


def _scripts(env: VectorEnv) -> Mapping[str, Actor]:
    return env.world.partners() if isinstance(env, TensorEnv) and isinstance(env.world, HasPartners) else {}


def beside_scripts(run: Run, actor: Actor, env: VectorEnv) -> tuple[dict[str, Metric], Tables]:
    """Cross-play of one trained team: `cross_play/beside_…`, a table `cross_play`, and `exact/…` in small worlds."""
    played = cross_play(run.config, {TRAINED: actor}, stage_seed(run.config.seed, "cross-play"), run.device)
    metrics = {f"cross_play/{name}": metric for name, metric in played.metrics().items()}
    sampled = {SELF: played.episodes(TRAINED, TRAINED)}
    sampled |= {script: played.episodes(TRAINED, script) for script in played.scripts}
    return {**metrics, **exact_returns(actor, env, sampled)}, {"cross_play": played.table()}


def draw(panels: Mapping[str, Sequence[Mapping[str, Any]]], target: Path) -> Path:
    """Tables `cross_play` by title, as a picture: mean returns of trained players (rows) beside partners (columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sizes = {title: (_names(rows, "who"), _names(rows, "beside")) for title, rows in panels.items()}
    height = max(2.0, 1.6 + 0.45 * max(len(who) for who, _ in sizes.values()))
    width = sum(1.8 + 0.7 * len(beside) for _, beside in sizes.values())
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, rows) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items()):
        _draw_panel(axes, title, rows, *sizes[title])
    figure.savefig(target)
    return target


def _names(rows: Sequence[Mapping[str, Any]], column: str) -> list[str]:
    return list(dict.fromkeys(row[column] for row in rows))


def _draw_panel(axes: Any, title: str, rows: Sequence[Mapping[str, Any]], who: list[str], beside: list[str]) -> None:
    values = np.full((len(who), len(beside)), np.nan)
    for row in rows:
        values[who.index(row["who"]), beside.index(row["beside"])] = row["return"]
    image = axes.imshow(values, cmap="viridis", aspect="auto")
    axes.set_xticks(range(len(beside)), beside, rotation=45, ha="right")
    axes.set_yticks(range(len(who)), who)
    axes.set(title=title, xlabel="beside")
    for (i, j), value in np.ndenumerate(values):
        red, green, blue, _ = image.cmap(image.norm(value))
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        axes.text(j, i, f"{value:.3g}", ha="center", va="center", color="white" if dark else "black", fontsize=8)
