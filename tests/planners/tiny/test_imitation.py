"""Imitation: exact conditionals of tokens, the loss by hand, and training that goes on to the same bits."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import islice
from typing import Any

import pytest
import torch
from worded_meetings import Meeting

from envs.core import Streams
from marl.learning.batch import Batch
from marl.learning.offline_batch import Logged
from planners.language.backends.chat import Chat
from planners.language.backends.local import Local
from planners.language.base import Query, in_order
from planners.read.phrases import Phrasebook
from planners.tiny.config import TinyConfig
from planners.tiny.imitation import LEAST, Imitation, text_batch
from planners.tiny.lessons import Lesson, Lessons
from planners.tiny.recipe import as_batch, new_model, next_tokens, texts
from planners.tiny.teacher import Teacher
from planners.tiny.tokenizer import train_tokenizer

SMALL = TinyConfig(hidden=8, layers=1, vocabulary=1000)
PATHS = [(1, 2, 9), (1, 3, 9), (1, 9), (4, 9)]
ODDS = [0.1, 0.3, 0.2, 0.4]


@lru_cache
def taught() -> list[Lesson]:
    meeting = Meeting()
    teacher = Teacher(meeting, meeting.table(), Phrasebook(meeting, "all"), TinyConfig())
    return list(islice(iter(Lessons(teacher, 0)), 120))


@lru_cache
def tokenizer() -> Any:
    return train_tokenizer(texts(taught()), SMALL.vocabulary)


def batch_of(lessons: list[Lesson]) -> Batch:
    return as_batch(lessons, Chat(tokenizer(), []), seed=0)


def test_targets_are_conditionals_of_the_whole_answers() -> None:
    first, second, third = next_tokens(PATHS, ODDS, (1, 3, 9))
    assert first == pytest.approx({1: 0.6, 4: 0.4})
    assert second == pytest.approx({2: 1 / 6, 3: 1 / 2, 9: 1 / 3})
    assert third == {9: 1.0}


def test_targets_along_an_answer_multiply_to_its_probability() -> None:
    for path, odds in zip(PATHS, ODDS):
        targets = next_tokens(PATHS, ODDS, path)
        assert math.prod(target[token] for target, token in zip(targets, path)) == pytest.approx(odds)
        assert all(sum(target.values()) == pytest.approx(1) for target in targets)


def test_what_cannot_be_said_is_no_target() -> None:
    first, second, _ = next_tokens(PATHS, [0.0, 0.5, 0.5, 0.0], (1, 3, 9))
    assert first == {1: 1.0}
    assert second == {3: 0.5, 9: 0.5}


def test_the_loss_is_the_cross_entropy_of_said_tokens() -> None:
    model = new_model(SMALL, tokenizer())
    prompts, answers = [[5, 6, 7, 8], [9, 10]], [[11, 0], [12, 13, 0]]
    targets = [[{11: 0.75, 12: 0.25}, {0: 1.0}], [{12: 1.0}, {13: 0.5, 14: 0.3, 0: 0.2}, {0: 1.0}]]
    total = 0.0
    for prompt, answer, target in zip(prompts, answers, targets):
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        for place, odds in enumerate(target):
            row = log_probs[len(prompt) + place - 1]
            total -= sum(chance * float(row[token]) for token, chance in odds.items())
    learner = Imitation(model, SMALL, 10)
    assert float(learner.loss(text_batch(prompts, answers, targets)).detach()) == pytest.approx(total / 5, rel=1e-5)


def test_answers_are_drawn_by_the_teachers_odds_and_their_targets_are_known() -> None:
    lesson = taught()[0]
    batch = batch_of([lesson] * 2000)
    paths = Chat(tokenizer(), []).choices(lesson.choices).tokens
    said = [
        tuple(row[: int(length)].tolist()) for row, length in zip(batch.decision.action[:, 0], batch.obs.state[:, 1])
    ]
    for path, odds in zip(paths, lesson.odds):
        assert said.count(path) / 2000 == pytest.approx(odds, abs=0.05)


def test_the_learning_rate_falls_along_half_a_cosine_to_a_hundredth() -> None:
    learner, batch = Imitation(new_model(SMALL, tokenizer()), SMALL, 4), batch_of(taught()[:4])
    rates = []
    for _ in range(4):
        learner.update(batch)
        rates.append(learner.optimizer.learning_rate / SMALL.learning_rate)
    assert rates == pytest.approx([1.0, 0.75, 0.25, LEAST])


def test_training_that_was_saved_goes_on_to_the_same_bits() -> None:
    def begun() -> tuple[Imitation, Logged]:
        learner = Imitation(new_model(SMALL, tokenizer()), SMALL, 8)
        return learner, Logged(batch_of(taught()), rows=16, streams=Streams([3]))

    def train(learner: Imitation, source: Logged, updates: int) -> float:
        return [float(learner.update(batch)["cross_entropy"]) for batch in islice(iter(source), updates)][-1]

    whole, source = begun()
    train(whole, source, 8)
    half, half_source = begun()
    train(half, half_source, 4)
    saved = half.state_dict(), half_source.state_dict()
    resumed, resumed_source = begun()
    resumed.load_state_dict(saved[0])
    resumed_source.load_state_dict(saved[1])
    train(resumed, resumed_source, 4)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_it_learns() -> None:
    fast = SMALL.model_copy(update={"learning_rate": 0.03})
    learner, batch = Imitation(new_model(fast, tokenizer()), fast, 60), batch_of(taught()[:15])
    losses = [float(learner.update(batch)["cross_entropy"]) for _ in range(60)]
    assert losses[-1] < 0.5 * losses[0]


def test_first_parameters_follow_from_the_seed_alone() -> None:
    one, two, other = (new_model(SMALL.model_copy(update={"seed": seed}), tokenizer()) for seed in (0, 0, 1))
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_answers_of_a_model_that_has_learned_nothing_are_legal_where_they_are_constrained() -> None:
    model = Local.of(new_model(SMALL, tokenizer()), tokenizer(), "untaught")
    queries = [Query(lesson.messages, choices=lesson.choices, seed=n) for n, lesson in enumerate(taught()[:30])]
    answers = in_order(model.complete(queries))
    said = [answer.completions[0].text for answer in answers]
    assert all(text in query.choices for text, query in zip(said, queries, strict=True))
    assert len(set(said)) > 5
    for score, query in zip(in_order(model.score(queries)), queries, strict=True):
        assert len(score.whole) == len(query.choices)
        assert sum(math.exp(x) for x in score.constrained()) == pytest.approx(1)
