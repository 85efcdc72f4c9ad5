"""Cross-play: what trained teams earn beside partners they have never met, other seeds or scripts.

Source of the measure: Hu et al., "Other-Play" for Zero-Shot Coordination, ICML 2020 (arXiv 2003.02979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from envs.actors import require_actor
from envs.core import Actor, InputError, Streams, VectorEnv
from envs.team import HasPartners
from envs.world import TensorEnv
from marl.config.schema import TrainingConfig
from marl.evaluation.environments import AGENTS_AT_ONCE, evaluation_rows, make_evaluation_env
from marl.evaluation.episodes import play_policies
from marl.evaluation.exact import SELF, exact_returns
from marl.evaluation.lineups import Lineup, Lineups, lineups
from marl.evaluation.probe import weighted_returns
from marl.output.console import console
from marl.output.report import Metric, Tables
from marl.training.run import Run, stage_seed

ROWS_AT_ONCE = 1024  # of native worlds
ROUNDING = 1e-9  # relative
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
    error = max(pseudo.std(ddof=1) / math.sqrt(players), abs(by_pair) * pairs.std(ddof=1) / math.sqrt(len(pairs)))
    if error <= ROUNDING * max(1.0, abs(value)):  # what is alike in all of few players need not be so in others
        return Metric(value, -math.inf, math.inf, players)
    half = float(stats.t.ppf(0.975, players - 1) * error)
    return Metric(value, value - half, value + half, players)


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
        spec, scripts = env.spec, partners_of(env)
    slots = len(spec.agents)
    if both := sorted(trained.keys() & scripts.keys()):
        raise InputError(f"{both[0]} is the name of a script of this world; call what was trained otherwise.")
    players = {**trained, **scripts}
    pairs = [(who, partner) for who in trained for partner in players]
    blocks = list(dict.fromkeys(lineup for pair in pairs for lineup in lineups(*pair, slots)))
    most = min(ROWS_AT_ONCE, AGENTS_AT_ONCE // slots) if config.env.world is not None else rows
    at_once = max(1, most // rows)
    returns: dict[Lineup, np.ndarray] = {}
    with console.status("") as status:
        for first in range(0, len(blocks), at_once):
            status.update(f"cross-play: {len(returns)} of {len(blocks)} line-ups")
            some = blocks[first : first + at_once]
            with closing(make_evaluation_env(config, rows * len(some), device)) as env:
                played = play_policies(
                    env,
                    Lineups(spec, players, some),
                    config.evaluation.episodes,
                    [stage_seed(seed, "/".join(lineup)) for lineup in some],
                    config.evaluation.patience,
                )
            returns |= {
                lineup: weighted_returns(config, episodes.returns)
                for lineup, episodes in zip(some, played, strict=True)
            }
    return CrossPlay(tuple(trained), tuple(scripts), slots, returns)


def partners_of(env: VectorEnv) -> dict[str, Actor]:
    """Scripted partners of an environment's world, by name; none of other environments.

    Raises InputError where there is nobody to be beside, and for what is no actor or decides what is not allowed.
    """
    if len(env.spec.agents) < 2:
        raise InputError("Cross-play is of two agents or more; this environment has one.")
    world = env.world if isinstance(env, TensorEnv) else None
    if not (isinstance(world, HasPartners) and callable(world.partners)):
        return {}
    partners = world.partners()
    if not isinstance(partners, Mapping):
        raise InputError(f"partners() of a world gives actors by name; that of {type(world).__name__} gave {partners}.")
    for name, actor in partners.items():
        require_actor(actor, f"The partner {name!r} of {type(world).__name__}")
        if name == TRAINED:
            raise InputError(f"A partner of {type(world).__name__} is called {name!r}, which is whoever learns.")
    return dict(partners)


def check_evaluation_env(config: TrainingConfig) -> None:
    """Raise InputError, before training, for evaluations elsewhere, or beside scripts, that could not be made after it.

    For cross-play each script plays a step.
    """
    with closing(make_evaluation_env(config, 1)) as env:
        if not config.evaluation.cross_play:
            return
        for name, actor in partners_of(env).items():
            alone = Lineups(env.spec, {name: actor}, [(name,) * len(env.spec.agents)])
            alone.act(env.reset(0), alone.initial_memory(1), Streams([0]))


def beside_scripts(run: Run, actor: Actor, env: VectorEnv) -> tuple[dict[str, Metric], Tables]:
    """Cross-play of one trained team: `cross_play/beside_…`, a table `cross_play`, and `exact/…` in small worlds.

    Nothing of worlds without partners.
    """
    if not partners_of(env):
        return {}, {}
    played = cross_play(run.config, {TRAINED: actor}, stage_seed(run.config.seed, "cross-play"), run.device)
    metrics = {f"cross_play/{name}": metric for name, metric in played.metrics().items()}
    players = {SELF: TRAINED, **{script: script for script in played.scripts}}
    channels = weighted_returns(run.config, np.eye(len(env.spec.channels)))
    # Exact returns are of the first channel; what was sampled compares with them where it alone counts.
    comparable = channels[0] == 1 and not channels[1:].any()
    sampled = {name: played.episodes(TRAINED, player) for name, player in players.items()} if comparable else {}
    return {**metrics, **exact_returns(actor, env, sampled)}, {"cross_play": played.table()}
