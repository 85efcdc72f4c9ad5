"""Estimators of what a policy would have earned in episodes that another one logged.

n trajectories, T steps (shorter ones are padded), K signals. w_t = π_e(a_t | s_t) / π_b(a_t | s_t) is the weight of a
step, ρ_t = w_0 ⋯ w_t that of the way there. Every estimator gives one contribution a trajectory and signal, [n,K],
whose mean is the estimate. Where weights are normalized, the contributions are linearized, est + (w/mean w)(y - est):
their mean is the ratio, and their spread its standard error to first order. After its end a trajectory rests in a state
without rewards and keeps its ρ, so that ρ_t has mean 1 at every step.

All of them need weights that are right (π_b known) and π_b > 0 wherever π_e > 0; what else they need stands with each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from envs.core import InputError
from recsys.statistics.diagnostics import MOST_WEIGHT

Discount = float | Float[np.ndarray, " K"]
PLAIN = ("tis", "wis", "pdis", "cwpdis", "ncis")  # need weights only
WITH_STATES = ("fqe", "seq_dr", "wdr", "magic")  # need fitted values too


@dataclass(frozen=True)
class Trajectories:
    """Logged episodes; `Trajectories.of` checks them. Where the mask is False, weights are 1 and rewards 0.

    weight [n,T]: π_e/π_b of the logged action. reward [n,T,K]. mask [n,T]: the steps that happened.
    """

    weight: Float[np.ndarray, "n T"]
    reward: Float[np.ndarray, "n T K"]
    mask: Bool[np.ndarray, "n T"]

    @classmethod
    def of(
        cls,
        weight: Float[np.ndarray, "*weights"],
        reward: Float[np.ndarray, "*rewards"],
        mask: Bool[np.ndarray, "*steps"] | None = None,
    ) -> Trajectories:
        """Checked, and neutral in the padding; without a mask all steps happened.

        Raises InputError for wrong shapes, gaps, NaN and negative weights.
        """
        mask = np.ones(weight.shape, bool) if mask is None else mask
        if (
            weight.ndim != 2
            or 0 in weight.shape
            or reward.ndim != 3
            or not reward.shape[:2] == weight.shape == mask.shape
        ):
            raise InputError(
                "Trajectories need weight [n,T], reward [n,T,K] and mask [n,T] of the same n > 0 and T > 0; got "
                f"{weight.shape}, {reward.shape} and {mask.shape}. One signal is still an axis: reward[:, :, None]."
            )
        gaps = np.flatnonzero(~mask[:, 0] | (mask[:, 1:] & ~mask[:, :-1]).any(1))
        if len(gaps):
            raise InputError(
                f"A trajectory's steps stand at its start, padding behind them; {len(gaps)} masks have a gap or no "
                f"step, the first in row {gaps[0]}. `pad` builds the arrays from a table of steps."
            )
        wrong = mask & ~(np.isfinite(weight) & (weight >= 0) & np.isfinite(reward).all(-1))
        if wrong.any():
            row, step = np.argwhere(wrong)[0]
            raise InputError(
                f"Weights must be finite and not negative, rewards finite; {wrong.sum()} steps are not, the first "
                f"being step {step} of trajectory {row}: weight {weight[row, step]}, reward {reward[row, step]}."
            )
        full = bool(mask.all())
        return cls(
            weight if full else np.where(mask, weight, 1.0),
            reward if full else np.where(mask[..., None], reward, 0.0),
            mask,
        )

    def at_steps(self, name: str, values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "n T K"]:
        """Something known at each step and signal, 0 in the padding. Raises InputError for another shape or NaN."""
        if values.shape != self.reward.shape:
            raise InputError(f"{name} must have the rewards' shape [n,T,K] = {self.reward.shape}; got {values.shape}.")
        values = np.where(self.mask[..., None], values, 0.0)
        if not np.isfinite(values).all():
            raise InputError(f"{name} must be finite at every step that happened; it has NaN or infinite entries.")
        return values


def pad(
    values: Shaped[np.ndarray, "steps ..."], lengths: Int[np.ndarray, " n"]
) -> tuple[Shaped[np.ndarray, "n T ..."], Bool[np.ndarray, "n T"]]:
    """A table of steps, one trajectory after the other, as [n,T,…] with zeros behind each, and the mask.

    Raises InputError for a length below 1, and where the lengths do not add up to the rows.
    """
    if len(lengths) == 0 or lengths.min() < 1 or lengths.sum() != len(values):
        raise InputError(
            f"Lengths of trajectories are 1 or more and add up to the {len(values)} steps of the table; these "
            f"{len(lengths)} add up to {lengths.sum()}, the least being {lengths.min(initial=0)}."
        )
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.zeros((*mask.shape, *values.shape[1:]), values.dtype)
    padded[mask] = values
    return padded, mask


def powers(discount: Discount, steps: int, signals: int) -> Float[np.ndarray, "T K"]:
    """γ_k^t. Raises InputError for a discount outside [0, 1] or neither one nor one a signal."""
    gamma = np.asarray(discount, dtype=np.float64)
    if gamma.shape not in ((), (signals,)) or not ((gamma >= 0) & (gamma <= 1)).all():
        raise InputError(f"discount is one number in [0, 1], or one for each of the {signals} signals; got {discount}.")
    return np.broadcast_to(gamma, signals) ** np.arange(steps)[:, None]


def discounted(values: Float[np.ndarray, "n T K"], discount: Discount) -> Float[np.ndarray, "n K"]:
    """Σ_t γ^t x_t."""
    return np.einsum("ntk,tk->nk", values, powers(discount, *values.shape[1:]))


def prefix_weight(log: Trajectories) -> Float[np.ndarray, "n T"]:
    """ρ_t = w_0 ⋯ w_t, at most `MOST_WEIGHT`."""
    with np.errstate(over="ignore", invalid="ignore"):
        rho = np.cumprod(log.weight, axis=1)
    if rho.max() <= MOST_WEIGHT:
        return rho
    with np.errstate(divide="ignore"):  # a product may be too large on the way, and small in the end
        logarithm = np.cumsum(np.log(log.weight), axis=1)
    return np.exp(np.minimum(logarithm, math.log(MOST_WEIGHT)))


def earlier(rho: Float[np.ndarray, "n T"]) -> Float[np.ndarray, "n T"]:
    """ρ_{t-1}, with ρ_{-1} = 1."""
    return np.concatenate([np.ones_like(rho[:, :1]), rho[:, :-1]], axis=1)


def self_normalized(
    weight: Float[np.ndarray, "n ..."], values: Float[np.ndarray, "n *steps K"]
) -> Float[np.ndarray, "n *steps K"]:
    """Linearized contributions of Σ_i w_i y_i / Σ_i w_i, at each step apart; 0 where all weights are 0."""
    mean = weight.mean(0)
    share = weight / np.where(mean > 0, mean, 1.0)
    estimate = np.einsum("n...,n...k->...k", share, values) / len(weight)
    contributions = values - estimate
    contributions *= share[..., None]
    contributions += estimate
    return contributions


def tis(log: Trajectories, discount: Discount) -> Float[np.ndarray, "n K"]:
    """Trajectory-wise importance sampling, mean of ρ_{T-1} Σ_t γ^t r_t. Unbiased.

    Precup, Sutton and Singh, "Eligibility traces for off-policy policy evaluation", ICML 2000.
    """
    return prefix_weight(log)[:, -1:] * discounted(log.reward, discount)


def wis(log: Trajectories, discount: Discount) -> Float[np.ndarray, "n K"]:
    """Weighted importance sampling, Σ_i ρ_i G_i / Σ_i ρ_i with G = Σ_t γ^t r_t. Consistent, bias O(1/n).

    Precup, Sutton and Singh, ICML 2000.
    """
    return self_normalized(prefix_weight(log)[:, -1], discounted(log.reward, discount))


def pdis(log: Trajectories, discount: Discount) -> Float[np.ndarray, "n K"]:
    """Per-decision importance sampling, mean of Σ_t γ^t ρ_t r_t. Unbiased: no reward depends on later actions.

    Precup, Sutton and Singh, ICML 2000.
    """
    return discounted(prefix_weight(log)[..., None] * log.reward, discount)


def cwpdis(log: Trajectories, discount: Discount) -> Float[np.ndarray, "n K"]:
    """Consistent weighted per-decision sampling, Σ_t γ^t Σ_i ρ_it r_it / Σ_i ρ_it. Bias O(1/n).

    Thomas, "Safe reinforcement learning", PhD thesis, University of Massachusetts Amherst, 2015.
    """
    return discounted(self_normalized(prefix_weight(log), log.reward), discount)


def ncis(log: Trajectories, discount: Discount, cap: float = 10.0) -> Float[np.ndarray, "n K"]:
    """Σ_t γ^t Σ_i min(w_it, c) r_it / Σ_i min(w_it, c): capped weights of single steps. Biased.

    It needs π_e to visit the states that π_b visits, and a cap that never binds; it stands here because recommendation
    papers report it. Zou et al., "Reinforcement learning to optimize long-term user engagement in recommender systems",
    KDD 2019.
    """
    if not cap > 0:
        raise InputError(f"The cap of NCIS is a positive weight such as 10; got {cap}.")
    return discounted(self_normalized(np.minimum(log.weight, cap), log.reward), discount)


def seq_dr(
    log: Trajectories, q_logged: Float[np.ndarray, "n T K"], value: Float[np.ndarray, "n T K"], discount: Discount
) -> Float[np.ndarray, "n K"]:
    """Doubly robust, mean of Σ_t γ^t (ρ_{t-1} v(s_t) + ρ_t (r_t - q(s_t, a_t))). Unbiased for any q.

    v = Σ_a π_e(a | s) q(s, a), of the step's own clock in finite horizons. With exact q any weights will do. It is the
    recursion V_t = v_t + w_t (r_t + γ V_{t+1} - q_t) written out. Jiang and Li, "Doubly robust off-policy value
    evaluation for reinforcement learning", ICML 2016.
    """
    rho = prefix_weight(log)
    surprise = log.reward - log.at_steps("q_logged", q_logged)
    terms = rho[..., None] * surprise + earlier(rho)[..., None] * log.at_steps("value", value)
    return discounted(terms, discount)


def wdr(
    log: Trajectories, q_logged: Float[np.ndarray, "n T K"], value: Float[np.ndarray, "n T K"], discount: Discount
) -> Float[np.ndarray, "n K"]:
    """Weighted doubly robust: `seq_dr` with ρ_it / mean_i ρ_it in place of ρ_it. Consistent for any q, bias O(1/n).

    Thomas and Brunskill, "Data-efficient off-policy policy evaluation for reinforcement learning", ICML 2016.
    """
    expected, surprise = _weighted_parts(log, q_logged, value)
    return discounted(expected + surprise, discount)


def magic(
    log: Trajectories, q_logged: Float[np.ndarray, "n T K"], value: Float[np.ndarray, "n T K"], discount: Discount
) -> Float[np.ndarray, "n K"]:
    """MAGIC: the mixture Σ_j x_j g^(j) of j-step estimates with the least x'(Ω + b b')x, x ≥ 0, Σ x = 1.

    g^(j) follows WDR for j+1 steps and then believes v: g^(-1) is the model alone, g^(T-1) is WDR. Ω is their
    covariance, b_j how far g^(j) lies outside the 50 % interval of WDR. Consistent where WDR is, given a fixed model.
    One mixture a signal. Thomas and Brunskill, ICML 2016; their interval is a bootstrap's, ours the normal one, which
    needs no seed.
    """
    expected, surprise = _weighted_parts(log, q_logged, value)
    gamma = powers(discount, *log.reward.shape[1:])
    nothing = np.zeros_like(expected[:, :1])
    believed = np.cumsum(np.concatenate([gamma * expected, nothing], axis=1), axis=1)
    learned = np.cumsum(np.concatenate([nothing, gamma * surprise], axis=1), axis=1)
    returns = believed + learned  # [n,T+1,K]
    blended = [returns[..., k] @ _mixture(returns[..., k]) for k in range(returns.shape[-1])]
    return np.stack(blended, axis=-1)


def state_density_is(
    log: Trajectories, ratio: Float[np.ndarray, "n T"], discount: Discount
) -> Float[np.ndarray, "n K"]:
    """Marginal importance sampling, mean of Σ_t γ^t ω(s_t) w_t r_t. Unbiased with the exact ratio.

    ω = d_e(s) / d_b(s), the policies' visits of the state: step by step, or discounted over all steps where rewards and
    policies do not know the clock. Its variance does not grow with a product of T weights. Liu, Li, Tang and Zhou,
    "Breaking the curse of horizon", NeurIPS 2018; Xie, Ma and Wang, NeurIPS 2019 (step by step).
    """
    if ratio.shape != log.weight.shape:
        raise InputError(f"The density ratio is one a step, [n,T] = {log.weight.shape}; got {ratio.shape}.")
    return discounted((ratio * log.weight)[..., None] * log.reward, discount)


def _weighted_parts(
    log: Trajectories, q_logged: Float[np.ndarray, "n T K"], value: Float[np.ndarray, "n T K"]
) -> tuple[Float[np.ndarray, "n T K"], Float[np.ndarray, "n T K"]]:
    """Normalized ρ_{t-1} v_t and ρ_t (r_t - q_t)."""
    rho = prefix_weight(log)
    expected = self_normalized(earlier(rho), log.at_steps("value", value))
    return expected, self_normalized(rho, log.reward - log.at_steps("q_logged", q_logged))


def _mixture(returns: Float[np.ndarray, "n J"]) -> Float[np.ndarray, " J"]:
    """The x of MAGIC, by nonnegative least squares.

    The least x'Ax + c(Σ x - 1)² over x ≥ 0 points along the least x'Ax on the simplex, whatever c > 0.
    """
    from scipy.optimize import nnls
    from scipy.stats import norm

    mean, n = returns.mean(0), len(returns)
    centered = (returns - mean) / np.sqrt(n * max(n - 1, 1))
    half = float(norm.ppf(0.75)) * np.linalg.norm(centered[:, -1])
    outside = mean - np.clip(mean, mean[-1] - half, mean[-1] + half)
    spread = np.concatenate([np.linalg.qr(centered, mode="r"), outside[None]])
    scale = np.abs(spread).max()
    if scale <= 1e-12 * np.abs(mean).max(initial=1e-300):  # all agree: nothing to choose
        return np.eye(len(mean))[-1]
    rows = np.concatenate([spread / scale, np.ones_like(mean)[None]])
    x, _ = nnls(rows, np.eye(len(rows))[-1])
    return x / x.sum()
