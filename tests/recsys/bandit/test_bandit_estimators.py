"""Each estimator where its assumption holds, and where it breaks; against another implementation on real logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_logs import Bandit, Drawn, bandit

from recsys.bandit import estimators as e
from recsys.bandit.estimators import Ratio
from recsys.bandit.scan import Sums, Weighed, sum_up
from recsys.logs import formats
from recsys.models.reward import smoothed_mean
from recsys.policies import base as policies

PEER = json.loads((Path(__file__).parents[2] / "fixtures" / "expected_obp_0.5.7.json").read_text())
ROWS = 200_000
CASES = ["all:random->bts", "all:bts->random", "women:random->bts", "women:bts->random"]

OURS: dict[str, Callable[[Weighed, float], Ratio]] = {
    "ipw": lambda x, _: e.ips(x.weight, x.reward),
    "snipw": lambda x, _: e.snips(x.weight, x.reward),
    "dm": lambda x, _: e.dm(x.value),
    "dr": lambda x, _: e.dr(x.weight, x.reward, x.q_logged, x.value),
    "sndr": lambda x, _: e.sndr(x.weight, x.reward, x.q_logged, x.value),
    "ipw_cap": lambda x, cap: e.capped_ips(x.weight, x.reward, cap),
    "dr_cap": lambda x, cap: e.capped_dr(x.weight, x.reward, x.q_logged, x.value, cap),
    "switch_dr_": lambda x, threshold: e.switch_dr(x.weight, x.reward, x.q_logged, x.value, threshold),
    "dros_": lambda x, shrinkage: e.dros(x.weight, x.reward, x.q_logged, x.value, shrinkage),
    "sgipw_": lambda x, shrinkage: e.subgaussian_ips(x.weight, x.reward, shrinkage),
    "sgdr_": lambda x, shrinkage: e.subgaussian_dr(x.weight, x.reward, x.q_logged, x.value, shrinkage),
}
TUNED = {"ipw_slope": "ipw_cap", "ipw_msetune": "ipw_cap", "switch_slope": "switch_dr_", "dros_slope": "dros_"}


def named(peer: str) -> Callable[[Weighed], Ratio]:
    """Our estimator for the peer's name, such as dros_10."""
    stem = next(stem for stem in sorted(OURS, key=len, reverse=True) if peer.startswith(stem))
    setting = float(peer.removeprefix(stem) or 0)
    return lambda x: OURS[stem](x, setting)


def evaluated(case: str) -> Sums:
    campaign, _, pair = case.partition(":")
    logged_by, _, target = pair.partition("->")
    log = formats.open_bandit(None, campaign, logged_by)  # type: ignore[arg-type]
    policy = policies.uniform(log)
    if target == "bts":
        policy = policies.stored_table(log, formats.open_bandit_policy(campaign))  # type: ignore[arg-type]
    wanted = [name for name in PEER["cases"][case]["values"] if name not in TUNED]
    assert len(wanted) == 23
    known = {name: named(name) for name in wanted}
    for tuned, setting in PEER["cases"][case]["tuned"].items():
        known[tuned] = named(f"{TUNED[tuned]}{setting}")
    known["ncis10"] = lambda x: e.ncis(x.weight, x.reward, 10.0)
    return sum_up(log, [policy], smoothed_mean(log, 50.0), known)[policy.name]


@pytest.mark.parametrize("case", CASES)
def test_real_logs_give_another_implementations_values(case: str) -> None:
    sums, expected = evaluated(case), PEER["cases"][case]
    for name, value in expected["values"].items():
        assert sums.estimate(name)[0] == pytest.approx(value, rel=1e-10), name
    assert sums.estimate("ncis10")[0] == pytest.approx(expected["ncis10"], rel=1e-10)
    assert sums.weights.ess == pytest.approx(expected["ess"], rel=1e-10)
    assert sums.weights.max_weight == pytest.approx(expected["w_max"], rel=1e-10)
    assert sums.weights.mean == pytest.approx(expected["w_mean"], rel=1e-10)
    assert sums.n == expected["n"]


def z_score(found: Ratio, truth: np.ndarray) -> np.ndarray:
    """How many standard errors the estimate is from the truth, by signal."""
    moves = np.zeros_like(found.plain if found.plain is not None else found.numerator)
    if found.plain is not None:
        moves += (found.plain - found.plain.mean(0)) / len(moves)
    if found.numerator is not None and found.denominator is not None:
        below = found.denominator.sum()
        moves += (found.numerator - found.numerator.sum(0) / below * found.denominator[:, None]) / below
    error = np.sqrt((moves**2).sum(0))
    off = found.estimate() - truth
    # A direct method with nothing random in it has no error: equal is 0, else infinite.
    return np.where(np.abs(off) < 1e-12, 0.0, off / np.maximum(error, 1e-300))


def wrong(x: np.ndarray) -> np.ndarray:
    """A model that errs by the context and the action."""
    shift = np.linspace(-0.2, 0.6, x.shape[0] * x.shape[1]).reshape(x.shape[:2])
    return x + shift[..., None]


def dr_columns(b: Bandit, d: Drawn, q: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """weight, reward, q_logged, value."""
    value = np.einsum("xa,xak->xk", b.target, q)[d.x]
    return d.weight, d.reward, q[d.x, d.a], value


def misreported(b: Bandit, d: Drawn) -> np.ndarray:
    """Weights from propensities that are wrong: as if all actions had been alike."""
    return d.probability * b.logging.shape[1]


Case = Callable[[Bandit, Drawn], Ratio]


def with_model(estimator: Callable[..., Ratio], *settings: float) -> tuple[Case, Case]:
    """A good model, and a bad one."""
    return (
        lambda b, d: estimator(*dr_columns(b, d, b.mean), *settings),
        lambda b, d: estimator(*dr_columns(b, d, wrong(b.mean)), *settings),
    )


def with_wrong_model(estimator: Callable[..., Ratio]) -> tuple[Case, Case]:
    """A bad model with true propensities, and with wrong ones."""
    return (
        lambda b, d: estimator(*dr_columns(b, d, wrong(b.mean))),
        lambda b, d: estimator(misreported(b, d), *dr_columns(b, d, wrong(b.mean))[1:]),
    )


def with_weights(estimator: Callable[..., Ratio]) -> tuple[Case, Case]:
    """True propensities, and wrong ones."""
    return (
        lambda b, d: estimator(d.weight, d.reward),
        lambda b, d: estimator(misreported(b, d), d.reward),
    )


def with_setting(estimator: Callable[..., Ratio], good: float, bad: float) -> tuple[Case, Case]:
    """A setting without bias, and one with it."""
    return (
        lambda b, d: estimator(d.weight, d.reward, good),
        lambda b, d: estimator(d.weight, d.reward, bad),
    )


PAIRS: dict[str, tuple[Case, Case]] = {
    "ips": with_weights(e.ips),
    "snips": with_weights(e.snips),
    "capped_ips": with_setting(e.capped_ips, 1e9, 1.0),
    "ncis": with_setting(e.ncis, 1e9, 1.0),
    "subgaussian_ips": with_setting(e.subgaussian_ips, 0.0, 0.5),
    "dm": (lambda b, d: e.dm(dr_columns(b, d, b.mean)[3]), lambda b, d: e.dm(dr_columns(b, d, wrong(b.mean))[3])),
    "dr": with_wrong_model(e.dr),
    "mrdr": with_wrong_model(e.mrdr),
    "sndr": with_wrong_model(e.sndr),
    "capped_dr": with_model(e.capped_dr, 1.0),
    "switch_dr": with_model(e.switch_dr, 1.0),
    "dros": with_model(e.dros, 1.0),
    "subgaussian_dr": with_model(e.subgaussian_dr, 0.5),
}


@pytest.mark.parametrize("name", PAIRS)
def test_an_estimator_is_right_where_its_assumption_holds_and_only_there(name: str) -> None:
    b = bandit()
    d = b.draw(ROWS, seed=1)
    holds, breaks = (np.abs(z_score(case(b, d), b.truth)) for case in PAIRS[name])
    assert (holds < 4).all()
    assert (breaks > 4).all()


def test_dr_is_right_with_wrong_propensities_if_the_model_is_right() -> None:
    b = bandit()
    d = b.draw(ROWS, seed=2)
    found = e.dr(misreported(b, d), *dr_columns(b, d, b.mean)[1:])
    assert (np.abs(z_score(found, b.truth)) < 4).all()


def test_replay_needs_uniform_logging() -> None:
    b = bandit()
    for logging, right in ((np.full_like(b.logging, 0.25), True), (b.logging, False)):
        chosen = Bandit(logging, np.eye(4)[[0, 1, 2]], b.mean)
        d = chosen.draw(ROWS, seed=3)
        z = np.abs(z_score(e.replay(d.a == d.x, d.reward), chosen.truth))
        assert (z < 4).all() if right else (z > 4).all()


def test_mips_needs_no_action_to_matter_beyond_its_category() -> None:
    """The logger never shows action 0, yet its category has support through action 1."""
    b, category = bandit(), np.array([0, 0, 1, 1])
    logging = b.logging * [0, 1, 1, 1] / (b.logging * [0, 1, 1, 1]).sum(1, keepdims=True)
    for mean, right in ((b.mean[:, [0, 0, 2, 2]], True), (b.mean, False)):
        unsupported = Bandit(logging, b.target, mean)
        d = unsupported.draw(ROWS, seed=4)
        z = z_score(e.mips(b.target[d.x], logging[d.x], category, d.a, d.reward), unsupported.truth)
        assert (np.abs(z) < 4).all() if right else (np.abs(z) > 4).all()
        assert (np.abs(z_score(e.ips(d.weight, d.reward), unsupported.truth)) > 4).all()


def test_balanced_ips_needs_the_true_shares_and_only_the_mixtures_support() -> None:
    b = bandit()
    loggers = np.array([[0.5, 0.5, 0, 0], [0, 0.2, 0.4, 0.4]])
    shares, parts = np.array([0.25, 0.75]), []
    for logger, share in zip(loggers, shares):
        parts.append(Bandit(np.tile(logger, (3, 1)), b.target, b.mean).draw(int(share * ROWS), seed=5))
    a, x, reward = (np.concatenate([getattr(part, name) for part in parts]) for name in ("a", "x", "reward"))
    found = [e.balanced_ips(b.target[x, a], loggers[:, a].T, s, reward) for s in (shares, shares[::-1])]
    assert (np.abs(z_score(found[0], b.truth)) < 4).all()
    assert (np.abs(z_score(found[1], b.truth)) > 4).all()


def test_kernel_ips_needs_rewards_that_are_straight_within_a_bandwidth() -> None:
    rng = np.random.default_rng(6)
    a = rng.uniform(-1, 1, ROWS)
    reward = np.stack([2 + a, 2 + 3 * a**2], 1)
    found = e.kernel_ips(0.1 - a, np.full(ROWS, 0.5), reward, bandwidth=0.5)
    z = np.abs(z_score(found, np.array([2.1, 2.03])))
    assert z[0] < 4 < z[1]


def test_a_model_fitted_with_mrdrs_weights_makes_dr_less_variable() -> None:
    """Of all q that know the action only, for a deterministic target."""
    rng = np.random.default_rng(7)
    logging = np.array([[0.9, 0.1], [0.05, 0.95]])
    mean = rng.uniform(0, 1, (2, 2, 1))
    b = Bandit(logging, np.array([[1.0, 0.0], [1.0, 0.0]]), mean)
    d = b.draw(ROWS, seed=8)
    spread = []
    for weights in (np.ones(ROWS), e.mrdr_regression_weight(d.probability, d.propensity)):
        total = np.bincount(d.a, weights, 2)
        fitted = np.bincount(d.a, weights * d.reward[:, 0], 2) / np.maximum(total, 1e-9)
        q = np.tile(fitted[None, :, None], (2, 1, 1))
        spread.append(e.mrdr(*dr_columns(b, d, q)).plain.var())
    assert spread[1] < 0.97 * spread[0]


def test_without_a_model_dr_is_ips_and_extreme_settings_are_the_limits() -> None:
    b = bandit()
    d = b.draw(1000, seed=9)
    w, r, q, v = dr_columns(b, d, wrong(b.mean))
    zero = np.zeros_like(r)

    def same(one: Ratio, other: Ratio) -> None:
        np.testing.assert_allclose(one.estimate(), other.estimate(), rtol=1e-9)

    same(e.dr(w, r, zero, zero), e.ips(w, r))
    same(e.sndr(w, r, zero, zero), e.snips(w, r))
    same(e.dros(w, r, q, v, 1e14), e.dr(w, r, q, v))
    same(e.dros(w, r, q, v, 1e-14), e.dm(v))
    same(e.switch_dr(w, r, q, v, 0.0), e.dm(v))
    same(e.subgaussian_ips(w, r, 1.0), Ratio(r))


def test_a_denominator_of_0_is_no_number() -> None:
    assert np.isnan(e.replay(np.zeros(5, bool), np.ones((5, 2))).estimate()).all()
