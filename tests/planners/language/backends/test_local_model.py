from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from small_language_models import byte_tokenizer, log_probs_alone, query, small_model, word_tokenizer

from envs.core import InputError
from planners.language.backends.deciding import Deciding
from planners.language.backends.loading import quiet
from planners.language.backends.local import Local
from planners.language.base import LanguageModel, Message, ModelError, Query, in_order

KINDS = ("llama", "qwen2")
CHOICES = ("w1", "w1 w2", "w3 w4 w5", "w3 w4", "w6")  # two are the beginning of another
LENGTHS = (1, 60, 3, 2, 17, 40)


def local(kind: str = "llama", **options: Any) -> Local:
    return Local.of(small_model(kind), word_tokenizer(), "a small one", **options)


def prompt_of(asked: Query) -> list[int]:
    messages = [{"role": message.role, "content": message.content} for message in asked.messages]
    return word_tokenizer().apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def texts(model: LanguageModel, *queries: Query) -> list[tuple[str, ...]]:
    return [tuple(part.text for part in answer.completions) for answer in in_order(model.complete(queries))]


def test_it_is_a_language_model() -> None:
    model = local()
    assert isinstance(model, LanguageModel)
    assert (model.identity, model.scores) == ("a small one", True)


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_each_choice_alone_without_cache_and_padding(kind: str, batch: int) -> None:
    model = small_model(kind)
    queries = [query(length, length, choices=CHOICES[: 2 + place % 4]) for place, length in enumerate(LENGTHS)]
    for asked, scores in zip(queries, in_order(Local.of(model, word_tokenizer(), "", batch=batch).score(queries))):
        prompt = prompt_of(asked)
        assert scores.prompt_tokens == len(prompt)
        assert scores.seconds > 0
        for path, log_probs in zip(scores.tokens, scores.token_log_probs, strict=True):
            assert log_probs == pytest.approx(log_probs_alone(model, prompt, path), abs=1e-4)


def test_scored_tokens_are_those_of_the_choices_and_the_end_of_a_turn() -> None:
    (scores,) = in_order(local().score([query(choices=("w1", "w2 w3"))]))
    ids = word_tokenizer().convert_tokens_to_ids
    assert scores.tokens == tuple(tuple(ids(path)) for path in (["w1", "[turn]"], ["w2", "w3", "[turn]"]))


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_choices_are_drawn_with_the_probabilities_that_scores_tell(temperature: float) -> None:
    model = local(batch=500)
    draws = 3000
    asked = query(choices=CHOICES, temperature=temperature, n=draws)
    (drawn,) = texts(model, asked)
    (scores,) = in_order(model.score([asked]))
    expected = [draws * math.exp(log_prob) for log_prob in scores.constrained(temperature)]
    assert min(expected) > 5
    counts = Counter(drawn)
    assert set(counts) == set(CHOICES)
    assert chisquare([counts[choice] for choice in CHOICES], expected).pvalue > 0.01


def test_queries_that_differ_by_their_seed_alone_are_drawn_independently() -> None:
    model = local(batch=500)
    drawn = texts(model, *(query(choices=CHOICES, seed=seed) for seed in range(2000)))
    (scores,) = in_order(model.score([query(choices=CHOICES)]))
    counts = Counter(text for (text,) in drawn)
    expected = [2000 * math.exp(log_prob) for log_prob in scores.constrained()]
    assert chisquare([counts[choice] for choice in CHOICES], expected).pvalue > 0.01
    later = Counter((first, second) for (first,), (second,) in pairwise(drawn))
    likeliest = max(counts, key=lambda text: counts[text])
    share = counts[likeliest] / 2000
    assert later[likeliest, likeliest] / 1999 == pytest.approx(share**2, abs=0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_at_temperature_0_the_likeliest_choice_is_taken_token_by_token(kind: str) -> None:
    model = local(kind)
    queries = [query(length, length, choices=CHOICES, temperature=0.0, n=2) for length in LENGTHS]
    for answer, scores in zip(in_order(model.complete(queries)), in_order(model.score(queries))):
        best = scores.constrained(0.0).index(0.0)
        assert [part.text for part in answer.completions] == [CHOICES[best]] * 2
        assert answer.completions[0].log_prob == pytest.approx(scores.whole[best], abs=1e-4)
        assert answer.completions[0].tokens == len(scores.tokens[best])


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_the_same_alone_and_among_others(kind: str) -> None:
    model = local(kind)
    queries = [
        query(length, length, choices=CHOICES if place % 2 else (), n=3, temperature=0.5 * place, max_tokens=4 + place)
        for place, length in enumerate(LENGTHS)
    ]
    among = in_order(model.complete(queries))
    for asked, answer in zip(queries, among):
        (alone,) = in_order(model.complete([asked]))
        for one, other in zip(alone.completions, answer.completions, strict=True):
            assert (one.text, one.tokens) == (other.text, other.tokens)
            assert one.log_prob == pytest.approx(other.log_prob, abs=1e-4)


def test_an_answer_is_fixed_by_seed_attempt_messages_and_number() -> None:
    model = local()
    first = query(choices=CHOICES, n=20)
    same, other_seed, other_attempt, other_words = texts(
        model, first, query(choices=CHOICES, n=20, seed=1), query(choices=CHOICES, n=20, attempt=1),
        query(first=1, choices=CHOICES, n=20),
    )  # fmt: skip
    assert texts(model, first) == [same]
    assert texts(model, query(choices=CHOICES, n=7)) == [same[:7]]
    assert len({same, other_seed, other_attempt, other_words}) == 4


def test_free_text_at_temperature_0_is_greedy_and_stops_at_any_end() -> None:
    model = small_model(seed=3)
    asked = query(4, temperature=0.0, max_tokens=12)
    (answer,) = in_order(Local.of(model, word_tokenizer(), "").complete([asked]))
    path: list[int] = []
    with torch.inference_mode():
        while len(path) < 12 and not {2, 3} & set(path):
            path.append(int(model(input_ids=torch.tensor([[*prompt_of(asked), *path]])).logits[0, -1].argmax()))
    (completion,) = answer.completions
    assert completion.tokens == len(path)
    assert completion.text == word_tokenizer().decode(path, skip_special_tokens=True)
    assert completion.log_prob == pytest.approx(sum(log_probs_alone(model, prompt_of(asked), path)), abs=1e-4)
    assert answer.prompt_tokens == len(prompt_of(asked))


def test_free_text_ends_where_the_model_ends_it_or_where_it_is_cut() -> None:
    queries = [query(seed=seed, max_tokens=3 + seed % 9) for seed in range(60)]
    answers = in_order(local().complete(queries))
    ended = 0
    for asked, answer in zip(queries, answers):
        (completion,) = answer.completions
        words = completion.text.split()
        assert completion.tokens <= asked.max_tokens
        assert not {"[end]", "[turn]"} & set(words)
        ended += completion.tokens < asked.max_tokens
    assert 5 < ended < 55


def test_a_models_own_settings_of_generation_change_nothing_and_stay() -> None:
    model = small_model()
    plain = texts(Local.of(model, word_tokenizer(), ""), query(n=10, max_tokens=8))
    model.generation_config.update(repetition_penalty=5.0, top_k=1, do_sample=True, temperature=0.1)
    assert texts(Local.of(model, word_tokenizer(), ""), query(n=10, max_tokens=8)) == plain
    assert model.generation_config.repetition_penalty == 5.0


def test_a_tokenizer_without_a_padding_token_is_left_as_it_is() -> None:
    tokenizer = word_tokenizer()
    model = Local.of(small_model(), tokenizer, "")
    texts(model, query(2, choices=CHOICES), query(9, choices=CHOICES))
    assert tokenizer.pad_token is None
    assert tokenizer.padding_side == word_tokenizer().padding_side


def test_byte_pairs_are_split_as_they_follow_the_prompt() -> None:
    template = (
        "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    )
    choices = ("move north", "move south", "stay", "interact", "move nördlich 🙂")
    model = Local.of(small_model(words=300), byte_tokenizer(template), "")
    asked = [Query((Message("user", "go " * place),), choices, seed=place) for place in range(30)]
    assert {text for (text,) in texts(model, *asked)} <= set(choices)
    (scores,) = in_order(model.score(asked[:1]))
    assert {path[-1] for path in scores.tokens} == {0}


def test_what_is_not_taken_is_not_asked() -> None:
    model = small_model()
    read: list[int] = []
    model.model.register_forward_pre_hook(lambda module, given: read.append(1))
    answers = Local.of(model, word_tokenizer(), "", batch=2).complete([query(choices=("w1", "w2"))] * 10)
    assert read == []
    next(answers)
    assert len(read) == 2  # the prompt, then the end


def test_tokens_of_a_prompt_are_counted_with_those_of_the_template() -> None:
    asked = query(5)
    assert local().count_tokens(asked.messages) == len(prompt_of(asked)) == 8


def test_nothing_is_printed_logged_or_warned(capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    model = local()
    texts(model, query(n=2), query(choices=CHOICES))
    in_order(model.score([query(choices=CHOICES)]))
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_prompts_that_leave_no_room_are_refused_with_the_numbers_before_any_is_asked() -> None:
    model = Local.of(small_model(context=40), word_tokenizer(), "")
    fits = query(20, max_tokens=17)
    assert len(texts(model, fits)) == 1
    with pytest.raises(InputError, match="reads 40 tokens at most, and this prompt has 23, its completion up to 18"):
        model.complete([fits, query(20, max_tokens=18)])
    with pytest.raises(InputError, match="this prompt has 38, its completion up to 4"):
        model.score([query(35, choices=CHOICES)])


def test_choices_longer_than_max_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="takes 4 tokens with its end, and max_tokens is 3"):
        local().complete([query(choices=CHOICES, max_tokens=3)])


def test_scores_of_no_choices_are_refused() -> None:
    with pytest.raises(InputError, match="has none"):
        local().score([query(choices=CHOICES), query()])


def test_models_that_remember_without_attention_are_not_scored() -> None:
    import transformers

    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "eos_token_id": 2, "bos_token_id": None}
    with quiet():
        model = Local.of(transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)), word_tokenizer(), "")
        with pytest.raises(InputError, match="layers without attention"):
            next(model.score([query(choices=CHOICES)]))
        assert set(*texts(model, query(choices=CHOICES, n=3))) <= set(CHOICES)


def test_a_closed_model_says_so() -> None:
    model = local()
    model.close()
    model.close()
    with pytest.raises(InputError, match="closed"):
        model.complete([query()])


def test_nan_is_an_error_with_a_remedy() -> None:
    model = small_model()
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    broken = Local.of(model, word_tokenizer(), "")
    for answers in (broken.complete([query()]), broken.complete([query(choices=CHOICES)])):
        with pytest.raises(ModelError, match="NaN"):
            next(answers)
    with pytest.raises(ModelError, match="bfloat16"):
        next(broken.score([query(choices=CHOICES)]))


def test_bad_parts_are_refused() -> None:
    with pytest.raises(InputError, match="batch=0"):
        local(batch=0)
    with pytest.raises(InputError, match="tokenizer has 40 words, the model only 30"):
        Local.of(small_model(words=30), word_tokenizer(), "")
    empty = word_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(InputError, match="no tokens"):
        Local.of(small_model(), empty, "").complete([Query((Message("user", ""),))])


def test_no_more_rows_than_a_batch_are_computed_at_once() -> None:
    model = small_model()
    rows: list[int] = []
    model.model.register_forward_pre_hook(
        lambda module, given, options: rows.append(len(options["input_ids"])), with_kwargs=True
    )
    small = Local.of(model, word_tokenizer(), "", batch=4)
    queries = [query(length, n=3, choices=CHOICES) for length in range(1, 10)]
    assert [len(scores.tokens) for scores in in_order(small.score(queries))] == [5] * 9
    assert [len(answer.completions) for answer in in_order(small.complete(queries))] == [3] * 9
    assert max(rows) == 4


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_decide_tell_the_constrained_probabilities_of_whole_choices(kind: str, temperature: float) -> None:
    model = local(kind, batch=3)
    queries = [query(length, length, choices=CHOICES[: 1 + place % 5]) for place, length in enumerate(LENGTHS)]
    whole, deciding = in_order(model.score(queries)), in_order(Deciding(model).score(queries))
    for one, other in zip(whole, deciding, strict=True):
        assert other.constrained(temperature) == pytest.approx(one.constrained(temperature), abs=1e-5)
        assert all(long[: len(short)] == short for long, short in zip(one.tokens, other.tokens, strict=True))


def test_choices_that_first_tokens_decide_are_scored_by_one_reading_of_the_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Deciding(local())
    read: list[int] = []
    forward = model.model._model.forward

    def counted(*given: Any, **options: Any) -> Any:
        read.append(len(options["input_ids"]))
        return forward(*given, **options)

    monkeypatch.setattr(model.model._model, "forward", counted)
    (scores,) = in_order(model.score([query(choices=("w1 w2", "w3 w4 w5"))]))
    assert read == [1]
    assert [len(path) for path in scores.tokens] == [1, 1]


def test_a_model_that_scores_what_decides_has_a_name_of_its_own() -> None:
    model = Deciding(local())
    assert isinstance(model, LanguageModel)
    assert model.identity != model.model.identity
    assert texts(model, query(choices=CHOICES)) == texts(model.model, query(choices=CHOICES))
    with pytest.raises(InputError, match="none"):
        model.score([query()])
