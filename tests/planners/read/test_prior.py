"""Probabilities of plans and choices, and planners whose critic needs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from dependent_cooks import FIRST, KITCHEN, SECOND, log_prob
from torch import Tensor
from torch.testing import assert_close

from envs.core import InputError, Observation, Streams, tree_map
from envs.kitchen import Kitchen
from planners.language.backends.scripted import Scripted
from planners.language.base import Answer, Completion, Query, Scores
from planners.read.planner import PlannerConfig, ReadPlanner
from planners.read.prior import choice_shares, conditionals, count_answer
from planners.read.reweigh import ReweighConfig, ReweighingPlanner
from planners.read.team import COUNTS


class Spy:
    """Keeps what it is asked; an interaction is worth one, so that all else is sent back."""

    scale = 1.0
    needs_behavior = True

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Tensor | None = None) -> Tensor:
        assert behavior is not None
        self.asked.append((action.squeeze(-1), given, behavior))
        return ((action[..., 0] == 5) * given).sum(-1).double()


class Listening(Scripted):
    """Writes the first of the choices, scores by `log_prob`, and keeps what it is asked to score."""

    def __init__(self, scored: list[Query] | None = None):
        super().__init__(lambda query, number: query.choices[0], "test", log_prob)
        self.scored = [] if scored is None else scored

    def score(self, queries: Sequence[Query]) -> Iterator[tuple[int, Scores]]:
        self.scored += queries
        return super().score(queries)


def seen(rows: int) -> Observation:
    return KITCHEN.observe(tree_map(lambda leaf: leaf.expand(rows, *leaf.shape[1:]), KITCHEN.first()))


def test_probabilities_of_plans_that_mean_one_choice_add_up() -> None:
    share = torch.tensor([0.2, 0.1, 0.1]).double()
    assert_close(choice_shares(share, torch.tensor([3, 0, 3]), 4), torch.tensor([0.25, 0, 0, 0.75]).double())


def test_conditionals_are_those_of_the_joint_probabilities_along_each_plan() -> None:
    joint = (FIRST.unsqueeze(1) * SECOND).flatten()
    action = torch.cartesian_prod(torch.arange(6), torch.arange(6))
    found = conditionals(joint, action, 6)
    assert_close(found[:, 0], FIRST.expand(36, 6))
    assert_close(found[:, 1], SECOND[action[:, 0]])
    twice = conditionals(torch.cat([joint / 3, joint * 2 / 3]), torch.cat([action, action]), 6)
    assert_close(twice[:36], found)


def test_conditionals_of_three_agents_and_after_what_is_never_chosen() -> None:
    g = torch.Generator().manual_seed(0)
    joint = torch.rand(2, 3, 2, generator=g, dtype=torch.float64)
    joint[1, 2] = 0
    joint /= joint.sum()
    action = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2))
    found = conditionals(joint.flatten(), action, 4).view(2, 3, 2, 3, 4)
    assert_close(found[1, 1, 0, 0, :2], joint.sum((1, 2)))
    assert_close(found[1, 1, 0, 1, :3], joint[1].sum(1) / joint[1].sum())
    assert_close(found[1, 1, 0, 2, :2], joint[1, 1] / joint[1, 1].sum())
    assert found[1, 2, 0, 2].tolist() == [0.5, 0.5, 0, 0]
    assert_close(found.sum(-1), torch.ones(2, 3, 2, 3).double())


@pytest.mark.parametrize("kind", ["read", "reweigh"])
@pytest.mark.parametrize("mode", ["sequential", "joint"])
def test_a_critic_is_told_the_models_probabilities_of_all_who_are_given(kind: str, mode: Any) -> None:
    critic = Spy()
    config: dict[str, Any] = {"plans": "steps", "mode": mode}
    planner = (
        ReadPlanner(KITCHEN, Listening(), critic, PlannerConfig(rounds=40, **config))
        if kind == "read"
        else ReweighingPlanner(KITCHEN, Listening(), critic, ReweighConfig(**config))
    )
    planner.act(seen(3), None, Streams([0]))
    assert critic.asked
    for action, given, behavior in critic.asked:
        first, both = given[:, 0], given[:, 1]
        assert_close(behavior[first, 0], FIRST.float().expand(int(first.sum()), 6))
        assert_close(behavior[both, 1], SECOND[action[both, 0]].float())


def test_plans_are_scored_once_a_decision_however_often_they_are_sent_back() -> None:
    scored: list[Query] = []
    planner = ReadPlanner(KITCHEN, Listening(scored), Spy(), PlannerConfig(plans="steps"))
    decision, _ = planner.act(seen(2), None, Streams([0]))
    assert decision.action.flatten().tolist() == [5] * 4
    assert decision.counts is not None
    assert decision.counts["sent_back"].tolist() == [10, 10]
    assert len(scored) == 4
    assert decision.counts["queries"].tolist() == decision.counts["asked"].tolist() == [14, 14]
    tokens = sum(planner.model.count_tokens(query.messages) or 0 for query in scored[::2])
    alone, _ = ReadPlanner(KITCHEN, Listening(), Free(), PlannerConfig(plans="steps")).act(seen(2), None, Streams([0]))
    assert alone.counts is not None
    assert int(decision.counts["tokens_read"][0] - alone.counts["tokens_read"][0]) == tokens


class Free(Spy):
    """The same judgment without probabilities."""

    needs_behavior = False

    def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Tensor | None = None) -> Tensor:
        assert behavior is None
        return ((action[..., 0] == 5) * given).sum(-1).double()


def test_reweighing_asks_no_more_with_such_a_critic_and_the_same() -> None:
    asked: list[list[Query]] = [[], []]
    for place, critic in enumerate((Spy(), Free())):
        planner = ReweighingPlanner(KITCHEN, Listening(asked[place]), critic, ReweighConfig(plans="steps"))
        decision, _ = planner.act(seen(2), None, Streams([0]))
        assert decision.counts is not None
        assert decision.counts["queries"].tolist() == [2, 2]
    assert asked[0] == asked[1]


def test_read_planners_score_with_the_query_of_reweighing_ones() -> None:
    asked: list[list[Query]] = [[], []]
    ReadPlanner(KITCHEN, Listening(asked[0]), Spy(), PlannerConfig(plans="steps")).act(seen(1), None, Streams([0]))
    ReweighingPlanner(KITCHEN, Listening(asked[1]), Spy(), ReweighConfig(plans="steps")).act(
        seen(1), None, Streams([1])
    )
    assert asked[0][0] == asked[1][0]


def test_temperature_sharpens_what_the_critic_is_told() -> None:
    for temperature, expected in ((0.5, FIRST.square() / FIRST.square().sum()), (0, torch.eye(6)[0].double())):
        critic = Spy()
        config = PlannerConfig(plans="steps", temperature=temperature)
        ReadPlanner(KITCHEN, Listening(), critic, config).act(seen(1), None, Streams([0]))
        assert_close(critic.asked[1][2][0, 0], expected.float())


def test_who_has_one_plan_is_not_asked_and_certain_and_who_is_gone_is_not_asked() -> None:
    class Forced(Kitchen):
        def plans(self, obs: Observation, row: int) -> list[list[str]]:
            return [["north"], list(self.choices)]

    critic = Spy()
    scored: list[Query] = []
    world = Forced("cramped_room_small", horizon=None, soups=1, counter_items=0)
    planner = ReadPlanner(world, Listening(scored), critic, PlannerConfig())
    planner.act(seen(1), None, Streams([0]))
    assert len(scored) == 1
    assert critic.asked[0][2][0, 0].tolist() == [1, 0, 0, 0, 0, 0]
    assert_close(critic.asked[-1][2][0, 1], SECOND[0].float())
    gone = dataclasses.replace(seen(2), alive=torch.tensor([[True, True], [False, True]]))
    modes: list[Any] = ["sequential", "joint"]
    for mode in modes:
        critic = Spy()

        def alike(query: Query, text: str) -> float:
            return 0.0

        other = Scripted(lambda query, number: query.choices[0], "alike", alike)
        joint = ReadPlanner(KITCHEN, other, critic, PlannerConfig(plans="steps", mode=mode))
        joint.act(gone, None, Streams([0]))
        for _, given, behavior in critic.asked:
            assert_close(behavior.sum(-1)[given], torch.ones(int(given.sum())))
            assert bool((behavior[given].amax(-1) < 0.2).all())


def test_plans_of_several_steps_count_for_the_steps_that_they_begin_with() -> None:
    critic = Spy()
    other = Scripted(lambda query, number: query.choices[0], "alike", lambda query, text: 0.0)
    ReadPlanner(KITCHEN, other, critic, PlannerConfig(rounds=1)).act(seen(1), None, Streams([0]))
    (phrases,) = ReadPlanner(KITCHEN, other, critic, PlannerConfig()).phrasebook.of(seen(1))
    often = torch.bincount(phrases.actions[0], minlength=6)
    assert int(often.max()) > 1
    assert_close(critic.asked[1][2][0, 0], often / often.sum())


def test_a_model_that_cannot_score_is_refused_with_such_a_critic() -> None:
    mute = Scripted(lambda query, number: query.choices[0], "mute")
    with pytest.raises(InputError, match=r"scripted:mute does not\. Take a local model, or take a critic that needs"):
        ReadPlanner(KITCHEN, mute, Spy(), PlannerConfig())
    ReadPlanner(KITCHEN, mute, Free(), PlannerConfig())


def test_what_an_answer_took_is_counted_and_what_was_known_took_no_time() -> None:
    counts: dict[str, int | float] = dict.fromkeys(COUNTS, 0)
    answer = Answer((Completion("north", 2), Completion("stay", 3)), prompt_tokens=7, seconds=0.5)
    for one in (answer, dataclasses.replace(answer, cached=True), Scores(((1, 9),), ((-1.0, -0.5),), 5, 0.25)):
        count_answer(counts, one)
    nothing = dict.fromkeys(("proposals", "sent_back", "illegal", "nothing_acceptable"), 0)
    assert counts == {"queries": 3, "asked": 2, "tokens_read": 19, "tokens_written": 10, "seconds": 0.75} | nothing
