"""Plans drawn from a language model's own probabilities, reweighed by a critic's advantage: one query a decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from envs.core import InputError, Observation
from planners.language.base import LanguageModel, Scores
from planners.read.advantages import reweighed
from planners.read.critics import PlanCritic
from planners.read.prior import draw, finite, log_shares, require_scores
from planners.read.team import Open, TeamConfig, TeamPlanner

Improve = Callable[[Tensor, Tensor], Tensor]  # probabilities of plans, from those of the model and advantages


class ReweighConfig(TeamConfig):
    """Plans by the model's probabilities and a critic's advantages."""

    beta: float = Field(0.1, gt=0, description="temperature of advantages, in the critic's scale; less trusts it more")
    probabilities: Literal["constrained", "whole", "per_token"] = Field(
        "constrained",
        description="of plans: as constrained sampling draws them; of their whole texts; or by the mean over a plan's "
        "tokens, so that long ones lose nothing (TWOSOME)",
    )


class ReweighingPlanner(TeamPlanner):
    """An Actor that scores every legal plan at once, by the model and by the critic, and draws from both:

        π(a|s) ∝ μ(a|s) exp(A(s, a) / β)

    which maximizes the advantage less β times the divergence from the model μ (Zhang et al., arXiv 2405.14314, equation
    7); sequentially it is their equation 9, which differs (`planners.read.advantages`). It finds what the model would
    hardly ever say, at one query a decision. Advantages are over what the model would choose, Q - Σ_a μ(a) Q(a).

    improve: another way to make a policy of μ and A, such as `planners.read.advantages.filtered`, which is what
    `ReadPlanner` comes to where it asks until a plan is accepted; None for the equation above.

    critic: None draws from the model alone; with temperature 0 that is the scoring of SayCan (Ahn et al., 2022, arXiv
    2204.01691), with `probabilities: per_token` that of TWOSOME (Tan et al., ICLR 2024, arXiv 2401.14151). Raises
    InputError for a model that cannot score texts.
    """

    reads_scores = True

    def __init__(
        self,
        world: Any,
        model: LanguageModel,
        critic: PlanCritic | None,
        config: ReweighConfig,
        improve: Improve | None = None,
    ):
        super().__init__(world, model, critic, config)
        self.config = config
        self.improve = partial(reweighed, temperature=config.beta) if improve is None else improve
        if critic is not None and config.temperature == 0:
            raise InputError(
                "At temperature 0 the model leaves one plan, whatever a critic says of it: set temperature above 0, or "
                "go without a critic."
            )
        require_scores(model, "Reweighing", "let plans be proposed and sent back instead")

    def settle(
        self, asked: Sequence[Open], obs: Observation, before: Bool[Tensor, " N"], given: Bool[Tensor, " N"]
    ) -> None:
        """Draw a plan for each decision."""
        for one, value in zip(asked, self._worth_of_all(asked, obs, given), strict=True):
            assert one.told is not None
            log_prior = self._log_prior(one.told)
            prior = log_prior.exp()
            gain = value - (prior * value).sum()
            one.scores = dict(enumerate(gain.tolist()))
            one.policy = prior if self.critic is None else self.improve(prior, gain)
            one.chosen = draw(one.policy, one.seed)

    def _log_prior(self, scores: Scores) -> Float[Tensor, " plans"]:
        """The model's log-probabilities of the plans."""
        temperature = self.config.temperature
        if self.config.probabilities == "constrained":
            return log_shares(self.model, scores, temperature)
        told = scores.whole if self.config.probabilities == "whole" else scores.per_token
        logits = finite(torch.tensor(told, dtype=torch.float64), self.model)
        if temperature == 0:
            likeliest = torch.arange(len(logits)) == logits.argmax()
            return torch.where(likeliest, 0.0, -torch.inf).double()
        return (logits / temperature).log_softmax(0)

    def _worth_of_all(
        self, asked: Sequence[Open], obs: Observation, given: Bool[Tensor, " N"]
    ) -> list[Float[Tensor, " plans"]]:
        """Values of every plan of every decision, in the critic's scale, in one pass of the critic."""
        sizes = [len(one.plans) for one in asked]
        ones = [one for one in asked for _ in one.plans]
        plans = [plan for size in sizes for plan in range(size)]
        return list(self.worth(ones, plans, obs, given).split(sizes))
