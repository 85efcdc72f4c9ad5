from __future__ import annotations

import pytest
from small_language_models import TEMPLATE, byte_tokenizer, word_tokenizer

from envs.core import InputError
from planners.language.backends.chat import Chat
from planners.language.base import Message

CHAT_ML = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def test_prompts_are_the_template_up_to_the_answer() -> None:
    tokenizer = word_tokenizer()
    (prompt,) = Chat(tokenizer, [2]).prompts([(Message("system", "w1"), Message("user", "w2 w3"))])
    assert tokenizer.decode(prompt) == "system w1 [turn] user w2 w3 [turn] assistant"


def test_choices_end_as_the_template_ends_an_answer_and_any_end_stops_free_text() -> None:
    chat = Chat(word_tokenizer(), [2, 5])
    assert (chat.end, chat.ends) == (3, (3, 2, 5))


def test_choices_end_with_the_end_of_a_text_where_the_template_closes_nothing() -> None:
    chat = Chat(word_tokenizer("{% for m in messages %}{{ m['content'] }} odd {% endfor %}"), [5])
    assert (chat.end, chat.ends) == (2, (2, 5))


def test_templates_that_take_no_answers_are_read_too() -> None:
    template = "{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}{{ messages[0]['content'] }}"
    chat = Chat(word_tokenizer(template), [])
    assert chat.end == 2
    with pytest.raises(InputError, match="refuses a chat of the roles system, user: one only"):
        chat.prompts([(Message("system", "w1"), Message("user", "w2"))])


def test_a_tokenizer_without_a_template_is_refused() -> None:
    with pytest.raises(InputError, match=r"has none.*chat_template\.jinja"):
        Chat(word_tokenizer(None), [2])


def test_a_model_that_never_ends_is_refused() -> None:
    template = TEMPLATE.replace("[turn]", "")
    with pytest.raises(InputError, match="never ends"):
        Chat(word_tokenizer(template, eos_token=None), [])


def test_choices_with_the_same_tokens_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="'w1 w2' and 'w1  w2' with the same tokens"):
        Chat(word_tokenizer(), [2]).choices(("w1 w2", "w3", "w1  w2"))


@pytest.mark.parametrize("choice", ["w1 soup", "W1", "w1 [end]", "[turn]", "w1 [end] w2", "  "])
def test_choices_that_the_tokenizer_cannot_write_are_refused_by_name(choice: str) -> None:
    with pytest.raises(InputError, match="cannot write the choice") as refused:
        Chat(word_tokenizer(), [2]).choices(("w1", choice))
    assert repr(choice) in str(refused.value)


def test_trees_are_made_once() -> None:
    chat = Chat(word_tokenizer(), [2])
    assert chat.choices(("w1", "w2")) is chat.choices(("w1", "w2"))


def test_choices_after_a_space_are_tokenized_with_the_space_or_alone_as_the_prompt_leaves_it() -> None:
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m['content'] }}:{% endfor %}")
    after_colon = Chat(tokenizer, []).choices((" north", "north"))
    assert [tokenizer.decode(path) for path in after_colon.tokens] == [" north<|end|>", "north<|end|>"]
    spaced = byte_tokenizer(CHAT_ML.replace("assistant\n", "assistant "))
    chat = Chat(spaced, [])
    # The space belongs to the prompt, as a token of its own: the model never sees it joined to the word.
    assert chat.choices(("north",)).tokens[0] == (*spaced("north")["input_ids"], chat.end)


def test_byte_pairs_write_any_text() -> None:
    tokenizer = byte_tokenizer(CHAT_ML)
    chat = Chat(tokenizer, [])
    texts = ("move north", "rühre die Suppe 🍲", "a\nb")
    assert tuple(chat.text(path) for path in chat.choices(texts).tokens) == texts
