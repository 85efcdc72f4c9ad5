"""The small model's tokenizer: lines as tokens, any text in them, and its chat template."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planners.language.backends.chat import Chat
from planners.language.base import Message
from planners.tiny.tokenizer import ANSWER, END, train_tokenizer

LIST = "ann can:\n- left\n- go right\n"
TEXTS = [f"Rules of the game.\nAnn is at {n % 5}.\n{LIST}What does ann do?\n" for n in range(50)] + ["left", "go right"]
TOKENIZER: Any = train_tokenizer(TEXTS, 600)


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_any_text_comes_out_as_it_went_in(text: str) -> None:
    if END not in text and ANSWER not in text:
        assert TOKENIZER.decode(encode(text)) == text


def test_a_known_line_is_a_token_and_lists_stay_together() -> None:
    written = [TOKENIZER.decode([token]) for token in encode(TEXTS[3])]
    assert written == ["Rules of the game.\n", "Ann is at 3.\n", LIST, "What does ann do?\n"]


def test_tokens_never_cross_the_end_of_a_line() -> None:
    for token in range(len(TOKENIZER)):
        inside = TOKENIZER.decode([token]).rstrip("\n").replace("\n- ", "")
        assert "\n" not in inside


def test_the_vocabulary_keeps_its_limit() -> None:
    assert len(TOKENIZER) <= 600
    assert len(train_tokenizer(TEXTS, 300)) <= 300


def test_a_chat_ends_where_the_answer_begins() -> None:
    chat = Chat(TOKENIZER, [])
    (prompt,) = chat.prompts([(Message("system", "Rules of the game."), Message("user", LIST + "What does ann do?"))])
    assert TOKENIZER.decode(prompt) == f"Rules of the game.\n{LIST}What does ann do?\n{ANSWER}"
    assert chat.end == TOKENIZER.eos_token_id
    for text, path in zip(("left", "go right"), chat.choices(("left", "go right")).tokens, strict=True):
        assert path[-1] == chat.end
        assert chat.text(path) == text
        assert TOKENIZER.decode([*prompt, *path]) == TOKENIZER.decode(prompt) + text + END


@pytest.mark.parametrize("text", ["left", "go right"])
def test_answers_are_written_in_one_token(text: str) -> None:
    assert len(encode(text)) == 1


def test_an_answer_in_a_chat_ends_as_one_that_is_written() -> None:
    chat = [{"role": "user", "content": "What does ann do?"}, {"role": "assistant", "content": "left"}]
    assert TOKENIZER.apply_chat_template(chat, tokenize=False) == f"What does ann do?\n{ANSWER}left{END}"
