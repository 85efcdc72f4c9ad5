"""Plans that a model proposes for open decisions, and what is taken where it proposes none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from planners.language.base import Answer, LanguageModel, Query, in_order
from planners.read.answers import read_plan
from planners.read.prior import count_answer
from planners.read.prompts import Refused
from planners.read.team import Open


def whole(text: str, one: Open) -> str:
    """All that was written is the plan."""
    return text


def propose(
    model: LanguageModel,
    asked: Sequence[Open],
    queries: Sequence[Query],
    plan_of: Callable[[str, Open], str] = whole,
) -> list[list[int | None]]:
    """Plans of each decision by their numbers, each once; None where the model wrote what is none.

    What is none is counted, and remembered as refused. plan_of: the part of a text that shall be the plan.
    """
    answers: list[Answer] = in_order(model.complete(queries))
    proposals = []
    for one, answer in zip(asked, answers, strict=True):
        count_answer(one.counts, answer)
        found: list[int | None] = []
        for completion in answer.completions:
            one.counts["proposals"] += 1
            told = plan_of(completion.text, one)
            plan = read_plan(told, one.plans, one.names)
            if plan is None:
                one.counts["illegal"] += 1
                one.refused.append(Refused(told, None, "which is none of the plans"))
            elif plan in found:
                continue
            one.proposed.append((completion.text, plan))
            found.append(plan)
        proposals.append(found)
    return proposals


def take_anything(one: Open) -> None:
    """Take any plan, by the decision's own random numbers, for want of one that was proposed."""
    generator = torch.Generator().manual_seed(one.seed)
    one.counts["nothing_acceptable"] += 1
    one.chosen = int(torch.randint(len(one.plans), (), generator=generator))
