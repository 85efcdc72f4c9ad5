from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from small_language_models import query, small_model

from planners.language.backends.chat import Choices
from planners.language.backends.decoding import HOTTEST, Draw, generator_of
from planners.language.base import Message, Query

END = 9
PATHS = ((1, 2, END), (1, END), (3, 4, 5, END), (6, END))


def choices(paths: tuple[tuple[int, ...], ...] = PATHS) -> Choices:
    return Choices.of(tuple(str(path) for path in paths), paths)


def draw(among: list[Choices | None], temperature: float = 1.0, prompt: int = 2) -> Draw:
    generators = [generator_of(query(), number) for number in range(len(among))]
    return Draw(generators, [temperature] * len(among), among, prompt, END)


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor([[7, 7, *row] for row in rows])


def test_a_tree_knows_what_follows_each_beginning() -> None:
    assert choices().following == {(): [1, 3, 6], (1,): [2, END], (1, 2): [END], (3,): [4], (3, 4): [5],
                                   (3, 4, 5): [END], (6,): [END]}  # fmt: skip
    assert choices().longest == 4


@given(st.sets(st.lists(st.integers(0, 8), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8))
def test_no_beginning_of_a_choice_is_without_a_successor(bare: set[tuple[int, ...]]) -> None:
    among = choices(tuple((*path, END) for path in sorted(bare)))
    judge = draw([among])
    for path in among.tokens:
        for place in range(len(path) + 1):
            assert judge.allowed(0, path[:place])


def test_transformers_refuses_a_constraint_that_allows_nothing() -> None:
    with pytest.raises(ValueError, match="unsatisfiable"):
        small_model().generate(torch.tensor([[7]]), max_new_tokens=1, prefix_allowed_tokens_fn=lambda row, ids: [])


@pytest.mark.parametrize("written", [[], [1], [3, 4], [6, END]])
def test_what_is_allowed_is_what_transformers_own_constraint_allows(written: list[int]) -> None:
    from transformers import PrefixConstrainedLogitsProcessor

    scores, judge = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)), draw([choices()], temperature=0.0)
    theirs = PrefixConstrainedLogitsProcessor(lambda row, ids: judge.allowed(0, tuple(ids[2:].tolist())), num_beams=1)
    assert torch.equal(judge(ids(written), scores), theirs(ids(written), scores))


def test_what_the_model_rules_out_stays_possible_where_nothing_else_is_allowed() -> None:
    scores = torch.full((2, 12), -torch.inf)
    scores[:, 0] = 0.0
    drawn = draw([choices(), choices()])(ids([], []), scores)
    assert set(drawn.argmax(-1).tolist()) <= {1, 3, 6}
    assert not drawn.isnan().any()


def test_free_rows_and_rows_with_choices_share_a_batch() -> None:
    scores = torch.zeros(3, 12)
    drawn = draw([None, choices(), None])(ids([0, 0], [1, 2], [0, 0]), scores)
    assert drawn.isfinite().sum(-1).tolist() == [12, 1, 12]
    for row in (0, 2):
        expected = -np.log(generator_of(query(), row).standard_exponential(12))
        assert drawn[row].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e300])
def test_the_coldest_and_the_hottest_draw_something_allowed(temperature: float) -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 6.0] + [0.0] * 8] * 64)
    drawn = draw([choices()] * 32 + [None] * 32, temperature)(ids(*[[]] * 64), scores)
    assert not drawn.isnan().any()
    picked = drawn.argmax(-1)
    assert set(picked[:32].tolist()) == ({3} if temperature < 1 else {1, 3, 6})
    assert (len(set(picked[32:].tolist())) == 1) == (temperature < 1)
    assert torch.finfo(torch.float32).max > HOTTEST


def test_recorded_log_probabilities_are_the_models_own_at_temperature_1() -> None:
    scores = torch.randn(2, 12, generator=torch.Generator().manual_seed(1))
    judge = draw([choices(), None], temperature=3.0)
    picked = judge(ids([1], [0]), scores).argmax(-1)
    expected = scores.log_softmax(-1)[torch.arange(2), picked]
    assert judge.log_probs[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_numbers_of_completions_hang_on_the_query_alone_and_look_independent() -> None:
    first = [generator_of(query(seed=seed), 0).random() for seed in range(500)]
    assert first == [generator_of(query(seed=seed, temperature=0.3, n=9), 0).random() for seed in range(500)]
    others = [generator_of(query(seed=seed, attempt=1), 0).random() for seed in range(500)]
    assert kstest(first, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(first, others)[0, 1]) < 0.15
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.15


def test_numbers_of_completions_hang_on_every_message_its_role_and_their_own_number() -> None:
    chats = [(Message(role, text), Message("user", "w2")) for role in ("system", "user") for text in ("w0", "w1")]
    drawn = [generator_of(Query(chat), number).random() for chat in chats for number in range(2)]
    assert len(set(drawn)) == 8
