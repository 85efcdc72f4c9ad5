"""The linear reward model: it is the ridge regression that it says, blind to a row's user, and makes DR sharper."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from small_logs import ACTIONS, COLUMNS, frame, log_of

from envs.core import InputError
from marl.commands.run import run_training
from marl.config.load import resolve
from recsys.bandit.evaluate import evaluate, evaluate_rows
from recsys.config import EstimatorsConfig, EvaluationSettings, IntervalsConfig, RewardModelConfig
from recsys.logs.log import Chunk, Columns, Log
from recsys.models.cross_fitting import fold_of
from recsys.models.reward import fit_reward_model, smoothed_mean
from recsys.models.reward_linear import LinearModel, fit_linear
from recsys.policies.base import ContextPolicy, policies_of
from recsys.problems.bandit import synthetic_bandit

USERS = replace(COLUMNS, user="user")
NAMES = ("score0", "score1", "mood")
PRIOR, L2, FOLDS = 7.0, 3.0, 3


def table(rows: int = 300, seed: int = 0) -> pl.DataFrame:
    """The small log with a wide number, a mood of three words, and rows that count unlike."""
    mood = np.array(["calm", "glad", "sad"])[np.random.default_rng(seed).integers(3, size=rows)]
    count = np.random.default_rng(seed + 1).integers(4, size=rows)
    columns = {"score1": 1e6 + 50 * pl.col("score1"), "mood": pl.Series(mood), "count": pl.Series(count)}
    return frame(rows, seed).with_columns(**columns)


def whole(log: Log, model: LinearModel) -> Chunk:
    return Chunk.joined(list(log.with_context(model.columns).chunks()))


def fitted(data: pl.DataFrame, columns: Columns = USERS, **settings: int) -> tuple[LinearModel, Chunk]:
    log = log_of(data, columns, **settings)
    model = fit_linear(log, NAMES, PRIOR, L2, FOLDS)
    return model, whole(log, model)


def slopes(cell: np.ndarray, z: np.ndarray, y: np.ndarray, w: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Of some rows, each cell with an intercept of its own."""
    D = z.shape[1]
    x = np.concatenate([w * np.concatenate([cell, z], 1), np.sqrt(L2) * np.eye(cell.shape[1] + D)[-D:]])
    return np.linalg.lstsq(x, np.concatenate([w * y, np.sqrt(L2) * towards]), rcond=None)[0][-D:]


def dense(rows: Chunk, own: np.ndarray, positions: int) -> np.ndarray:
    """The same predictions by least squares over all rows, with a line for each penalty."""
    words = np.unique(rows.context["mood"].astype(str))
    numbers = np.stack([rows.context["score0"], rows.context["score1"]], 1)
    texts = (rows.context["mood"][:, None] == words) * 1.0
    count = np.ones(len(rows)) if rows.multiplicity is None else rows.multiplicity
    q = np.zeros((len(rows), ACTIONS, rows.reward.shape[1]))
    for fold in np.unique(own):
        seen = own != fold
        n, w = count[seen], np.sqrt(count[seen])[:, None]
        mean = (n @ rows.reward[seen]) / n.sum()
        center = n @ numbers[seen] / n.sum()
        scale = np.sqrt(n @ (numbers[seen] - center) ** 2 / n.sum())
        z = np.concatenate([(numbers - center) / scale, texts - n @ texts[seen] / n.sum()], 1)
        place, above = np.eye(positions)[rows.position], rows.reward[seen] - mean

        cell = np.eye(positions * ACTIONS)[rows.position * ACTIONS + rows.action]
        shared = slopes(cell[seen], z[seen], above, w, np.zeros((z.shape[1], above.shape[1])))
        for action in range(ACTIONS):
            mine = rows.action[seen] == action
            beta = slopes(place[seen][mine], z[seen][mine], above[mine], w[mine], shared)
            weighed = (n[:, None] * place[seen])[mine]
            left = weighed.T @ (above - z[seen] @ beta)[mine] / (weighed.sum(0) + PRIOR)[:, None]
            q[~seen, action] = mean + (place @ left + z @ beta)[~seen]
    return q


@pytest.mark.parametrize("columns", [USERS, COLUMNS, replace(USERS, multiplicity="count")])
def test_it_is_the_ridge_regression_over_all_rows(columns: Columns) -> None:
    model, rows = fitted(table(), columns)
    own = fold_of(rows, columns.user, FOLDS)
    q = dense(rows, own, 3)
    np.testing.assert_allclose(model.predict(rows), q, rtol=0, atol=1e-9)
    np.testing.assert_allclose(model.predict_logged(rows), q[np.arange(len(rows)), rows.action], rtol=0, atol=1e-9)
    assert model.predict(rows).std(0).min() > 1e-3  # it does see the row


def test_no_row_is_predicted_by_what_its_user_did() -> None:
    data = table()
    model, rows = fitted(data)
    own = fold_of(rows, "user", FOLDS)
    user = int(data["user"][0])
    fold = own[0]
    changed = data.with_columns(
        click=pl.when(pl.col("user") == user).then(1000.0).otherwise("click"),
        score0=pl.when(pl.col("user") == user).then(-20.0).otherwise("score0"),
    )
    other, _ = fitted(changed)
    same = rows.take(np.flatnonzero(own == fold))
    np.testing.assert_allclose(other.predict(same), model.predict(same), rtol=0, atol=1e-9)
    for unlike in set(range(FOLDS)) - {fold}:
        rest = rows.take(np.flatnonzero(own == unlike))
        assert np.abs(other.predict(rest) - model.predict(rest))[..., 0].max() > 0.1
    assert len({f for u, f in zip(data["user"], own, strict=True) if u == user}) == 1


def test_chunks_change_nothing_but_rounding() -> None:
    data = table(2000).sort("score1")  # the first rows are unlike the rest
    model, rows = fitted(data)
    cut, _ = fitted(data, chunk_rows=37)
    np.testing.assert_allclose(cut.predict(rows), model.predict(rows), rtol=0, atol=1e-9)


def test_columns_that_are_constant_leave_the_smoothed_mean() -> None:
    data = table().with_columns(constant=0.1, word=pl.lit("same"))
    log = log_of(data)
    model = fit_linear(log, ("constant", "word"), PRIOR, 1e-3, FOLDS)
    rows = whole(log, model)
    own = fold_of(rows, None, FOLDS)
    for fold in range(FOLDS):
        mean = smoothed_mean(log_of(data.filter(pl.Series(own != fold))), PRIOR)
        mine = rows.take(np.flatnonzero(own == fold))
        np.testing.assert_allclose(model.base[fold], mean.table, atol=1e-12)
        np.testing.assert_allclose(model.predict(rows)[own == fold], mean.predict(mine), atol=1e-12)


def test_more_columns_than_rows_and_actions_that_nobody_saw_give_finite_predictions() -> None:
    rng = np.random.default_rng(0)
    data = frame(30).with_columns(item=pl.col("item") % 2, **{f"x{d}": rng.normal(size=30) for d in range(60)})
    log = log_of(data)
    model = fit_linear(log, tuple(f"x{d}" for d in range(60)), PRIOR, 1e-6, 2)
    q = model.predict(whole(log, model))
    assert np.isfinite(q).all()
    np.testing.assert_allclose(np.ptp(q[:, 2:], axis=1), 0, atol=1e-12)  # the shared slopes, for want of own ones


MODELS = {
    "mean": RewardModelConfig(prior_rows=1),
    "linear": RewardModelConfig(kind="linear", columns=("x0", "x1", "x2", "x3"), prior_rows=1, l2=1),
    "shrunken": RewardModelConfig(kind="linear", columns=("x0", "x1", "x2", "x3")),
}


def preferring(actions: int) -> ContextPolicy:
    """A policy whose actions are moved by x0."""

    def choose(rows: Chunk) -> np.ndarray:
        chances = np.exp(np.outer(rows.context["x0"], np.linspace(-1, 1, actions)))
        return chances / chances.sum(1, keepdims=True)

    return ContextPolicy("new", actions, choose)


def test_where_rewards_are_linear_dm_loses_its_bias_and_dr_gets_narrow_and_still_covers() -> None:
    _, problem = synthetic_bandit(4000, 6, 4, users=1000, seed=2, beta=0.5, rewards="gaussian")
    policy, sure = preferring(6), IntervalsConfig(method="t")
    truth = problem.value(policy).value[0]
    names = EstimatorsConfig(names=("ips", "dm", "dr"))
    found: dict[str, list[list[float]]] = {}
    for seed in range(40):
        for kind, reward_model in MODELS.items():
            told = evaluate(
                problem.log(seed), [policy], reward_model=reward_model, estimators=names, intervals=sure, workers=1
            )
            for name in names.names:
                metric = told.metrics[f"{problem.signals[0]}/new/{name}"]
                found.setdefault(f"{kind}/{name}", []).append([metric.value, metric.low, metric.high])
    value, low, high = {}, {}, {}
    for name, rows in found.items():
        value[name], low[name], high[name] = np.array(rows).T
    bias = {name: abs(v.mean() - truth) for name, v in value.items()}
    width = {name: float((high[name] - low[name]).mean()) for name in value}
    covered = {name: int(((low[name] <= truth) & (truth <= high[name])).sum()) for name in value}
    assert bias["linear/dm"] < bias["mean/dm"] / 10
    assert bias["shrunken/dm"] < bias["mean/dm"] / 2  # by the defaults, which suit rare events
    for kind in ("linear", "shrunken"):
        assert width[f"{kind}/dr"] < 0.8 * min(width["mean/dr"], width["linear/ips"])
        assert min(covered[f"{kind}/dr"], covered["linear/ips"]) >= 34  # of 40 by 95 % intervals: 38 expected
    np.testing.assert_array_equal(value["linear/ips"], value["mean/ips"])


def test_any_number_of_workers_gives_the_same_bits_and_the_model_may_be_given() -> None:
    data = table(3000)
    log, config = log_of(data, USERS, chunk_rows=250), RewardModelConfig(kind="linear", columns=NAMES)
    given = fit_reward_model(log, config)
    runs = [
        evaluate(log, {"even": "uniform"}, reward_model=config, workers=1),
        evaluate(log, {"even": "uniform"}, reward_model=config, workers=3),
        evaluate_rows(log, policies_of({"even": "uniform"}, log), EvaluationSettings(workers=2), given),
    ]
    told = [{name: metric.value for name, metric in run.metrics.items()} for run in runs]
    assert told[0] == told[1] == told[2]


@pytest.mark.parametrize(
    ("change", "names", "told"),
    [
        ({}, ("scroe0",), "did you mean 'score0'"),
        ({}, ("click",), "came after"),
        ({}, ("p",), "came after"),
        (
            {"score0": pl.when(pl.col("tab") == 1).then(None).otherwise(1.0)},
            ("score0",),
            "score0.*missing or not finite",
        ),
        ({"score0": pl.lit(float("nan"))}, ("score0",), "300 rows"),
        ({"score0": pl.lit(float("inf"))}, ("score0",), "missing or not finite"),
        ({"mood": pl.lit(None, pl.String)}, ("mood",), "mood.*missing or not finite"),
        ({"mood": pl.int_range(pl.len()).cast(pl.String)}, ("mood",), "300 different values"),
        ({"mood": pl.lit("2024-01-01").str.to_date()}, ("mood",), "holds Date"),
        ({"user": pl.lit(3)}, ("score0",), "reward_model.folds"),
        ({"watch": pl.lit(1e308)}, ("score0",), "too large"),
    ],
)
def test_what_cannot_be_fitted_is_told(change: dict[str, pl.Expr], names: tuple[str, ...], told: str) -> None:
    log = log_of(table().with_columns(**change), USERS)
    with pytest.raises(InputError, match=told):
        fit_linear(log, names, PRIOR, L2, FOLDS)


def test_what_would_not_fit_into_memory_is_told_with_its_size() -> None:
    data = pl.DataFrame({"item": [0, 99_999], "p": [0.5, 0.5], "click": [0.0, 1.0], "x": [0.0, 1.0], "y": ["a", "b"]})
    log = Log(data.lazy(), Columns("item", ("click",), "p"))
    log = replace_catalog(log, 3_000_000)
    with pytest.raises(InputError, match="GB of sums"):
        fit_linear(log, ("x", "y"), PRIOR, L2, 5)


def replace_catalog(log: Log, actions: int) -> Log:
    from recsys.logs.catalog import Catalog

    return Log(log.frame, log.columns, Catalog.numbered(actions))


def test_a_setting_that_would_be_ignored_is_an_error() -> None:
    for bad in ({"columns": ("x",)}, {"l2": 3.0}, {"folds": 3}, {"kind": "linear"}):
        with pytest.raises(ValidationError, match="kind=linear"):
            RewardModelConfig(**bad)  # type: ignore[arg-type]


def test_a_config_that_would_mix_it_with_what_fits_means_is_refused_before_a_run() -> None:
    raw = {
        "recipe": "recsys.ope",
        "data": {"format": "synthetic"},
        "policy": {"target": "uniform"},
        "reward_model": {"kind": "linear", "columns": ["x0"]},
        "selection": {"method": "pas_if"},
    }
    with pytest.raises(InputError, match="goes with reward_model"):
        resolve(raw, {})


@pytest.mark.parametrize("recipe", ["recsys.ope", "recsys.learn"])
def test_configs_take_it(recipe: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    raw = {
        "recipe": recipe,
        "data": {"format": "synthetic", "synthetic": {"rows": 1500, "actions": 4, "features": 3, "users": 300}},
        "reward_model": {"kind": "linear", "columns": ["x0", "x1", "x2"]},
        "intervals": {"method": "t"},
    }
    raw |= {"policy": {"target": "uniform"}} if recipe == "recsys.ope" else {"train": {"env_steps": 2000}}
    seeing = run_training(resolve(raw, {}), tmp_path / "linear")
    blind = run_training(resolve(raw | {"reward_model": {}}, {}), tmp_path / "mean")
    name = next(name for name in seeing.metrics if name.endswith("uniform/dr"))
    assert seeing.metrics[name.replace("/dr", "/ips")] == blind.metrics[name.replace("/dr", "/ips")]
    assert seeing.metrics[name].value != blind.metrics[name].value
