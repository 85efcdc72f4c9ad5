"""Estimators of what a policy would have earned with slates: several items shown at once, in slots.

A slate is a short trajectory: slot k is step k, without a discount. So logs are `Trajectories` with weight [n,T] the
ratio π_e/π_b of slot k's item given the items before it, and reward [n,T,K] what the slot earned; slates of unequal
length are padded. Value is the expected sum over slots; to weigh slots, scale their rewards. Every function gives
contributions [n,K] whose mean is the estimate, as in `.estimators`. All need right weights, and π_b > 0 wherever
π_e > 0.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from recsys.sequential.estimators import Trajectories, cwpdis, pdis, self_normalized, seq_dr, tis, wdr, wis


def sips(log: Trajectories) -> Float[np.ndarray, "n K"]:
    """Standard IPS, mean of (Π_k w_k) Σ_k r_k. Unbiased however slots influence each other; large variance."""
    return tis(log, 1.0)


def iips(log: Trajectories) -> Float[np.ndarray, "n K"]:
    """Independent IPS, mean of Σ_k w_k r_k. Unbiased where a slot's reward depends on its own item alone.

    w_k is the ratio of the slot's marginal probabilities, which for factorized policies is that given the items before.
    Li, Abbasi-Yadkori, Kveton, Muthukrishnan, Vinay and Wen, "Offline evaluation of ranking policies with click
    models", KDD 2018.
    """
    return np.einsum("nt,ntk->nk", log.weight, log.reward)


def rips(log: Trajectories) -> Float[np.ndarray, "n K"]:
    """Reward-interaction IPS, mean of Σ_k (w_1 ⋯ w_k) r_k. Unbiased where users read from the top (cascade).

    McInerney, Brost, Chandar, Mehrotra and Carterette, "Counterfactual evaluation of slate recommendations with
    sequential reward interactions", KDD 2020.
    """
    return pdis(log, 1.0)


def cascade_dr(
    log: Trajectories, q_logged: Float[np.ndarray, "n T K"], value: Float[np.ndarray, "n T K"]
) -> Float[np.ndarray, "n K"]:
    """Cascade doubly robust, mean of Σ_k (w_1 ⋯ w_{k-1}) v_k + (w_1 ⋯ w_k)(r_k - q_k). Any q, under the cascade.

    q_k is what slots k and on earn given the items up to k, v_k its mean over slot k's item under π_e. Kiyohara, Saito,
    Matsuhiro, Narita, Shimizu and Yamamoto, "Doubly robust off-policy evaluation for ranking policies under the cascade
    behavior model", WSDM 2022.
    """
    return seq_dr(log, q_logged, value, 1.0)


def pseudo_inverse(log: Trajectories) -> Float[np.ndarray, "n K"]:
    """Pseudo-inverse, mean of (1 + Σ_k (w_k - 1)) Σ_k r_k. Unbiased where the slate's reward is a sum over slots.

    This is its form for logging policies that draw every slot by itself; only the slate's total is needed. Swaminathan,
    Krishnamurthy, Agarwal, Dudík, Langford, Jose and Zitouni, "Off-policy evaluation for slate recommendation",
    NIPS 2017.
    """
    return additive_weight(log)[:, None] * log.reward.sum(1)


def additive_weight(log: Trajectories) -> Float[np.ndarray, " n"]:
    """The weight of the pseudo-inverse, 1 + Σ_k (w_k - 1), which may be negative."""
    return 1.0 + (log.weight - 1.0).sum(1)


def sn_sips(log: Trajectories) -> Float[np.ndarray, "n K"]:
    """`sips` divided by its mean weight. Consistent where `sips` is unbiased, bias O(1/n); so are all below."""
    return wis(log, 1.0)


def sn_iips(log: Trajectories) -> Float[np.ndarray, "n K"]:
    """`iips` with every slot's weights divided by their mean."""
    return self_normalized(log.weight, log.reward).sum(1)


def sn_rips(log: Trajectories) -> Float[np.ndarray, "n K"]:
    """`rips` with every slot's weights divided by their mean."""
    return cwpdis(log, 1.0)


def sn_cascade_dr(
    log: Trajectories, q_logged: Float[np.ndarray, "n T K"], value: Float[np.ndarray, "n T K"]
) -> Float[np.ndarray, "n K"]:
    """`cascade_dr` with every slot's weights divided by their mean."""
    return wdr(log, q_logged, value, 1.0)


def sn_pseudo_inverse(log: Trajectories) -> Float[np.ndarray, "n K"]:
    """`pseudo_inverse` divided by its mean weight; 0 where that is not positive."""
    return self_normalized(additive_weight(log), log.reward.sum(1))
