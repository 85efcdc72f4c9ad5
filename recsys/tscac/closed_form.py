"""The policy that the main goal's advantage makes of policies that others have learned, in closed form."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Tied(NamedTuple):
    """log π* of every action, and log Z of every state."""

    log_probs: Float[Tensor, "*B A"]
    log_partition: Float[Tensor, "*B"]


def product(anchors: Float[Tensor, "M *B A"], shares: Float[Tensor, " M"]) -> Float[Tensor, "*B A"]:
    """Σ_i w_i log π_i of M policies' log-probabilities, w that sum to 1; not normalized.

    An action that a policy with a share excludes is excluded; one that only policies of share 0 exclude is not.
    """
    weighted = shares.view(-1, *[1] * (anchors.dim() - 1)) * anchors
    return torch.where(torch.isnan(weighted), 0.0, weighted).sum(0)  # 0 * -inf


def tied(base: Float[Tensor, "*B A"], advantage: Float[Tensor, "*B A"], temperature: float | Tensor) -> Tied:
    """π*(a|s) = exp(base + A/Λ) / Z(s), which of all π maximizes E_π A - Λ Σ_i w_i KL(π || π_i) in every state.

    base: `product` of the π_i, or any log-probabilities to stay close to. The maximum is Λ log Z. (Cai et al., WWW
    2023, arXiv 2302.01680: the solution of stage two, with λ_i = w_i Λ.)
    """
    logits = base + advantage / temperature
    log_partition = torch.logsumexp(logits, -1)
    return Tied(logits - log_partition.unsqueeze(-1), log_partition)


def tied_objective(
    log_probs: Float[Tensor, "*B A"], base: Float[Tensor, "*B A"], advantage: Float[Tensor, "*B A"], temperature: float
) -> Float[Tensor, "*B"]:
    """E_π A - Λ Σ_i w_i KL(π || π_i) of every state, with base = Σ_i w_i log π_i."""
    probability = log_probs.exp()
    gap = torch.where(probability > 0, log_probs - base, 0.0)
    return (probability * (advantage - temperature * gap)).sum(-1)
