"""A language model's own probabilities: of plans, as it scores them, and of the choices that these plans mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from envs.core import InputError
from planners.language.base import Answer, LanguageModel, ModelError, Query, Scores, in_order


def require_scores(model: LanguageModel, purpose: str, instead: str) -> None:
    """Raise InputError for a model that cannot score texts; `purpose` needs it, `instead` is what to do without."""
    if not model.scores:
        raise InputError(
            f"{purpose} needs a model that tells how probable a text is, and {model.identity} does not. Take a "
            f"local model, or {instead}."
        )


def score_all(model: LanguageModel, queries: Sequence[Query], counts: Sequence[dict[str, int | float]]) -> list[Scores]:
    """Scores of each query's choices, asked together; each query's `counts` go up by what it took."""
    scores: list[Scores] = in_order(model.score(queries)) if queries else []
    for count, score in zip(counts, scores, strict=True):
        count_answer(count, score)
    return scores


def count_answer(counts: dict[str, int | float], answer: Answer | Scores) -> None:
    """Count a query and its answer among `planners.read.team.COUNTS`."""
    counts["queries"] += 1
    counts["tokens_read"] += answer.prompt_tokens
    if not answer.cached:
        counts["asked"] += 1
        counts["seconds"] += answer.seconds
    if isinstance(answer, Answer):
        counts["tokens_written"] += answer.tokens


def log_shares(model: LanguageModel, scores: Scores, temperature: float) -> Float[Tensor, " plans"]:
    """Log-probabilities of plans, as constrained sampling at this temperature draws them."""
    return finite(torch.tensor(scores.constrained(temperature), dtype=torch.float64), model)


def draw(share: Float[Tensor, " plans"], seed: int, number: int = 0) -> int:
    """A plan drawn by these probabilities, from random numbers that only a draw of this seed and number has."""
    noise = np.random.Generator(np.random.Philox(key=[seed, number])).standard_exponential(len(share))
    return int((share.log() - torch.from_numpy(noise).log()).argmax())  # Gumbel-max


def finite(logits: Float[Tensor, " plans"], model: LanguageModel) -> Float[Tensor, " plans"]:
    """Logits of which some plan can be drawn. Raises ModelError for others."""
    most = float(logits.max())
    if bool(logits.isnan().any()) or not math.isfinite(most):
        raise ModelError(
            f"{model.identity} gave log-probabilities of plans of which none can be drawn: {logits.tolist()}."
        )
    return logits


def choice_shares(share: Float[Tensor, " plans"], choice: Int[Tensor, " plans"], choices: int) -> Float[Tensor, " A"]:
    """Probabilities of an agent's A choices from those of its plans: of plans that mean the same one they add up."""
    return share.new_zeros(choices).index_add(0, choice, share / share.sum())


def conditionals(
    share: Float[Tensor, " plans"], action: Int[Tensor, "plans N"], choices: int
) -> Float[Tensor, "plans N A"]:
    """Probabilities of each agent's choices given those before it in each joint plan, from those of joint plans.

        μ_k(b | a_{<k}) = Σ_{a' : a'_{<k} = a_{<k}, a'_k = b} μ(a') / Σ_{a' : a'_{<k} = a_{<k}} μ(a')

    After choices that are never made, all that the plans allow then are alike.
    """
    found = []
    for agent in range(action.shape[1]):
        before = torch.where(torch.arange(action.shape[1]) < agent, action, 0)
        _, group = before.unique(dim=0, return_inverse=True)
        mass = _mass(share, group, action[:, agent], choices)
        offered = (_mass(torch.ones_like(share), group, action[:, agent], choices) > 0).to(share.dtype)
        mass = torch.where(mass.sum(1, keepdim=True) > 0, mass, offered)
        found.append((mass / mass.sum(1, keepdim=True))[group])
    return torch.stack(found, 1)


def _mass(
    weight: Float[Tensor, " plans"], group: Int[Tensor, " plans"], choice: Int[Tensor, " plans"], choices: int
) -> Float[Tensor, "groups A"]:
    """Weights of plans, added up by group and choice."""
    groups = int(group.max()) + 1
    total = weight.new_zeros(groups * choices)
    return total.index_add(0, group * choices + choice, weight).view(groups, choices)
