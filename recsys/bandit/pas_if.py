"""PAS-IF on a log: which estimator errs least where the log itself is cut to look like the real problem."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import polars as pl
from jaxtyping import Float

from envs.core import InputError
from recsys.bandit.importance_weights import standard
from recsys.bandit.scan import Weighed
from recsys.config import EstimatorsConfig, SelectionConfig
from recsys.logs.log import Chunk, Log
from recsys.policies.base import Policy
from recsys.statistics.selection import Split, fit_subsampling, pas_if, subsample


def pas_if_errors(
    log: Log,
    policy: Policy,
    logging: Policy | None,
    settings: EstimatorsConfig,
    selection: SelectionConfig,
    prior_rows: float,
    seed: int,
) -> dict[str, Float[np.ndarray, " K"]]:
    """Each standard estimator's mean squared error by signal, over `selection.splits` splits; see `selection.pas_if`.

    The reward model is fitted anew on the rows of each split. A log of more than `selection.rows` rows is thinned to
    every m-th. Raises InputError where the whole policy that logged is not known.
    """
    if logging is None:
        raise InputError(
            "PAS-IF splits by the whole policy that logged: tell it with data.logging, or select by slope."
        )
    rows = _sample(log, selection.rows)
    chances = logging.distribution(rows)
    rule = fit_subsampling(policy.distribution(rows), chances, selection.share)
    users = None if log.columns.user is None else rows.cluster
    splits = [subsample(rule, rows.action, chances, seed + place, users) for place in range(selection.splits)]
    weighed = {id(split): _weighed(rows, split, log.positions, prior_rows) for split in splits}
    known = standard(settings)
    names = [name for name in settings.names or known if name in known]

    def estimator(name: str) -> Callable[[Split], np.ndarray]:
        return lambda split: known[name](weighed[id(split)]).estimate()

    estimators: Mapping[str, Callable[[Split], np.ndarray]] = {name: estimator(name) for name in names}
    return pas_if(estimators, rows.reward, splits)


def _sample(log: Log, most: int) -> Chunk:
    """At most so many rows, evenly from the whole log, as one chunk."""
    length = int(log.frame.select(pl.len()).collect().item())
    every = -(-length // most)
    return Chunk.joined(list(log.of_rows(log.frame.gather_every(every)).chunks()))


def _weighed(rows: Chunk, split: Split, positions: int, prior_rows: float) -> Weighed:
    """The pseudo logger's rows, weighed for the pseudo target policy; the model is the smoothed mean of these rows."""
    at = np.flatnonzero(split.logged)
    action, place, reward = rows.action[at], rows.position[at], rows.reward[at]
    target, logging = split.target[at], split.logging[at]
    # q(position, a) = (Σ r + prior_rows · mean) / (rows + prior_rows), by cells of position and action
    actions = target.shape[1]
    cell = place * actions + action
    count = np.bincount(cell, minlength=positions * actions)
    totals = np.stack([np.bincount(cell, signal, len(count)) for signal in reward.T], 1)
    by_cell = (totals + prior_rows * reward.mean(0)) / (count + prior_rows)[:, None]
    q = by_cell.reshape(positions, actions, -1)
    # w = π_e / π_b of the logged action, v = Σ_a π_e q
    row = np.arange(len(action))
    chosen = target[row, action]
    value = np.stack([np.einsum("na,na->n", target, q[place, :, k]) for k in range(q.shape[2])], 1)
    return Weighed(
        weight=chosen / logging[row, action],
        reward=reward,
        q_logged=q[place, action],
        value=value,
        target=chosen,
    )
