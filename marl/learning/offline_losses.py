"""Objectives of learning from logs, as pure functions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def importance_weighted(
    weight: Float[Tensor, "*B N"], target: Float[Tensor, "*B N"], baseline: Float[Tensor, "*B N"]
) -> Float[Tensor, "*B N"]:
    """Inverse propensity scoring as an objective, to be maximized: w (r - b), w = π(a|x) / π_b(a|x) of the logged a.

    Any baseline that does not depend on the action leaves the gradient's expectation as it is. Source: Strehl,
    Langford, Li and Kakade, NIPS 2010; Bottou et al., JMLR 2013, for capped weights.
    """
    return weight * (target - baseline)


def doubly_robust(
    probability: Float[Tensor, "*B N A"],
    q: Float[Tensor, "*B N A"],
    weight: Float[Tensor, "*B N"],
    target: Float[Tensor, "*B N"],
    q_logged: Float[Tensor, "*B N"],
) -> Float[Tensor, "*B N"]:
    """Doubly robust evaluation as an objective, to be maximized: Σ_a π(a|x) q(x,a) + w (r - q(x, a logged)).

    The sum is exact over all actions. Source: Dudík, Langford and Li, ICML 2011 (arXiv 1103.4601).
    """
    return torch.linalg.vecdot(probability, q) + weight * (target - q_logged)
