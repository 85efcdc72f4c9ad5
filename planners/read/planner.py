"""ReAd: plans of a language model that a critic's advantage accepts, or sends back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from jaxtyping import Bool
from pydantic import Field, model_validator
from torch import Tensor

from envs.core import Observation
from planners.language.base import LanguageModel, Query
from planners.read.critics import PlanCritic
from planners.read.prior import draw, log_shares, require_scores
from planners.read.prompts import Refused
from planners.read.proposals import propose, take_anything
from planners.read.team import Open, TeamConfig, TeamPlanner

NEVER = -1e9  # log-probability of what a model rules out, which is all alike where nothing else is left


class PlannerConfig(TeamConfig):
    """The loop of proposing, scoring and sending back."""

    rounds: int = Field(15, ge=1, description="proposals for a decision, at most; then the best so far is taken")
    threshold: float = Field(
        0.0, description="advantage above which a plan is accepted at first, in the critic's scale"
    )
    relax: float = Field(0.0, ge=0, description="how much lower the threshold is after each proposal sent back")
    repeats: bool = Field(False, description="whether what was sent back may be proposed again for the same decision")
    propose: Literal["written", "scored"] = Field(
        "written",
        description="written: a query for each proposal; scored: drawn as often, from probabilities of all plans that "
        "one query a decision tells, so that nothing can be told of what was sent back",
    )
    tell: bool = Field(True, description="whether the prompt tells what was sent back, with its score")
    max_tokens: int = Field(128, ge=1, description="tokens of a proposal, at most")

    @model_validator(mode="after")
    def _tells_a_writer(self) -> PlannerConfig:
        if self.propose == "scored" and self.tell:
            raise ValueError(
                "propose=scored asks no second time, so that a model cannot be told what was sent back; set tell=false"
            )
        return self

    def threshold_of(self, number: int) -> float:
        """The threshold of a round, counted from 0; it never rises."""
        return self.threshold - self.relax * number


class ReadPlanner(TeamPlanner):
    """An Actor whose plans a language model proposes and a critic accepts, or sends back.

        S(a^i) = Q^{1:i}(s, a^{<i}, a^i) - Q^{1:i-1}(s, a^{<i})     sequential, agent after agent
        S(a)   = Q(s, a) - V(s)                                      joint

    A plan is accepted where its advantage is above a threshold, which is the same at each decision's beginning and only
    ever falls. When rounds run out, or nothing is left to propose, the best proposal is taken and counted as
    `nothing_acceptable`; where none was legal, it is any plan. What is no legal plan is sent back and costs no step of
    the world. Rows are asked together, and again only those whose proposal was sent back.

    world: one that describes itself (`envs.core.Describes`). critic: None accepts every legal plan, the model alone.
    Source: Zhang et al., ACL Findings 2025 (arXiv 2405.14314), algorithms 2 and 3. Departures: there the threshold is
    halved at each refusal, which raises a negative one and drifts from step to step; V there is that of waiting, which
    is another while time passes (`planners.read.advantages`); there the last proposal is taken.
    """

    def __init__(self, world: Any, model: LanguageModel, critic: PlanCritic | None, config: PlannerConfig):
        super().__init__(world, model, critic, config)
        self.config = config
        self.reads_scores = config.propose == "scored"
        if self.reads_scores:
            require_scores(model, "Drawing plans from probabilities (propose=scored)", "leave it at written")

    def settle(
        self, asked: Sequence[Open], obs: Observation, before: Bool[Tensor, " N"], given: Bool[Tensor, " N"]
    ) -> None:
        """Ask until every decision is taken."""
        baseline = self.worth(asked, [0] * len(asked), obs, before).tolist()
        waiting = list(range(len(asked)))
        for number in range(self.config.rounds):
            proposals = self._propose([asked[place] for place in waiting], number)
            fresh = [(place, plan) for place, plan in zip(waiting, proposals) if plan is not None]
            ones, plans = [asked[place] for place, _ in fresh], [plan for _, plan in fresh]
            values = self.worth(ones, plans, obs, given).tolist()
            for (place, plan), one, value in zip(fresh, ones, values, strict=True):
                one.scores[plan] = value - baseline[place]
            for place in waiting:
                self._take(asked[place], number)
            waiting = [place for place in waiting if asked[place].chosen is None]
            if not waiting:
                return

    def _propose(self, asked: Sequence[Open], number: int) -> list[int | None]:
        """A plan of each decision by its number; None where the model said something else, which is sent back."""
        if self.config.propose == "scored":
            return [self._drawn(one, number) for one in asked]
        queries = [self._query(one, number) for one in asked]
        return [plan for (plan,) in propose(self.model, asked, queries)]

    def _drawn(self, one: Open, number: int) -> int:
        """The next proposal, by the model's probabilities of the plans that are left."""
        assert one.told is not None
        left = one.left(self.config.repeats)
        if self.config.temperature == 0:  # of all plans one has any probability, of those left another
            log_share = log_shares(self.model, one.told.among(left), self.config.temperature)
        else:
            log_share = log_shares(self.model, one.told, self.config.temperature)[left]
        share = log_share.clamp(min=NEVER).softmax(0)
        plan = left[draw(share, one.seed, number)]
        one.counts["proposals"] += 1
        one.proposed.append((one.plans[plan], plan))
        return plan

    def _query(self, one: Open, number: int) -> Query:
        """A query for the next proposal."""
        return Query(
            self.messages(one, one.refused if self.config.tell else ()),
            choices=tuple(one.plans[plan] for plan in one.left(self.config.repeats)),
            temperature=self.config.temperature,
            max_tokens=self.config.max_tokens,
            seed=one.seed if self.config.temperature else 0,  # what is not drawn is one query, whoever asks
            attempt=number,
        )

    def _take(self, one: Open, number: int) -> None:
        """Take the best plan so far if it passes, or nothing follows; else send back what was proposed."""
        best = one.best
        if best is not None and (self.critic is None or one.scores[best] > self.config.threshold_of(number)):
            one.chosen = best
        elif number + 1 == self.config.rounds or not one.left(self.config.repeats):
            take_anything(one) if best is None else _take_best(one)
        elif best is not None:
            self._send_back(one)
            if one.scores[best] > self.config.threshold_of(number + 1):  # which need not be asked for again
                one.chosen = best

    def _send_back(self, one: Open) -> None:
        """Remember the plan that was scored last as refused; one that was proposed again is already."""
        latest = list(one.scores)[-1]
        plan = one.plans[latest]
        if not any(refused.plan == plan for refused in one.refused):
            one.refused.append(Refused(plan, one.scores[latest], "which is too low"))
            one.counts["sent_back"] += 1


def _take_best(one: Open) -> None:
    """Take the best plan so far, although it is not good enough."""
    one.counts["nothing_acceptable"] += 1
    one.chosen = one.best
