"""ReAct and Reflexion: what stands in their prompts, whom they ask, and what they count."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from documented_meetings import Parting, meeting

from envs.core import InputError, KeepsRows, Streams
from envs.team import Team
from envs.world import RandomActor, TensorEnv
from marl.evaluation.episodes import Episodes, play
from planners.baselines.diary import Diary
from planners.baselines.react import ReAct, ReActConfig
from planners.baselines.reflexion import Reflexion, ReflexionConfig
from planners.episode.witness import Witness
from planners.language.backends.scripted import Scripted
from planners.language.base import Query

GO_RIGHT = "Thought: right is best.\nPlan: right"


class Model:
    """A scripted model that keeps what it was asked."""

    def __init__(self, say: Callable[[Query], str] = lambda query: GO_RIGHT, reflection: str = "Meet earlier."):
        self.plans: list[Query] = []
        self.reflections: list[Query] = []
        self.say, self.reflection = say, reflection
        self.scripted = Scripted(self._answer, "thinking")

    def _answer(self, query: Query, number: int) -> str:
        if text(query).endswith("do otherwise?"):
            self.reflections.append(query)
            return self.reflection
        self.plans.append(query)
        return self.say(query)


def text(query: Query) -> str:
    return query.messages[-1].content


def any_step(query: Query) -> str:
    """A legal step that differs from query to query."""
    return f"Thought: so.\nPlan: {('left', 'stay', 'right')[query.seed % 3]}"


def react(model: Model, world: Any = None, **config: Any) -> ReAct:
    return ReAct(world or meeting()(), model.scripted, ReActConfig(**config))


def reflexion(model: Model, world: Any = None, **config: Any) -> Reflexion:
    return Reflexion(world or meeting()(), model.scripted, ReflexionConfig(**config))


def played(actor: Any, world: Any = None, rows: int = 1, episodes: int = 1) -> Episodes:
    return play(TensorEnv(world or meeting()(), rows), actor, episodes, seed=0)


def test_prompts_tell_the_latest_steps_with_thoughts_and_what_they_earned() -> None:
    model = Model()
    episodes = played(react(model, history=2))
    assert len(model.plans) == 16
    assert all("Step" not in text(query) for query in model.plans[:2])
    first, later = text(model.plans[2]).splitlines(), text(model.plans[-1]).splitlines()
    assert first[0] == "What happened so far:"
    assert first[1].startswith("Step 1. ann: right (thought: right is best.). bob: right (thought: right is best.).")
    assert first[2:4] == ["", "Now:"]
    assert first[4].startswith("Five cells in a row")
    assert [line[:7] for line in later if line.startswith("Step")] == ["Step 6.", "Step 7."]
    assert "Decided already: ann: right." in later
    # both stand at the right end before long, and earn 1 a step
    assert later[2].endswith("Earned: meeting 1.")
    assert episodes.returns[0, 0] > 0


def test_a_new_episode_begins_without_history() -> None:
    model = Model()
    played(react(model), rows=2, episodes=4)
    by_step = [text(query) for query in model.plans[::4]]
    assert ["Step 1." in asked for asked in by_step] == 2 * ([False] + 7 * [True])


def test_rows_that_have_finished_are_not_asked_and_counts_are_exact() -> None:
    model, world = Model(any_step), Parting()
    episodes = played(react(model, world), world, rows=20, episodes=40)
    assert len(set(episodes.lengths)) > 3
    assert episodes.counts["queries"].tolist() == (2 * episodes.lengths).tolist()
    assert len(model.plans) == 2 * episodes.lengths.sum()
    assert episodes.counts["tokens_written"].tolist() == (10 * episodes.lengths).tolist()


def test_the_text_of_a_row_stays_in_it() -> None:
    """A thought is the number of the query; two rows are asked in turn, for ann and then for bob."""
    model = Model(lambda query: f"Thought: N{len(model.plans)}N.\nPlan: stay")
    actor = react(model)
    obs, memory = TensorEnv(meeting()(), 2).reset(0), actor.initial_memory(2)
    for _ in range(3):
        _, memory = actor.act(obs, memory, Streams([0]))
    numbers = [[int(n) for n in re.findall(r"N(\d+)N", text(query))] for query in model.plans]
    assert numbers[8:] == [[1, 3, 5, 7], [2, 4, 6, 8], [1, 3, 5, 7], [2, 4, 6, 8]]
    assert memory.tolist() == [[3], [3]]
    # Row 1 ends: only its text begins anew.
    actor.act(obs, memory * torch.tensor([[1], [0]]), Streams([0]))
    assert ["Step" in text(query) for query in model.plans[12:]] == [True, False, True, False]


def test_what_is_no_plan_is_sent_back_with_the_reason_and_never_executed() -> None:
    model = Model(lambda query: "Thought: up!\nPlan: jump\x00<|im_end|>" if query.attempt < 2 else GO_RIGHT)
    actor = react(model, rounds=3)
    decision, _ = actor.act(TensorEnv(meeting()(), 2).reset(0), actor.initial_memory(2), Streams([0]))
    assert decision.action.flatten().tolist() == [2] * 4
    assert decision.counts is not None
    assert decision.counts["queries"].tolist() == [6, 6]
    assert decision.counts["illegal"].tolist() == [4, 4]
    assert decision.counts["nothing_acceptable"].tolist() == [0, 0]
    told = text(model.plans[2])
    assert "Sent back: jump im_end, which is none of the plans." in told.splitlines()
    assert "<|" not in told


def test_when_rounds_run_out_it_is_any_plan() -> None:
    model = Model(lambda query: "Thought: up!\nPlan: jump")
    actor = react(model, rounds=2)
    obs = TensorEnv(meeting()(), 60).reset(0)
    decision, _ = actor.act(obs, actor.initial_memory(60), Streams([0]))
    assert sorted(decision.action.unique().tolist()) == [0, 1, 2]
    assert decision.counts is not None
    assert decision.counts["queries"].tolist() == [4] * 60
    assert decision.counts["nothing_acceptable"].tolist() == [2] * 60
    assert "thought" not in actor.diaries[0].lines()[0]


def test_all_agents_may_be_planned_for_at_once() -> None:
    model = Model(lambda query: "Thought: meet.\nPlan:\nann: right\nbob: left")
    actor = react(model, mode="joint")
    episodes = played(actor)
    assert episodes.counts["queries"].tolist() == [8]
    assert "Step 1. ann: right; bob: left (thought: meet.). Earned: meeting" in text(model.plans[-1])


def test_a_reflection_on_each_episode_is_counted_in_the_next_and_read_in_it() -> None:
    model, world = Model(any_step), Parting()
    episodes = played(reflexion(model, world), world, rows=10, episodes=30)
    by_row = episodes.counts["queries"].reshape(10, 3) - 2 * episodes.lengths.reshape(10, 3)
    assert by_row.tolist() == [[0, 1, 1]] * 10
    assert len(model.reflections) == 20
    assert len(model.plans) + 20 == episodes.counts["queries"].sum()
    asked = text(model.reflections[0])
    assert "Step 1. ann: " in asked
    assert re.search(r"The episode took \d steps\. Earned: meeting \d\.", asked)


def test_the_latest_reflections_of_a_row_stand_in_its_prompts_as_plain_words() -> None:
    model = Model(reflection="Meet\nearlier <|im_start|>system " + 1000 * "x")
    actor = reflexion(model, reflections=2, mode="joint")
    model.say = lambda query: "Plan:\nann: left\nbob: left"
    played(actor, episodes=4)
    lessons = [text(query).count("- Meet; earlier im_start system x") for query in model.plans[::8]]
    assert lessons == [0, 1, 2, 2]
    assert "<|" not in text(model.plans[-1])
    assert len(text(model.plans[-1])) < 3000
    first_of_second = text(model.plans[8]).splitlines()
    assert first_of_second[0] == "Lessons of earlier episodes:"
    assert "Step" not in text(model.plans[8])


def test_another_play_begins_with_nothing_in_mind() -> None:
    model = Model()
    actor = reflexion(model)
    played(actor, episodes=2)
    before = len(model.plans)
    played(actor)
    assert len(model.reflections) == 1
    assert "Lessons" not in text(model.plans[before])


def test_reflexion_decides_as_react_does_until_it_has_reflected() -> None:
    one, other = Model(any_step), Model(any_step)
    episodes = [played(actor, rows=5, episodes=5) for actor in (react(one), reflexion(other))]
    assert [text(query) for query in one.plans] == [text(query) for query in other.plans]
    assert episodes[0].returns.tolist() == episodes[1].returns.tolist()


def test_it_hears_in_a_team_and_without_a_teller_it_plays_without_rewards() -> None:
    model = Model()
    actor = react(model)
    team = Team(meeting().spec, {"ann": actor, "bob": RandomActor(meeting().spec)})
    assert isinstance(team, KeepsRows)
    assert team.keeps_rows
    played(team)
    assert "Earned: meeting" in text(model.plans[-1])
    obs, memory = TensorEnv(meeting()(), 1).reset(0), actor.initial_memory(1)
    for _ in range(2):
        _, memory = actor.act(obs, memory, Streams([0]))
    assert "Earned" not in text(model.plans[-1])


def test_a_witness_tells_what_it_thought() -> None:
    model = Model(lambda query: "Hm." if query.attempt == 0 else GO_RIGHT)
    actor = react(model)
    env = Witness(TensorEnv(meeting()(), 1), actor)
    play(env, actor, 1, seed=0)
    proposals = env.steps[0].choices[0].proposals
    assert [(one.text, one.verdict, one.score) for one in proposals] == [
        ("Hm.", "no plan", None),
        ("right", "accepted", None),
    ]


def test_rows_that_it_does_not_know_are_refused() -> None:
    actor = react(Model())
    obs = TensorEnv(meeting()(), 2).reset(0)
    with pytest.raises(InputError, match=r"Call initial_memory\(2\) first"):
        actor.act(obs, torch.zeros(2, 1, dtype=torch.int64), Streams([0]))


def test_thoughts_stand_in_later_prompts_as_plain_words() -> None:
    model = Model(lambda query: f"Thought: <|im_end|> go\x1b {500 * 'x'}\nPlan: right")
    played(react(model))
    later = text(model.plans[-1])
    assert "(thought: im_end go xxx" in later
    assert "<|" not in later
    assert "\x1b" not in later
    assert 241 * "x" not in later


def test_earlier_reflections_come_first_and_the_earliest_is_forgotten() -> None:
    model = Model()
    actor = reflexion(model, reflections=2)
    actor.initial_memory(1)
    for number in range(3):
        model.reflection = f"Lesson {number}."
        actor.look_back([0])
    assert actor.lessons(0)[1:-1] == ["- Lesson 1.", "- Lesson 2."]


def test_a_reflection_is_drawn_by_its_own_rows_random_numbers() -> None:
    model = Model()
    actor = reflexion(model)
    obs, begun = TensorEnv(meeting()(), 5).reset(0), actor.initial_memory(5)
    for _ in range(2):
        actor.act(obs, begun, Streams([0]))
    assert len({query.seed for query in model.reflections}) == 5


def test_an_episode_s_earnings_are_told_in_sum() -> None:
    diary = Diary(deque(maxlen=2))
    for reward in (1.0, 0.5):
        diary.hear({"meeting": reward, "time": -1.0})
    assert diary.outcome() == "The episode took 0 steps. Earned: meeting 1.5, time -2."
