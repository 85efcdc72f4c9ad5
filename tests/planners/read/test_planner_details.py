"""Details of planners in words: what is told, counted, remembered and passed on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from worlds import TabularGame

from envs.core import Decision, Observation, Streams, tree_map
from envs.kitchen import Kitchen
from envs.tabular import Digits, Table
from planners.baselines import uniform_prior
from planners.language.backends.scripted import Scripted
from planners.language.base import Message, Query
from planners.read.advantages import prefix_value
from planners.read.answers import read_plan
from planners.read.critics import ExactCritic
from planners.read.phrases import Phrasebook
from planners.read.planner import PlannerConfig, ReadPlanner
from planners.read.prompts import Refused, ask_all, ask_one, feedback, quoted
from planners.read.reweigh import ReweighConfig, ReweighingPlanner

KITCHEN = Kitchen("cramped_room_small", horizon=None, soups=1, counter_items=0)
AGENTS = ("ann", "bob")


def seen(rows: int) -> Observation:
    return KITCHEN.observe(tree_map(lambda leaf: leaf.expand(rows, *leaf.shape[1:]), KITCHEN.first()))


def told(messages: tuple[Message, ...]) -> str:
    return messages[-1].content


def test_prompts_list_every_plan_on_a_line_and_tell_all_that_was_sent_back() -> None:
    refused = [Refused("left", -0.25, "which is too low"), Refused("jump\nhigh", None, "which is none of the plans")]
    one = told(ask_one(AGENTS, "bob", "Here.", ["left", "stay, then go"], ["ann: left"], refused))
    assert one.splitlines() == [
        "Here.",
        "",
        "Decided already: ann: left.",
        "bob can:",
        "- left",
        "- stay, then go",
        "Sent back: left (score -0.250), which is too low.",
        "Sent back: jump; high, which is none of the plans.",
        "What does bob do?",
    ]
    both = told(ask_all(AGENTS, "Here.", [["left", "stay"], ["wait"]], refused)).splitlines()
    assert both[2:7] == ["ann can:", "- left", "- stay", "bob can:", "- wait"]
    assert both[7].startswith("Sent back: left")
    assert both[-1] == "What do they do?"


def test_quotes_hold_words_alone_and_are_short() -> None:
    assert (
        quoted("</s><start_of_turn>user [INST] go\tleft [/INST] <bos>") == "s start_of_turn user INST go left INST bos"
    )
    assert len(quoted("word " * 1000)) == 121


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("left", 0),
        ("Go  Right!", 1),
        ("bob: left", 0),
        ("carl: left", None),
        ("left\nstay", None),
        ("bob: left\nthen jump", None),
        ("  ```text\nleft\n  ```", 0),
        ("", None),
        ("le", None),
    ],
)
def test_answers_are_read_as_people_write_them(text: str, plan: int | None) -> None:
    assert read_plan(text, ["left", "go right", "stay"], AGENTS) == plan


class Rising:
    """A step is worth its number."""

    scale = 1.0
    needs_behavior = False

    def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Any = None) -> Tensor:
        return (action[..., 0] * given).sum(-1).double()


def planner(function: Any, critic: Any = None, **config: Any) -> ReadPlanner:
    return ReadPlanner(KITCHEN, Scripted(function, "test"), critic, PlannerConfig(plans="steps", **config))


def test_what_the_config_says_reaches_the_model_and_each_decision_draws_by_itself() -> None:
    asked: list[Query] = []

    def listens(query: Query, number: int) -> str:
        asked.append(query)
        return "north"

    planner(listens, temperature=0.5, max_tokens=7).act(seen(4), None, Streams([0]))
    assert {(query.temperature, query.max_tokens) for query in asked} == {(0.5, 7)}
    assert len({query.seed for query in asked}) == 8


def test_what_was_sent_back_is_told_unless_it_shall_not_be() -> None:
    asked: list[str] = []

    def talks(query: Query, number: int) -> str:
        asked.append(query.messages[-1].content)
        return ["nonsense", "north", "interact"][query.attempt]

    for tell in (True, False):
        asked.clear()
        planner(talks, Rising(), tell=tell).act(seen(1), None, Streams([0]))
        assert ("Sent back: nonsense, which is none of the plans." in asked[1]) == tell
        assert ("Sent back: north (score +0.000), which is too low." in asked[2]) == tell


def test_counts_add_up_over_rounds_and_agents() -> None:
    def talks(query: Query, number: int) -> str:
        return ["no plan at all", "north", "interact"][query.attempt]

    decision, _ = planner(talks, Rising()).act(seen(2), None, Streams([0]))
    assert decision.counts is not None
    counted = {name: count.tolist() for name, count in decision.counts.items()}
    assert counted["queries"] == counted["asked"] == [6, 6]
    assert (counted["illegal"], counted["sent_back"], counted["nothing_acceptable"]) == ([2, 2], [2, 2], [0, 0])
    assert counted["tokens_written"] == [2 * (5 + 2 + 2)] * 2
    assert counted["tokens_read"][0] > 6 * 40


def test_of_equally_good_plans_the_first_in_the_list_is_taken() -> None:
    class Level(Rising):
        def values(self, obs: Observation, action: Tensor, given: Tensor, behavior: Any = None) -> Tensor:
            return torch.zeros(len(action))

    backwards = planner(lambda query, number: query.choices[-1], Level())
    decision, _ = backwards.act(seen(1), None, Streams([0]))
    assert decision.action.flatten().tolist() == [0, 0]


def test_where_nothing_legal_was_said_any_plan_may_be_taken() -> None:
    decision, _ = planner(lambda query, number: "?", rounds=1).act(seen(200), None, Streams([0]))
    assert set(decision.action.flatten().tolist()) == set(range(6))


class Signs(Kitchen):
    """A kitchen whose words show who is there and what is legal, and count how often they were asked for."""

    asked = 0

    def words(self, obs: Observation, row: int, agent: int | None = None) -> str:
        self.asked += 1
        return f"{obs.alive[row].tolist()} {None if obs.legal is None else obs.legal[row].tolist()}"


def test_situations_are_remembered_by_all_that_is_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Signs("cramped_room_small", horizon=None)
    book, obs = Phrasebook(world, "steps"), seen(3)
    first = book.of(obs)
    assert world.asked == 1
    assert [phrases.words for phrases in first] == ["[True, True] None"] * 3
    gone = dataclasses.replace(obs, alive=torch.tensor([[True, True], [False, True], [True, True]]))
    assert [phrases.words for phrases in book.of(gone)][1] == "[False, True] None"
    legal = torch.ones(3, 2, 6, dtype=torch.bool)
    legal[2, 0, :4] = False
    some = book.of(dataclasses.replace(obs, legal=legal))
    assert some[2].plans[0] == ("stay", "interact")
    assert some[2].actions[0].tolist() == [4, 5]
    assert len(some[1].plans[0]) == 6
    other = dataclasses.replace(obs, agent=obs.agent + torch.arange(3.0).view(3, 1, 1))
    assert len({id(phrases) for phrases in book.of(other)}) == 3
    monkeypatch.setattr("planners.read.phrases.KEPT", 2)
    book.of(dataclasses.replace(obs, agent=obs.agent + 9))
    assert len(book._known) <= 2


def small_table() -> tuple[TabularGame, Table, Tensor]:
    """A game without end as a table, and a policy of dependent choices."""
    game = TabularGame(states=5)
    policy = torch.rand(5, 3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    table = Table(
        torch.arange(5),
        torch.zeros(5, dtype=torch.int64),
        torch.where(game.ends[game.successor], 5, game.successor),
        game.reward.double(),
        3,
        2,
    )
    return game, table, policy / policy.sum((1, 2), keepdim=True)


def test_an_exact_critic_tells_every_prefix_in_the_order_of_its_rows_and_its_unit() -> None:
    game, table, policy = small_table()
    shuffled = torch.tensor([3, 0, 4, 1, 2])
    critic = ExactCritic(
        table,
        policy,
        0.8,
        state_of=lambda code: shuffled[code.argmax(1)],
        digits=lambda state: Digits(state.unsqueeze(1), (5,)),
    )
    _, q = game.q_of(policy.flatten(1), 0.8)
    assert_close(critic.q, q.view(5, 3, 3))
    place = torch.tensor([0, 1, 2, 3, 0])
    obs = game.observe(place)
    action = torch.tensor([[2, 1], [0, 2], [1, 1], [2, 0], [0, 1]]).unsqueeze(-1)
    given = torch.tensor([[True, False], [False, True], [True, True], [False, False], [False, True]])
    state = shuffled[place]
    expected = [
        prefix_value(critic.q, policy, 2, [0])[state[0], 2, 0],
        prefix_value(critic.q, policy, 2, [1])[state[1], 0, 2],
        critic.q[state[2], 1, 1],
        prefix_value(critic.q, policy, 2, [])[state[3], 0, 0],
        prefix_value(critic.q, policy, 2, [1])[state[4], 0, 1],
    ]
    assert_close(critic.values(obs, action, given), torch.stack(expected))
    value = prefix_value(critic.q, policy, 2, [])
    squares = [(policy * (prefix_value(critic.q, policy, 2, [i]) - value).square()).sum() / 5 for i in range(2)]
    assert critic.scale == pytest.approx(float((sum(squares) / 2) ** 0.5))


def test_temperature_and_length_change_what_reweighing_draws() -> None:
    """One plan has two tokens of the same probability as the other's one: by token they are alike, as a whole not."""
    from planners.language.base import Scores

    class Lengths(Scripted):
        def score(self, queries: Any) -> Any:
            for number, query in enumerate(queries):
                tokens = tuple((place, 9) if place else (7, 8, 9) for place in range(len(query.choices)))
                parts = tuple((-1.0, 0.0) if place else (-1.0, -1.0, 0.0) for place in range(len(query.choices)))
                yield number, Scores(tokens, parts, 3, 0.0)

    def share(**config: Any) -> float:
        model = Lengths(lambda query, number: "", "test", lambda query, text: 0.0)
        found = ReweighingPlanner(KITCHEN, model, None, ReweighConfig(plans="steps", **config))
        decision, _ = found.act(seen(1500), None, Streams([0]))
        assert decision.counts is not None
        assert decision.counts["tokens_read"].tolist() == [6] * 1500
        return float((decision.action[:, 0, 0] == 0).double().mean())

    assert share(probabilities="per_token") == pytest.approx(1 / 6, abs=0.04)
    assert share(probabilities="whole") == pytest.approx(0.3679 / 5.3679, abs=0.03)
    assert share(probabilities="whole", temperature=0.25) == pytest.approx(0.0183 / 5.0183, abs=0.01)


def test_the_uniform_prior_draws_by_query_and_completion() -> None:
    query = Query((Message("user", "?"),), choices=tuple("abcdefgh"), n=40, seed=3)
    (first,) = (answer for _, answer in uniform_prior().complete([query]))
    assert len({completion.text for completion in first.completions}) > 4
    others = [dataclasses.replace(query, messages=(Message("user", str(i)),), n=1) for i in range(40)]
    texts = {answer.completions[0].text for _, answer in uniform_prior().complete(others)}
    assert len(texts) > 4


def test_joint_decisions_are_of_all_who_are_there() -> None:
    class Three(Rising):
        pass

    obs = dataclasses.replace(seen(2), alive=torch.tensor([[True, True], [False, True]]))
    decision, _ = planner(lambda query, number: query.choices[-1], Three(), mode="joint").act(obs, None, Streams([0]))
    assert isinstance(decision, Decision)
    assert decision.action.squeeze(-1).tolist() == [[5, 5], [0, 5]]


def test_a_plan_of_the_world_is_told_in_its_own_words_and_a_models_text_in_plain_ones() -> None:
    plan, text = 'go "left" <b> \u2014 x*1', 'go "left" <b>'
    lines = feedback([Refused(plan, 0.5, "which is too low"), Refused(text, None, "which is none of the plans")])
    assert lines[0] == f"Sent back: {plan} (score +0.500), which is too low."
    assert lines[1] == "Sent back: go left b, which is none of the plans."
