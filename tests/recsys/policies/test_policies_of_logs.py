"""Policies give distributions over the catalog, whatever the size of a block."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_logs import ACTIONS, COLUMNS, CONTEXTS, frame, log_of

from envs.core import InputError
from recsys.logs.log import Chunk
from recsys.models.reward import TableModel, smoothed_mean
from recsys.policies import base as policies
from recsys.policies.base import ContextPolicy, Policy, TablePolicy, expected_reward

SCORES = tuple(f"score{a}" for a in range(ACTIONS))
LOG = log_of(frame(300), replace(COLUMNS, context=SCORES))
(ROWS,) = LOG.chunks()


def by_position(rows: Chunk) -> np.ndarray:
    """A function of the user's own."""
    return np.eye(ACTIONS)[rows.position]


def test_every_policy_is_a_distribution_and_says_what_the_logged_action_gets(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("item,a,b,c\n2,.1,.2,.3\n0,.2,.2,.3\n1,.3,.3,.3\n3,.4,.3,.1\n")
    every: list[Policy] = [
        policies.uniform(LOG),
        policies.popularity(LOG),
        policies.stored_table(LOG, tmp_path / "table.csv"),
        policies.softmax(LOG, SCORES, 0.5),
        policies.epsilon_greedy(LOG, SCORES, 0.2),
        policies.own(LOG, f"{__name__}:by_position"),
    ]
    for policy in every:
        found = policy.distribution(ROWS)
        assert found.shape == (300, ACTIONS)
        np.testing.assert_allclose(found.sum(1), 1)
        np.testing.assert_array_equal(policy.probability(ROWS), found[np.arange(300), ROWS.action])


def test_the_named_policies_are_what_they_are_called(tmp_path: Path) -> None:
    scores = np.stack([ROWS.context[name] for name in SCORES], 1)
    assert (policies.uniform(LOG).distribution(ROWS) == 1 / ACTIONS).all()
    shown = np.bincount(ROWS.action) / 300
    np.testing.assert_allclose(policies.popularity(LOG).table, np.tile(shown, (CONTEXTS, 1)))
    weights = np.exp(scores / 0.5)
    soft = policies.softmax(LOG, SCORES, 0.5).distribution(ROWS)
    np.testing.assert_allclose(soft, weights / weights.sum(1, keepdims=True))
    greedy = policies.epsilon_greedy(LOG, SCORES, 0.2).distribution(ROWS)
    np.testing.assert_allclose(greedy, 0.8 * np.eye(ACTIONS)[scores.argmax(1)] + 0.05)
    (tmp_path / "table.csv").write_text("item,a,b,c\n2,.1,.2,.3\n0,.2,.2,.3\n1,.3,.3,.3\n3,.4,.3,.1\n")
    stored = policies.stored_table(LOG, tmp_path / "table.csv").table
    np.testing.assert_allclose(stored, [[0.2, 0.3, 0.1, 0.4], [0.2, 0.3, 0.2, 0.3], [0.3, 0.3, 0.3, 0.1]])


def test_equal_scores_share_what_is_greedy() -> None:
    tied = replace(ROWS, context={name: np.zeros(300) for name in SCORES})
    np.testing.assert_allclose(policies.epsilon_greedy(LOG, SCORES, 0.0).distribution(tied), 1 / ACTIONS)


def test_the_expected_reward_is_the_sum_over_actions_however_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = smoothed_mean(LOG, 5.0)
    table = policies.popularity(LOG)
    alike = ContextPolicy("alike", ACTIONS, table.distribution)
    brute = np.einsum("na,nak->nk", table.distribution(ROWS), model.predict(ROWS))
    monkeypatch.setattr(policies, "BLOCK", 56)  # seven rows at a time
    np.testing.assert_allclose(expected_reward(table, model, ROWS), brute, rtol=1e-12)
    np.testing.assert_allclose(expected_reward(alike, model, ROWS), brute, rtol=1e-12)
    np.testing.assert_array_equal(alike.probability(ROWS), table.probability(ROWS))


def test_the_smoothed_mean_is_pulled_towards_the_mean_of_the_log() -> None:
    model = smoothed_mean(LOG, 50.0)
    some = (ROWS.position == 1) & (ROWS.action == 2)
    wanted = (ROWS.reward[some].sum(0) + 50 * ROWS.reward.mean(0)) / (some.sum() + 50)
    np.testing.assert_allclose(model.table[1, 2], wanted, rtol=1e-12)
    np.testing.assert_array_equal(model.predict_logged(ROWS)[some][0], model.table[1, 2])
    assert isinstance(model, TableModel)


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at row 1 .* add up to 2"):
        ContextPolicy("bad", ACTIONS, lambda rows: np.full((len(rows), ACTIONS), 0.5)).distribution(ROWS)
    with pytest.raises(InputError, match="gave an array \\[300, 2\\]"):
        ContextPolicy("bad", ACTIONS, lambda rows: np.full((len(rows), 2), 0.5)).distribution(ROWS)
    with pytest.raises(InputError, match=r"at position 2 they lie in \[-0.5, 1.5\]"):
        TablePolicy("bad", np.array([[0.5, 0.5], [-0.5, 1.5]]))
    with pytest.raises(InputError, match="'skore0' \\(did you mean 'score0'"):
        policies.softmax(LOG, ("skore0", *SCORES[1:]))
    with pytest.raises(InputError, match="one column for each of the 4 actions; got 2"):
        policies.softmax(LOG, SCORES[:2])
    with pytest.raises(InputError, match="no such thing"):
        policies.own(LOG, "math:pi")
    path = tmp_path / "t.csv"
    with pytest.raises(InputError, match="no table"):
        policies.stored_table(LOG, path)
    path.write_text("item,a\n0,1\n")
    with pytest.raises(InputError, match="each of 3 positions"):
        policies.stored_table(LOG, path)
    path.write_text("item,a,b,c\n0,1,1,1\n9,0,0,0\n1,0,0,0\n2,0,0,0\n")
    with pytest.raises(InputError, match="1 are of actions that are not in it"):
        policies.stored_table(LOG, path)
